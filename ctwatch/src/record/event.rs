//! One loss as a row, and a row as a loss.
//! What is read back is what `state` would have seen; only bytes of names that aren't valid text get lost.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ctwatch_common::Cause;
use jiff::Timestamp;
use rusqlite::{Connection, Row, ToSql};

use super::columns::{EVENT, EventColumns, EventZoneColumns, OwnerColumns};
use super::digest::Digest;
use super::fault::{ReadError, corrupt_row};
use super::limits;
use super::rules::has_table;
use crate::foreign::{Foreign, bytes_of};
use crate::model::{
    Device, EntryState, Flow, Hook, Loss, Name, NetnsId, Owner, Packet, ProcessId, Protocol, Role, Sender,
    Tuple, Zone,
};

/// Losses with their netns, owner and zone.
static SELECT: LazyLock<String> = LazyLock::new(|| {
    let zones = "LEFT JOIN event_zone z ON z.tick = e.tick AND z.place = e.place";
    select(&EventZoneColumns::of("z"), zones)
});

/// The same of a file from before zones were thought of.
static SELECT_WITHOUT_ZONES: LazyLock<String> = LazyLock::new(|| {
    let none = vec!["NULL"; EventZoneColumns::NAMES.len()];
    select(&none.join(", "), "")
});

fn select(zone: &str, zones: &str) -> String {
    let (event, owner) = (EventColumns::of("e"), OwnerColumns::of("o"));
    format!(
        "SELECT {event}, {owner}, n.number, {zone} FROM event e CROSS JOIN netns n ON n.id = e.netns \
         LEFT JOIN owner o ON o.id = e.owner {zones} WHERE e.tick BETWEEN ?1 AND ?2 ORDER BY e.tick, e.place"
    )
}

/// What reads the losses of a span of ticks.
pub(super) fn selecting(connection: &Connection) -> rusqlite::Result<&'static str> {
    Ok(if has_table(connection, "event_zone")? { &SELECT } else { &SELECT_WITHOUT_ZONES })
}

/// Positions of the owner's columns in a row of [`SELECT`].
const OWNER: OwnerColumns<usize> = OwnerColumns::starting_at(EventColumns::NAMES.len());
/// Position of the netns's number in such a row.
const NETNS_NUMBER: usize = EventColumns::NAMES.len() + OwnerColumns::NAMES.len();
/// Positions of the zone's columns.
const ZONE: EventZoneColumns<usize> = EventZoneColumns::starting_at(NETNS_NUMBER + 1);

/// Bits of the column `flags`: what of the row is known. Part of the file format.
mod flag {
    /// The packet travelled over the loopback device.
    pub const LOOPBACK: u8 = 1;
    /// `count` is known.
    pub const COUNT: u8 = 2;
    /// `max` is known.
    pub const MAX: u8 = 4;
    /// The device is the one the packet goes out of.
    pub const OUT: u8 = 8;
    /// The tuple is known.
    pub const TUPLE: u8 = 16;
    /// There was an entry.
    pub const ENTRY: u8 = 32;
    /// The sending process is known.
    pub const OWNER: u8 = 64;
    /// The zone is known: that of the row in event_zone, else the default one.
    pub const ZONE: u8 = 128;
}

/// The column `hook` where none is known.
const NO_HOOK: u8 = 255;
/// The column `tcp_state` where there is none.
const NO_TCP_STATE: u8 = 255;

/// The columns of a loss, apart from its time, tick and owner: the checksum is over these, so that a row written by another
/// version stays whole even if this one understands less of it.
#[derive(Debug, Default)]
struct EventRow {
    at_ns: u64,
    netns: u32,
    cause: u8,
    flags: u8,
    proto: u8,
    family: u8,
    src: Option<String>,
    sport: u16,
    dst: Option<String>,
    dport: u16,
    icmp: u16,
    hook: u8,
    device: Option<String>,
    ifindex: u32,
    length: u32,
    count: u32,
    max: u32,
    sender_pid: u32,
    sender_name: Option<String>,
    sender_cgroup: u64,
    reply_src: Option<String>,
    reply_sport: u16,
    reply_dst: Option<String>,
    reply_dport: u16,
    status: u32,
    tcp_state: u8,
    jiffies_left: i32,
    jiffies_per_s: Option<u32>,
    by: Option<FlowColumns>,
    /// In a table of its own, and not in the checksum: see [`zone_checksum`].
    zone: Option<Zone>,
}

