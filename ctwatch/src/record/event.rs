//! One loss as a row, and a row as a loss.
//! What comes back is what `state` would have seen; bytes of names that are no text are the only thing that is not kept.

use std::net::IpAddr;
use std::sync::Arc;

use ctwatch_common::Cause;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::digest::Digest;
use super::open::{ReadError, wrong};
use crate::model::{
    Device, EntryState, Flow, Hook, Loss, Name, NetnsId, Owner, Packet, ProcessId, Protocol, Role, Sender,
    Tuple,
};

/// In the order of [`insert`].
const INSERT: &str = "INSERT INTO event (tick, place, detail, wall_us, at_ns, netns, cause, flags, proto, family, src, \
    sport, dst, dport, icmp, hook, device, ifindex, length, count, max, owner, sender_pid, sender_name, sender_cgroup, \
    reply_src, reply_sport, reply_dst, reply_dport, status, tcp_state, jiffies_left, jiffies_per_s, by_proto, by_src, \
    by_sport, by_dst, by_dport, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, \
    ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32, ?33, ?34, ?35, ?36, ?37, ?38, ?39)";

/// In the order of [`read`].
pub(super) const SELECT: &str = "SELECT e.tick, e.detail, e.wall_us, e.at_ns, n.number, e.cause, e.flags, e.proto, \
    e.family, e.src, e.sport, e.dst, e.dport, e.icmp, e.hook, e.device, e.ifindex, e.length, e.count, e.max, e.owner, \
    e.sender_pid, e.sender_name, e.sender_cgroup, e.reply_src, e.reply_sport, e.reply_dst, e.reply_dport, e.status, \
    e.tcp_state, e.jiffies_left, e.jiffies_per_s, e.by_proto, e.by_src, e.by_sport, e.by_dst, e.by_dport, e.crc, \
    o.pid, o.name, o.role, o.cgroup, o.container, o.anybodys \
    FROM event e JOIN netns n ON n.id = e.netns LEFT JOIN owner o ON o.id = e.owner \
    WHERE e.tick BETWEEN ?1 AND ?2 ORDER BY e.tick, e.place";

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
        let Packet { at_ns, netns, proto, tuple, icmp, is_loopback, hook, device, count, max, length } =
            packet;
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let address = |pick: fn(&Tuple) -> IpAddr, tuple: &Option<Tuple>| {
            tuple.as_ref().map(|one| pick(one).to_string())
        };
        let reply = entry.and_then(|entry| entry.reply);
        // An entry whose packet has no tuple still has the family of its reply.
        let family = tuple.or(reply).map_or(0, |tuple| if tuple.src.is_ipv4() { 4 } else { 6 });
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
                | bit(sender.is_some(), flag::OWNER),
            proto: proto.unwrap_or_default().0,
            family,
            src: address(|tuple| tuple.src, tuple),
            sport: tuple.map_or(0, |tuple| tuple.sport),
            dst: address(|tuple| tuple.dst, tuple),
            dport: tuple.map_or(0, |tuple| tuple.dport),
            icmp: u16::from_be_bytes(*icmp),
            hook: hook.map_or(NO_HOOK, |hook| hook as u8),
            device: device.name.and_then(|name| text(&name.padded())),
            ifindex: device.ifindex,
            length: *length,
            count: count.unwrap_or(0),
            max: max.unwrap_or(0),
            sender_pid: sender.map_or(0, |sender| sender.pid),
            sender_name: sender.and_then(|sender| text(&sender.name.padded())),
            sender_cgroup: sender.map_or(0, |sender| sender.cgroup),
            reply_src: address(|tuple| tuple.src, &reply),
            reply_sport: reply.map_or(0, |tuple| tuple.sport),
            reply_dst: address(|tuple| tuple.dst, &reply),
            reply_dport: reply.map_or(0, |tuple| tuple.dport),
            status: entry.map_or(0, |entry| entry.status),
            tcp_state: entry.and_then(|entry| entry.tcp_state).unwrap_or(NO_TCP_STATE),
            jiffies_left: entry.map_or(0, |entry| entry.left_jiffies),
            jiffies_per_s: *jiffies_per_s,
            by: pushed_out_by.map(|Flow { proto, tuple }| FlowColumns {
                proto: proto.0,
                src: Some(tuple.src.to_string()),
                sport: tuple.sport,
                dst: Some(tuple.dst.to_string()),
                dport: tuple.dport,
            }),
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
                name: self.device.as_deref().map(|name| Name::new(name.as_bytes())),
                ifindex: self.ifindex,
                is_output: has(flag::OUT),
            },
            count: has(flag::COUNT).then_some(self.count),
            max: has(flag::MAX).then_some(self.max),
            length: self.length,
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
            name: Name::new(self.sender_name.as_deref().unwrap_or_default().as_bytes()),
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
                let name = text(&name.padded());
                digest.int(i64::from(*pid)).optional_text(name.as_deref()).int(*role as i64);
            }
            digest.optional_text(cgroup.as_deref()).optional_text(container.as_deref());
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
    connection.prepare_cached(INSERT)?.execute(params![
        tick,
        place as i64,
        detail,
        loss.time.as_microsecond(),
        row.at_ns.cast_signed(),
        netns,
        row.cause,
        row.flags,
        row.proto,
        row.family,
        row.src,
        row.sport,
        row.dst,
        row.dport,
        row.icmp,
        row.hook,
        row.device,
        row.ifindex,
        row.length,
        row.count,
        row.max,
        owner,
        row.sender_pid,
        row.sender_name,
        row.sender_cgroup.cast_signed(),
        row.reply_src,
        row.reply_sport,
        row.reply_dst,
        row.reply_dport,
        row.status,
        row.tcp_state,
        row.jiffies_left,
        row.jiffies_per_s,
        by.map(|by| by.proto),
        by.map(|by| &by.src),
        by.map(|by| by.sport),
        by.map(|by| &by.dst),
        by.map(|by| by.dport),
        row.checksum(tick, loss.time, loss.owner.as_deref()),
    ])?;
    Ok(())
}

