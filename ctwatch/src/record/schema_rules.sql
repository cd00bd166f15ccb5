-- Tables that a recording begun by an older ctwatch gets when a newer one continues it. The schema's number is the same:
-- who doesn't know them can read everything else.

-- The firewall's rules, as the tools print them: when first read, whenever they changed, and when a trigger fired if they
-- had changed. Those of the netns the recorder runs in and of those that lost packets.
CREATE TABLE IF NOT EXISTS rules (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  netns INTEGER NOT NULL REFERENCES netns,
  -- start, changed, trigger
  reason TEXT NOT NULL,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  -- Bytes of JSON
  size INTEGER NOT NULL,
  -- The JSON as raw DEFLATE (RFC 1951): what the tools printed, and notes on what could not be read. NULL: dropped to
  -- keep the file small
  rules BLOB,
  -- CRC-32 of the column rules as it was written
  rules_crc INTEGER NOT NULL,
  crc INTEGER NOT NULL
);

-- As setting, of other namespaces that lost packets: what the kernel keeps for each.
CREATE TABLE IF NOT EXISTS netns_setting (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL REFERENCES run,
  netns INTEGER NOT NULL REFERENCES netns,
  wall_us INTEGER NOT NULL,
  mono_us INTEGER NOT NULL,
  -- net.netfilter.…, net.ipv4.…
  name TEXT NOT NULL,
  -- NULL: it doesn't exist (any more)
  value TEXT,
  -- NULL: first reading
  before TEXT,
  crc INTEGER NOT NULL
);

-- The conntrack zone of an individual loss's entry where it isn't the default one (event.flags 128 says that it is known).
CREATE TABLE IF NOT EXISTS event_zone (
  -- Those of the event
  tick INTEGER NOT NULL,
  place INTEGER NOT NULL,
  -- Of the entry's original direction, and of its reply direction
  original INTEGER NOT NULL,
  reply INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY (tick, place)
) WITHOUT ROWID;