/// The columns of the flow that pushed an entry out.
#[derive(Debug)]
struct FlowColumns {
    proto: u8,
    src: Option<String>,
    sport: u16,
    dst: Option<String>,
    dport: u16,
}

impl EventRow {
    fn of(loss: &Loss) -> Self {
        let Loss { time: _, cause, packet, entry, sender, pushed_out_by, owner: _, jiffies_per_s } = loss;
        let Packet { at_ns, netns, proto, tuple, icmp, is_loopback, hook, device, count, max, length, zone } =
            packet;
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let reply = entry.and_then(|entry| entry.reply);
        let family = tuple.or(reply).map_or(0, |tuple| if tuple.src.is_ipv4() { 4 } else { 6 });
        // Where the family is known, an address that isn't is written as the unspecified one.
        let unspecified = match family {
            4 => Some(IpAddr::from([0; 4])),
            6 => Some(IpAddr::from([0; 16])),
            _ => None,
        };
        let address = |pick: fn(Tuple) -> IpAddr, tuple: Option<Tuple>| {
            tuple.map(pick).or(unspecified).map(|address| address.to_string())
        };
        Self {
            at_ns: *at_ns,
            netns: netns.packed(),
            cause: *cause as u8,
            flags: bit(*is_loopback, flag::LOOPBACK)
                | bit(count.is_some(), flag::COUNT)
                | bit(max.is_some(), flag::MAX)
                | bit(device.is_output, flag::OUT)
                | bit(tuple.is_some(), flag::TUPLE)
                | bit(entry.is_some(), flag::ENTRY)
                | bit(sender.is_some(), flag::OWNER)
                | bit(zone.is_some(), flag::ZONE),
            proto: proto.unwrap_or_default().0,
            family,
            src: address(|tuple| tuple.src, *tuple),
            sport: tuple.map_or(0, |tuple| tuple.sport),
            dst: address(|tuple| tuple.dst, *tuple),
            dport: tuple.map_or(0, |tuple| tuple.dport),
            icmp: u16::from_be_bytes(*icmp),
            hook: hook.map_or(NO_HOOK, |hook| hook as u8),
            device: device.name.and_then(text),
            ifindex: device.ifindex,
            length: *length,
            count: count.unwrap_or(0),
            max: max.unwrap_or(0),
            sender_pid: sender.map_or(0, |sender| sender.pid),
            sender_name: sender.and_then(|sender| text(sender.name)),
            sender_cgroup: sender.map_or(0, |sender| sender.cgroup),
            reply_src: address(|tuple| tuple.src, reply),
            reply_sport: reply.map_or(0, |tuple| tuple.sport),
            reply_dst: address(|tuple| tuple.dst, reply),
            reply_dport: reply.map_or(0, |tuple| tuple.dport),
            status: entry.map_or(0, |entry| entry.status),
            tcp_state: entry.map_or(0, |entry| entry.tcp_state.unwrap_or(NO_TCP_STATE)),
            jiffies_left: entry.map_or(0, |entry| entry.left_jiffies),
            jiffies_per_s: *jiffies_per_s,
            by: pushed_out_by.map(|Flow { proto, tuple }| FlowColumns {
                proto: proto.0,
                src: Some(tuple.src.to_string()),
                sport: tuple.sport,
                dst: Some(tuple.dst.to_string()),
                dport: tuple.dport,
            }),
            zone: *zone,
        }
    }

