-- A ctwatch recording, schema 1. docs/recording.md explains it; the views at the end are meant for people.
-- Times: *_us are microseconds; wall clock since 1970 (UTC), mono is CLOCK_MONOTONIC, which is never stepped.
-- Counts in ticks are how far something moved in that tick, so that sums over any span are exact.
-- crc: CRC-32 of what the row (for ticks and censuses: with its rows in other tables) means.

CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- One run of the recorder: from start to end, or to the end of the file.
CREATE TABLE run (
  id INTEGER PRIMARY KEY,
  started_us INTEGER NOT NULL,
  started_mono_us INTEGER NOT NULL,
  -- Stays the same until the host is rebooted: mono times of two runs with the same one can be compared.
  boot_id TEXT,
  host TEXT,
  version TEXT NOT NULL,
  kernel_release TEXT NOT NULL,
  backend TEXT NOT NULL,
  backend_reason TEXT,
  interval_us INTEGER NOT NULL,
  counts_flows INTEGER NOT NULL,
  -- JSON: [{"function":…,"kind":…}]
  hooks TEXT NOT NULL,
  -- What the kernel had counted before the run.
  boot_drop INTEGER NOT NULL,
  boot_early_drop INTEGER NOT NULL,
  boot_insert_failed INTEGER NOT NULL,
  boot_chaintoolong INTEGER NOT NULL,
  -- It continues a run of the previous file.
  continues INTEGER NOT NULL,
  -- The number of its first tick.
  first_tick INTEGER NOT NULL,
  crc INTEGER NOT NULL
);

-- How a run ended. No row: still running, or recorder or host stopped.
CREATE TABLE run_end (
  run INTEGER PRIMARY KEY REFERENCES run,
  ended_us INTEGER NOT NULL,
  ended_mono_us INTEGER NOT NULL,
  -- signal, duration, once, rotated, disk_full, failed
  reason TEXT NOT NULL,
  last_tick INTEGER NOT NULL,
  crc INTEGER NOT NULL
);

-- The causes of losses: what is counted, and whether the number is of packets or of table entries.
CREATE TABLE cause (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  unit TEXT NOT NULL
);

-- Namespaces of a run. One that reuses the inode number of another has another life.
CREATE TABLE netns (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  number INTEGER NOT NULL,
  inode INTEGER NOT NULL,
  life INTEGER NOT NULL,
  name TEXT,
  container TEXT,
  crc INTEGER NOT NULL,
  UNIQUE (run, number)
);

-- What is counted separately: losses of a cause, or with cause NULL the flows, of a service port.
CREATE TABLE slot (
  id INTEGER PRIMARY KEY,
  netns INTEGER NOT NULL REFERENCES netns,
  proto INTEGER NOT NULL,
  -- Destination port of the original direction; for ICMP type << 8 | code.
  port INTEGER NOT NULL,
  cause INTEGER REFERENCES cause,
  loopback INTEGER NOT NULL,
  -- The tuple was missed: port and loopback are meaningless.
  unattributed INTEGER NOT NULL
);

-- One interval; after downsampling, several merged into one. Within a run their numbers have no gaps.
CREATE TABLE tick (
  id INTEGER PRIMARY KEY,
  -- The first of the ticks it stands for; id is the last.
  first INTEGER NOT NULL,
  run INTEGER NOT NULL REFERENCES run,
  -- 0: as recorded; 1, 2, 3: downsampled to 10 s, 1 min, 10 min; 4: the sum of dropped ticks.
  level INTEGER NOT NULL,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  interval_us INTEGER NOT NULL,
  restarted INTEGER NOT NULL,
  -- Losses that may have been the firewall's (tracepoint backend).
  ambiguous INTEGER NOT NULL,
  -- Inserts and deletes without a slot; negative if some were assigned to one later.
  flows_overflow INTEGER NOT NULL,
  -- At its end: what the kernel had counted in this run and ctwatch had not.
  unexplained_drop INTEGER NOT NULL,
  unexplained_early_drop INTEGER NOT NULL,
  unexplained_insert_failed INTEGER NOT NULL,
  unexplained_chaintoolong INTEGER NOT NULL,
  -- Loss events in this tick, of which the table event has a sample.
  events_seen INTEGER NOT NULL,
  crc INTEGER NOT NULL
);