/// A loss with its tick; the error names what is wrong with it. No loss where only a later version knows the cause.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, bool, Option<Loss>), ReadError> {
    let tick: i64 = row.get(0)?;
    let columns = EventRow {
        at_ns: row.get::<_, i64>(3)?.cast_unsigned(),
        netns: row.get(4)?,
        cause: row.get(5)?,
        flags: row.get(6)?,
        proto: row.get(7)?,
        family: row.get(8)?,
        src: row.get(9)?,
        sport: row.get(10)?,
        dst: row.get(11)?,
        dport: row.get(12)?,
        icmp: row.get(13)?,
        hook: row.get(14)?,
        device: row.get(15)?,
        ifindex: row.get(16)?,
        length: row.get(17)?,
        count: row.get(18)?,
        max: row.get(19)?,
        sender_pid: row.get(21)?,
        sender_name: row.get(22)?,
        sender_cgroup: row.get::<_, i64>(23)?.cast_unsigned(),
        reply_src: row.get(24)?,
        reply_sport: row.get(25)?,
        reply_dst: row.get(26)?,
        reply_dport: row.get(27)?,
        status: row.get(28)?,
        tcp_state: row.get(29)?,
        jiffies_left: row.get(30)?,
        jiffies_per_s: row.get(31)?,
        by: pushed_out_by(row)?,
    };
    let Ok(time) = Timestamp::from_microsecond(row.get(2)?) else { return wrong("event of tick", tick) };
    let owner = owner(row)?.map(Arc::new);
    if columns.checksum(tick, time, owner.as_deref()) != row.get::<_, u32>(37)? {
        return wrong("event of tick", tick);
    }
    Ok((tick, row.get(1)?, columns.loss(time, owner)))
}

fn pushed_out_by(row: &Row<'_>) -> rusqlite::Result<Option<FlowColumns>> {
    let Some(proto) = row.get(32)? else { return Ok(None) };
    let (src, sport, dst, dport) = (row.get(33)?, row.get(34)?, row.get(35)?, row.get(36)?);
    Ok(Some(FlowColumns { proto, src, sport, dst, dport }))
}

fn owner(row: &Row<'_>) -> rusqlite::Result<Option<Owner>> {
    if row.get::<_, Option<i64>>(20)?.is_none() {
        return Ok(None);
    }
    let role = match row.get::<_, Option<String>>(40)?.as_deref() {
        Some("listener") => Role::Listener,
        _ => Role::Sender,
    };
    let pid: Option<u32> = row.get(38)?;
    let name = padded(row.get(39)?);
    Ok(Some(Owner {
        process: pid.map(|pid| ProcessId { pid, name: Name::from_padded(name), role }),
        cgroup: row.get(41)?,
        container: row.get(42)?,
        unattributable: row.get::<_, Option<bool>>(43)?.unwrap_or_default(),
    }))
}

/// A name without the NULs behind it; nothing if it is empty.
pub(super) fn text(name: &[u8; 16]) -> Option<String> {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    // As long as the bytes are, so that it comes back as it went: no replacement characters of three bytes.
    let plain = |byte: &u8| if byte.is_ascii() { char::from(*byte) } else { '?' };
    let text = str::from_utf8(name).map_or_else(|_| name.iter().map(plain).collect(), str::to_owned);
    (!name.is_empty()).then_some(text)
}

fn padded(name: Option<String>) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, of) in bytes.iter_mut().zip(name.unwrap_or_default().bytes()) {
        *byte = of;
    }
    bytes
}

/// Which netns a loss happened in.
pub(super) const fn netns_of(loss: &Loss) -> NetnsId {
    loss.packet.netns
}