    /// The loss these columns say; `None` if its cause is one that only a later version knows.
    fn loss(&self, time: Timestamp, owner: Option<Arc<Owner>>) -> Option<Loss> {
        let has = |bit: u8| self.flags & bit != 0;
        let tuple = tuple(&self.src, self.sport, &self.dst, self.dport).filter(|_| has(flag::TUPLE));
        let packet = Packet {
            at_ns: self.at_ns,
            netns: NetnsId::from_packed(self.netns),
            proto: (tuple.is_some() || self.proto != 0).then_some(Protocol(self.proto)),
            tuple,
            icmp: self.icmp.to_be_bytes(),
            is_loopback: has(flag::LOOPBACK),
            hook: Hook::from_number(self.hook),
            device: Device {
                name: self.device.as_deref().map(named),
                ifindex: self.ifindex,
                is_output: has(flag::OUT),
            },
            count: has(flag::COUNT).then_some(self.count),
            max: has(flag::MAX).then_some(self.max),
            length: self.length,
            zone: self.zone.filter(|_| has(flag::ZONE)),
        };
        let entry = has(flag::ENTRY).then(|| EntryState {
            reply: self::tuple(&self.reply_src, self.reply_sport, &self.reply_dst, self.reply_dport),
            status: self.status,
            tcp_state: (self.tcp_state != NO_TCP_STATE).then_some(self.tcp_state),
            left_jiffies: self.jiffies_left,
        });
        let sender = has(flag::OWNER).then(|| Sender {
            cgroup: self.sender_cgroup,
            pid: self.sender_pid,
            name: named(self.sender_name.as_deref().unwrap_or_default()),
        });
        let pushed_out_by = self.by.as_ref().and_then(|by| {
            Some(Flow {
                proto: Protocol(by.proto),
                tuple: self::tuple(&by.src, by.sport, &by.dst, by.dport)?,
            })
        });
        let cause = Cause::from_number(self.cause)?;
        Some(Loss {
            time,
            cause,
            packet,
            entry,
            sender,
            pushed_out_by,
            owner,
            jiffies_per_s: self.jiffies_per_s,
        })
    }

    fn checksum(&self, tick: i64, time: Timestamp, owner: Option<&Owner>) -> u32 {
        let mut digest = Digest::default();
        digest.int(tick).int(time.as_microsecond()).int(self.at_ns.cast_signed()).int(i64::from(self.netns));
        for number in [self.count, self.max, self.ifindex, self.length, self.status, self.sender_pid] {
            digest.int(i64::from(number));
        }
        for number in [self.cause, self.proto, self.family, self.hook, self.flags, self.tcp_state] {
            digest.int(i64::from(number));
        }
        for number in [self.sport, self.dport, self.icmp, self.reply_sport, self.reply_dport] {
            digest.int(i64::from(number));
        }
        for address in [&self.src, &self.dst, &self.reply_src, &self.reply_dst] {
            digest.optional_text(address.as_deref());
        }
        digest.optional_text(self.device.as_deref()).optional_text(self.sender_name.as_deref());
        digest.int(i64::from(self.jiffies_left)).int(self.sender_cgroup.cast_signed());
        digest.optional(self.jiffies_per_s.map(i64::from));
        if let Some(by) = &self.by {
            for number in [u16::from(by.proto), by.sport, by.dport] {
                digest.int(i64::from(number));
            }
            digest.optional_text(by.src.as_deref()).optional_text(by.dst.as_deref());
        }
        if let Some(Owner { process, cgroup, container, unattributable }) = owner {
            if let Some(ProcessId { pid, name, role }) = process {
                let name = text(*name);
                digest.int(i64::from(*pid)).optional_text(name.as_deref()).int(*role as i64);
            }
            digest
                .optional_text(cgroup.as_ref().map(Foreign::raw))
                .optional_text(container.as_ref().map(Foreign::raw));
            digest.int(i64::from(*unattributable));
        }
        digest.finish()
    }
}

/// A tuple of two columns each; nothing where an address is missing or none.
fn tuple(src: &Option<String>, sport: u16, dst: &Option<String>, dport: u16) -> Option<Tuple> {
    let address = |text: &Option<String>| text.as_deref()?.parse().ok();
    Some(Tuple { src: address(src)?, dst: address(dst)?, sport, dport })
}