-- The table of a netns, if anything changed in a tick. No row: as in its previous row.
CREATE TABLE tick_netns (
  tick INTEGER NOT NULL REFERENCES tick,
  netns INTEGER NOT NULL REFERENCES netns,
  -- 0 present, 1 gone, 2 no longer reported, 3 present, but its counters could not be read
  presence INTEGER NOT NULL,
  complete INTEGER NOT NULL,
  count INTEGER,
  -- The highest count of all ticks it stands for; NULL: count.
  peak INTEGER,
  max INTEGER,
  -- How far the kernel's counters moved.
  drops INTEGER NOT NULL,
  early_drop INTEGER NOT NULL,
  insert_failed INTEGER NOT NULL,
  chaintoolong INTEGER NOT NULL,
  -- How far they moved while ctwatch's own were read.
  drops_width INTEGER NOT NULL,
  early_drop_width INTEGER NOT NULL,
  insert_failed_width INTEGER NOT NULL,
  chaintoolong_width INTEGER NOT NULL,
  PRIMARY KEY (tick, netns)
) WITHOUT ROWID;

CREATE TABLE tick_loss (
  tick INTEGER NOT NULL REFERENCES tick,
  slot INTEGER NOT NULL REFERENCES slot,
  losses INTEGER NOT NULL,
  PRIMARY KEY (tick, slot)
) WITHOUT ROWID;

CREATE TABLE tick_flow (
  tick INTEGER NOT NULL REFERENCES tick,
  slot INTEGER NOT NULL REFERENCES slot,
  inserts INTEGER NOT NULL,
  deletes INTEGER NOT NULL,
  -- Inserts that failed in the end.
  failed INTEGER NOT NULL,
  PRIMARY KEY (tick, slot)
) WITHOUT ROWID;

-- What has no slot, by cause. Losses are negative if some were assigned to one later.
CREATE TABLE tick_cause (
  tick INTEGER NOT NULL REFERENCES tick,
  cause INTEGER NOT NULL,
  overflow INTEGER NOT NULL,
  lost_events INTEGER NOT NULL,
  PRIMARY KEY (tick, cause)
) WITHOUT ROWID;

-- Whose packets were lost.
CREATE TABLE owner (
  id INTEGER PRIMARY KEY,
  pid INTEGER,
  name TEXT,
  -- sender, listener
  role TEXT,
  cgroup TEXT,
  container TEXT,
  -- Without a process: it can't be attributed.
  anybodys INTEGER NOT NULL
);

-- A sample of individual losses.
CREATE TABLE event (
  -- As numbered when it was recorded: it belongs to the tick whose first…id contains this number.
  tick INTEGER NOT NULL,
  -- Its position within the tick
  place INTEGER NOT NULL,
  -- 1: kept only around an incident
  detail INTEGER NOT NULL,
  wall_us INTEGER NOT NULL,
  -- CLOCK_MONOTONIC, nanoseconds
  at_ns INTEGER NOT NULL,
  netns INTEGER NOT NULL REFERENCES netns,
  cause INTEGER NOT NULL REFERENCES cause,
  -- Bits: 1 loopback, 2 count known, 4 max known, 8 device is that of the way out, 16 tuple known, 32 has an entry,
  -- 64 has an owner
  flags INTEGER NOT NULL,
  proto INTEGER NOT NULL,
  family INTEGER NOT NULL,
  src TEXT,
  -- Source port, or ICMP id
  sport INTEGER NOT NULL,
  dst TEXT,
  dport INTEGER NOT NULL,
  -- ICMP type << 8 | code
  icmp INTEGER NOT NULL,
  -- NF_INET_*; 255 unknown
  hook INTEGER NOT NULL,
  device TEXT,
  ifindex INTEGER NOT NULL,
  length INTEGER NOT NULL,
  count INTEGER NOT NULL,
  max INTEGER NOT NULL,
  owner INTEGER REFERENCES owner,
  sender_pid INTEGER NOT NULL,
  sender_name TEXT,
  sender_cgroup INTEGER NOT NULL,
  -- The entry it is about: its reply direction, nf_conn.status, TCP state (255 none), jiffies left
  reply_src TEXT,
  reply_sport INTEGER NOT NULL,
  reply_dst TEXT,
  reply_dport INTEGER NOT NULL,
  status INTEGER NOT NULL,
  tcp_state INTEGER NOT NULL,
  jiffies_left INTEGER NOT NULL,
  jiffies_per_s INTEGER,
  -- The new flow that pushed an evicted entry out
  by_proto INTEGER,
  by_src TEXT,
  by_sport INTEGER,
  by_dst TEXT,
  by_dport INTEGER,
  crc INTEGER NOT NULL,
  PRIMARY KEY (tick, place)
) WITHOUT ROWID;

-- The contents of a table at the end of a tick, tied to the flow counters: gives the occupancy in between.
CREATE TABLE census (
  id INTEGER PRIMARY KEY,
  tick INTEGER NOT NULL,
  netns INTEGER NOT NULL REFERENCES netns,
  rebase INTEGER NOT NULL,
  exact INTEGER NOT NULL,
  -- JSON: timeouts in force there, seconds
  timeouts TEXT NOT NULL,
  -- Number of ports left out, those with the fewest entries
  omitted INTEGER NOT NULL,
  crc INTEGER NOT NULL
);

CREATE TABLE census_key (
  census INTEGER NOT NULL REFERENCES census,
  proto INTEGER NOT NULL,
  port INTEGER NOT NULL,
  -- NULL: it had no entries, only its base is known
  entries INTEGER,
  assured INTEGER,
  time_wait INTEGER,
  -- Its entries are this plus inserts - failed - deletes since the run began; NULL: unknown
  base INTEGER,
  PRIMARY KEY (census, proto, port)
) WITHOUT ROWID;

CREATE TABLE census_detail (
  census INTEGER NOT NULL REFERENCES census,
  proto INTEGER NOT NULL,
  -- -1: ports without a detail of their own
  port INTEGER NOT NULL,
  assured INTEGER NOT NULL,
  -- JSON: [[enum tcp_conntrack, entries], …]
  states TEXT NOT NULL,
  -- JSON: [[bucket of remaining seconds, entries], …], of entries that packets refresh and of those that only expire
  lasting TEXT NOT NULL,
  ending TEXT NOT NULL,
  PRIMARY KEY (census, proto, port)
) WITHOUT ROWID;

-- A table listed entry by entry, at the start and when a trigger fires: what occupies it, and in which phase.
CREATE TABLE listing (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  netns INTEGER NOT NULL REFERENCES netns,
  -- start, trigger
  reason TEXT NOT NULL,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  took_us INTEGER NOT NULL,
  entries INTEGER NOT NULL,
  -- Entries listed twice; each is counted once
  duplicates INTEGER NOT NULL,
  -- The kernel reported the listing as inconsistent, or the table was resized meanwhile
  interrupted INTEGER NOT NULL,
  -- The number of seconds over which arrivals are counted
  look_s INTEGER NOT NULL,
  -- JSON: timeouts in force by phase, seconds
  timeouts TEXT NOT NULL,
  -- Ports beyond the first 2048 are summed by protocol, as port 0
  crc INTEGER NOT NULL
);

CREATE TABLE listing_phase (
  listing INTEGER NOT NULL REFERENCES listing,
  proto INTEGER NOT NULL,
  port INTEGER NOT NULL,
  -- in, out, loopback, forwarded
  direction TEXT NOT NULL,
  -- established, time_wait, udp, …
  phase TEXT NOT NULL,
  timeout INTEGER NOT NULL,
  entries INTEGER NOT NULL,
  -- Entries whose timeout was restarted within look_s
  entered INTEGER NOT NULL,
  -- JSON: [[bucket of seconds since the timeout was restarted, entries], …]
  idle TEXT NOT NULL,
  -- Different pairs of addresses of this port and direction; NULL: many
  pairs INTEGER,
  PRIMARY KEY (listing, proto, port, direction, phase)
) WITHOUT ROWID;

-- conntrack's settings: the first reading of each, and every change.
CREATE TABLE setting (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  -- net.netfilter.…, or a path below /sys
  name TEXT NOT NULL,
  -- NULL: it doesn't exist (any more)
  value TEXT,
  -- NULL: first reading
  before TEXT,
  crc INTEGER NOT NULL
);

-- Everything `ctwatch advise` reads of the machine, as JSON.
CREATE TABLE machine (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  -- start, trigger
  reason TEXT NOT NULL,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  facts TEXT NOT NULL,
  crc INTEGER NOT NULL
);

CREATE TABLE notice (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  code TEXT NOT NULL,
  text TEXT NOT NULL,
  crc INTEGER NOT NULL
);