/// Writes a loss.
pub(super) fn insert(
    connection: &Connection,
    (tick, place): (i64, usize),
    detail: bool,
    netns: i64,
    owner: Option<i64>,
    loss: &Loss,
) -> rusqlite::Result<()> {
    let row = EventRow::of(loss);
    let by = row.by.as_ref();
    EventColumns::<&dyn ToSql> {
        tick: &tick,
        place: &(place as i64),
        detail: &detail,
        wall_us: &loss.time.as_microsecond(),
        at_ns: &row.at_ns.cast_signed(),
        netns: &netns,
        cause: &row.cause,
        flags: &row.flags,
        proto: &row.proto,
        family: &row.family,
        src: &row.src,
        sport: &row.sport,
        dst: &row.dst,
        dport: &row.dport,
        icmp: &row.icmp,
        hook: &row.hook,
        device: &row.device,
        ifindex: &row.ifindex,
        length: &row.length,
        count: &row.count,
        max: &row.max,
        owner: &owner,
        sender_pid: &row.sender_pid,
        sender_name: &row.sender_name,
        sender_cgroup: &row.sender_cgroup.cast_signed(),
        reply_src: &row.reply_src,
        reply_sport: &row.reply_sport,
        reply_dst: &row.reply_dst,
        reply_dport: &row.reply_dport,
        status: &row.status,
        tcp_state: &row.tcp_state,
        jiffies_left: &row.jiffies_left,
        jiffies_per_s: &row.jiffies_per_s,
        by_proto: &by.map(|by| by.proto),
        by_src: &by.map(|by| &by.src),
        by_sport: &by.map(|by| by.sport),
        by_dst: &by.map(|by| &by.dst),
        by_dport: &by.map(|by| by.dport),
        crc: &row.checksum(tick, loss.time, loss.owner.as_deref()),
    }
    .insert(connection)?;
    let Some(zone) = row.zone.filter(|zone| *zone != Zone::DEFAULT) else { return Ok(()) };
    let (original, reply) = (zone.original(), zone.reply());
    EventZoneColumns::<&dyn ToSql> {
        tick: &tick,
        place: &(place as i64),
        original: &original,
        reply: &reply,
        crc: &zone_checksum(tick, place as i64, (original, reply)),
    }
    .insert(connection)
}

fn zone_checksum(tick: i64, place: i64, (original, reply): (u16, u16)) -> u32 {
    Digest::default().ints(&[tick, place, original.into(), reply.into()]).finish()
}

/// The zone in a row of its own, else the default one.
fn zone(row: &Row<'_>, tick: i64) -> Result<Zone, ReadError> {
    let Some(original) = row.get::<_, Option<u16>>(ZONE.original)? else { return Ok(Zone::DEFAULT) };
    let (reply, crc): (u16, u32) = (row.get(ZONE.reply)?, row.get(ZONE.crc)?);
    let expected = zone_checksum(tick, row.get(EVENT.place)?, (original, reply));
    match Zone::new(original, reply).filter(|_| expected == crc) {
        Some(zone) => Ok(zone),
        None => corrupt_row("event_zone of tick", tick),
    }
}

/// Reads a loss, its tick and whether it is detail. No loss where only a later version knows the cause.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, bool, Option<Loss>), ReadError> {
    let tick: i64 = row.get(EVENT.tick)?;
    let columns = EventRow {
        at_ns: row.get::<_, i64>(EVENT.at_ns)?.cast_unsigned(),
        netns: row.get(NETNS_NUMBER)?,
        cause: row.get(EVENT.cause)?,
        flags: row.get(EVENT.flags)?,
        proto: row.get(EVENT.proto)?,
        family: row.get(EVENT.family)?,
        src: row.get(EVENT.src)?,
        sport: row.get(EVENT.sport)?,
        dst: row.get(EVENT.dst)?,
        dport: row.get(EVENT.dport)?,
        icmp: row.get(EVENT.icmp)?,
        hook: row.get(EVENT.hook)?,
        device: row.get(EVENT.device)?,
        ifindex: row.get(EVENT.ifindex)?,
        length: row.get(EVENT.length)?,
        count: row.get(EVENT.count)?,
        max: row.get(EVENT.max)?,
        sender_pid: row.get(EVENT.sender_pid)?,
        sender_name: row.get(EVENT.sender_name)?,
        sender_cgroup: row.get::<_, i64>(EVENT.sender_cgroup)?.cast_unsigned(),
        reply_src: row.get(EVENT.reply_src)?,
        reply_sport: row.get(EVENT.reply_sport)?,
        reply_dst: row.get(EVENT.reply_dst)?,
        reply_dport: row.get(EVENT.reply_dport)?,
        status: row.get(EVENT.status)?,
        tcp_state: row.get(EVENT.tcp_state)?,
        jiffies_left: row.get(EVENT.jiffies_left)?,
        jiffies_per_s: row.get(EVENT.jiffies_per_s)?,
        by: pushed_out_by(row)?,
        zone: Some(zone(row, tick)?),
    };
    let Some(time) = limits::time(row.get(EVENT.wall_us)?) else {
        return corrupt_row("event of tick", tick);
    };
    let owner = owner(row)?.map(Arc::new);
    if columns.checksum(tick, time, owner.as_deref()) != row.get::<_, u32>(EVENT.crc)? {
        return corrupt_row("event of tick", tick);
    }
    Ok((tick, row.get(EVENT.detail)?, columns.loss(time, owner)))
}