-- A trigger that fired, and how long its condition held.
CREATE TABLE incident (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  -- As given with --when
  condition TEXT NOT NULL,
  -- The tick it fired in, and that tick's end
  tick INTEGER NOT NULL,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  -- JSON: what was measured when it fired
  measured TEXT NOT NULL,
  -- Ticks whose detail is kept
  detail_from INTEGER NOT NULL,
  detail_to INTEGER NOT NULL,
  -- When the condition cleared; NULL: it held until the end
  ceased_us INTEGER,
  crc INTEGER NOT NULL
);

-- Views for people.
CREATE VIEW fills AS
  SELECT t.id AS tick, strftime('%Y-%m-%dT%H:%M:%fZ', t.wall_us / 1e6, 'unixepoch') AS time, t.wall_us / 1000000 AS unix_s,
    ifnull(n.name, n.inode) AS netns, f.count, ifnull(f.peak, f.count) AS peak, f.max,
    CASE WHEN f.max > 0 THEN 1.0 * f.count / f.max END AS fill, f.drops, f.early_drop, f.insert_failed, f.chaintoolong
  FROM tick_netns f JOIN tick t ON t.id = f.tick JOIN netns n ON n.id = f.netns;

CREATE VIEW losses AS
  SELECT t.id AS tick, strftime('%Y-%m-%dT%H:%M:%fZ', t.wall_us / 1e6, 'unixepoch') AS time, t.wall_us / 1000000 AS unix_s,
    t.interval_us / 1e6 AS interval_s, ifnull(n.name, n.inode) AS netns,
    CASE s.proto WHEN 1 THEN 'icmp' WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' WHEN 58 THEN 'icmpv6' WHEN 132 THEN 'sctp'
      ELSE s.proto END AS proto,
    CASE WHEN NOT s.unattributed THEN s.port END AS port, CASE WHEN NOT s.unattributed THEN s.loopback END AS loopback,
    c.name AS cause, c.unit, l.losses
  FROM tick_loss l JOIN tick t ON t.id = l.tick JOIN slot s ON s.id = l.slot JOIN cause c ON c.id = s.cause
    JOIN netns n ON n.id = s.netns;

CREATE VIEW arrivals AS
  SELECT t.id AS tick, strftime('%Y-%m-%dT%H:%M:%fZ', t.wall_us / 1e6, 'unixepoch') AS time, t.wall_us / 1000000 AS unix_s,
    t.interval_us / 1e6 AS interval_s, ifnull(n.name, n.inode) AS netns,
    CASE s.proto WHEN 1 THEN 'icmp' WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' WHEN 58 THEN 'icmpv6' WHEN 132 THEN 'sctp'
      ELSE s.proto END AS proto,
    s.port, f.inserts - f.failed AS inserts, f.deletes
  FROM tick_flow f JOIN tick t ON t.id = f.tick JOIN slot s ON s.id = f.slot JOIN netns n ON n.id = s.netns;

CREATE VIEW drops AS
  SELECT e.tick, strftime('%Y-%m-%dT%H:%M:%fZ', e.wall_us / 1e6, 'unixepoch') AS time, e.wall_us / 1000000 AS unix_s,
    ifnull(n.name, n.inode) AS netns, c.name AS cause,
    CASE e.proto WHEN 1 THEN 'icmp' WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' WHEN 58 THEN 'icmpv6' WHEN 132 THEN 'sctp'
      ELSE e.proto END AS proto,
    e.src, e.sport, e.dst, e.dport,
    CASE e.hook WHEN 0 THEN 'prerouting' WHEN 1 THEN 'input' WHEN 2 THEN 'forward' WHEN 3 THEN 'output'
      WHEN 4 THEN 'postrouting' WHEN 16 THEN 'openvswitch' WHEN 17 THEN 'tc_ingress' WHEN 18 THEN 'tc_egress' WHEN 19 THEN 'bridge' END AS hook,
    e.device, e.flags & 1 AS loopback, CASE WHEN e.flags & 2 THEN e.count END AS count,
    CASE WHEN e.flags & 4 THEN e.max END AS max, o.pid, o.name AS process, o.role, o.container
  FROM event e JOIN netns n ON n.id = e.netns JOIN cause c ON c.id = e.cause LEFT JOIN owner o ON o.id = e.owner;