fn pushed_out_by(row: &Row<'_>) -> rusqlite::Result<Option<FlowColumns>> {
    let Some(proto) = row.get(EVENT.by_proto)? else { return Ok(None) };
    Ok(Some(FlowColumns {
        proto,
        src: row.get(EVENT.by_src)?,
        sport: row.get(EVENT.by_sport)?,
        dst: row.get(EVENT.by_dst)?,
        dport: row.get(EVENT.by_dport)?,
    }))
}

fn owner(row: &Row<'_>) -> rusqlite::Result<Option<Owner>> {
    if row.get::<_, Option<i64>>(EVENT.owner)?.is_none() {
        return Ok(None);
    }
    let role = match row.get::<_, Option<String>>(OWNER.role)?.as_deref() {
        Some("listener") => Role::Listener,
        _ => Role::Sender,
    };
    let pid: Option<u32> = row.get(OWNER.pid)?;
    let name = named(&row.get::<_, Option<String>>(OWNER.name)?.unwrap_or_default());
    Ok(Some(Owner {
        process: pid.map(|pid| ProcessId { pid, name, role }),
        cgroup: row.get(OWNER.cgroup)?,
        container: row.get(OWNER.container)?,
        unattributable: row.get::<_, Option<bool>>(OWNER.anybodys)?.unwrap_or_default(),
    }))
}

/// A name without trailing NULs; `None` if it is empty.
pub(super) fn text(name: Name) -> Option<String> {
    (!name.bytes().is_empty()).then(|| Foreign::from(name).into_raw())
}

/// The name that this was.
fn named(text: &str) -> Name {
    Name::new(&text.chars().flat_map(bytes_of).collect::<Vec<u8>>())
}

/// Which netns a loss happened in.
pub(super) const fn netns_of(loss: &Loss) -> NetnsId {
    loss.packet.netns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::schema;

    fn read_back(connection: &Connection) -> Vec<Option<Zone>> {
        let mut statement = connection.prepare(selecting(connection).unwrap()).unwrap();
        let mut rows = statement.query([0, i64::MAX]).unwrap();
        let mut zones = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let (_, _, loss) = read(row).expect("a whole row");
            zones.push(loss.expect("a known cause").packet.zone);
        }
        zones
    }

    fn written(zones: &[Option<Zone>]) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        // Runs and causes don't matter here.
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        connection.execute_batch(schema::TABLES).unwrap();
        connection.execute_batch(schema::LATER).unwrap();
        connection
            .execute("INSERT INTO netns VALUES (1, 1, 4026531840, 4026531840, 0, 'host', NULL, 0)", [])
            .unwrap();
        for (place, zone) in zones.iter().enumerate() {
            let netns = NetnsId::from_packed(4_026_531_840);
            let packet = Packet { netns, zone: *zone, ..Packet::default() };
            let loss = Loss::new(Timestamp::UNIX_EPOCH, Cause::Clash, packet);
            insert(&connection, (1, place), false, 1, None, &loss).unwrap();
        }
        connection
    }

    #[test]
    fn zones_are_kept_and_one_that_is_unknown_stays_so() {
        let zones = [None, Some(Zone::DEFAULT), Zone::new(2, 0), Zone::new(0, 7), Zone::new(9, 9)];
        assert_eq!(read_back(&written(&zones)), zones);
    }

    #[test]
    fn a_file_from_before_zones_is_read_and_a_zone_that_was_changed_is_noticed() {
        let connection = written(&[None]);
        connection.execute_batch("DROP TABLE event_zone").unwrap();
        assert_eq!(read_back(&connection), [None]);
        let connection = written(&[Zone::new(2, 0)]);
        connection.execute_batch("UPDATE event_zone SET original = 3").unwrap();
        let mut statement = connection.prepare(selecting(&connection).unwrap()).unwrap();
        let mut rows = statement.query([0, i64::MAX]).unwrap();
        assert!(read(rows.next().unwrap().expect("a row")).is_err());
    }
}
