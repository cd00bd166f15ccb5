//! One loss as a row, and a row as a loss.
//! What comes back is what `state` would have seen; bytes of names that are no text are the only thing that is not kept.

use std::net::IpAddr;
use std::sync::Arc;

use ctwatch_common::event::{EntryPart, IPV4, IPV6, LossEvent, OwnerPart, flag};
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::digest::Digest;
use super::open::{ReadError, wrong};
use crate::model::{Loss, NetnsId, Owner, ProcessId, Role};

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

/// Writes a loss.
pub(super) fn insert(
    connection: &Connection,
    (tick, place): (i64, usize),
    detail: bool,
    netns: i64,
    owner: Option<i64>,
    loss: &Loss,
) -> rusqlite::Result<()> {
    let Loss { time, event, entry, owner: sender, pushed_out_by, who: _, jiffies_per_s } = loss;
    let by = pushed_out_by.as_ref().filter(|by| by.flags & flag::TUPLE != 0);
    connection.prepare_cached(INSERT)?.execute(params![
        tick,
        place as i64,
        detail,
        time.as_microsecond(),
        event.at.cast_signed(),
        netns,
        event.kind,
        event.flags,
        event.proto,
        event.family,
        address(event.family, event.src),
        event.sport,
        address(event.family, event.dst),
        event.dport,
        u16::from_be_bytes(event.icmp),
        event.hook,
        text(&event.device),
        event.ifindex,
        event.length,
        event.count,
        event.max,
        owner,
        sender.pid,
        text(&sender.name),
        sender.cgroup.cast_signed(),
        address(event.family, entry.reply_src),
        entry.reply_sport,
        address(event.family, entry.reply_dst),
        entry.reply_dport,
        entry.status,
        entry.tcp_state,
        entry.left,
        jiffies_per_s,
        by.map(|by| by.proto),
        by.and_then(|by| address(by.family, by.src)),
        by.map(|by| by.sport),
        by.and_then(|by| address(by.family, by.dst)),
        by.map(|by| by.dport),
        checksum(tick, loss),
    ])?;
    Ok(())
}

/// A loss with its tick; the error names what is wrong with it.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, bool, Loss), ReadError> {
    let tick: i64 = row.get(0)?;
    let event = LossEvent {
        at: row.get::<_, i64>(3)?.cast_unsigned(),
        netns: row.get(4)?,
        count: row.get(18)?,
        max: row.get(19)?,
        ifindex: row.get(16)?,
        kind: row.get(5)?,
        proto: row.get(7)?,
        family: row.get(8)?,
        hook: row.get(14)?,
        flags: row.get(6)?,
        icmp: row.get::<_, u16>(13)?.to_be_bytes(),
        reserved: 0,
        sport: row.get(10)?,
        dport: row.get(12)?,
        length: row.get(17)?,
        src: bytes(row.get(9)?),
        dst: bytes(row.get(11)?),
        device: padded(row.get(15)?),
    };
    let entry = EntryPart {
        reply_src: bytes(row.get(24)?),
        reply_dst: bytes(row.get(26)?),
        reply_sport: row.get(25)?,
        reply_dport: row.get(27)?,
        status: row.get(28)?,
        left: row.get(30)?,
        tcp_state: row.get(29)?,
        reserved: [0; 3],
    };
    let owner = OwnerPart {
        cgroup: row.get::<_, i64>(23)?.cast_unsigned(),
        pid: row.get(21)?,
        reserved: 0,
        name: padded(row.get(22)?),
    };
    let Ok(time) = Timestamp::from_microsecond(row.get(2)?) else { return wrong("event of tick", tick) };
    let loss = Loss {
        time,
        event,
        entry,
        owner,
        pushed_out_by: pushed_out_by(row, event.netns)?,
        who: who(row)?.map(Arc::new),
        jiffies_per_s: row.get(31)?,
    };
    if checksum(tick, &loss) != row.get::<_, u32>(37)? {
        return wrong("event of tick", tick);
    }
    Ok((tick, row.get(1)?, loss))
}

fn pushed_out_by(row: &Row<'_>, netns: u32) -> rusqlite::Result<Option<LossEvent>> {
    let Some(proto) = row.get::<_, Option<u8>>(32)? else { return Ok(None) };
    let (src, dst): (Option<String>, Option<String>) = (row.get(33)?, row.get(35)?);
    let family = if src.as_deref().is_some_and(|src| src.contains(':')) { IPV6 } else { IPV4 };
    Ok(Some(LossEvent {
        netns,
        proto,
        family,
        flags: flag::TUPLE,
        sport: row.get(34)?,
        dport: row.get(36)?,
        src: bytes(src),
        dst: bytes(dst),
        ..NOTHING
    }))
}

fn who(row: &Row<'_>) -> rusqlite::Result<Option<Owner>> {
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
        process: pid.map(|pid| ProcessId { pid, name, role }),
        cgroup: row.get(41)?,
        container: row.get(42)?,
        anybodys: row.get::<_, Option<bool>>(43)?.unwrap_or_default(),
    }))
}

/// An event of which nothing is known.
pub(super) const NOTHING: LossEvent = LossEvent {
    at: 0,
    netns: 0,
    count: 0,
    max: 0,
    ifindex: 0,
    kind: 0,
    proto: 0,
    family: 0,
    hook: 0,
    flags: 0,
    icmp: [0; 2],
    reserved: 0,
    sport: 0,
    dport: 0,
    length: 0,
    src: [0; 16],
    dst: [0; 16],
    device: [0; 16],
};

fn checksum(tick: i64, loss: &Loss) -> u32 {
    let Loss { time, event, entry, owner, pushed_out_by, who, jiffies_per_s } = loss;
    let mut digest = Digest::default();
    digest.int(tick).int(time.as_microsecond()).int(event.at.cast_signed()).int(i64::from(event.netns));
    for number in [event.count, event.max, event.ifindex, event.length, entry.status, owner.pid] {
        digest.int(i64::from(number));
    }
    for number in [event.kind, event.proto, event.family, event.hook, event.flags, entry.tcp_state] {
        digest.int(i64::from(number));
    }
    for number in
        [event.sport, event.dport, u16::from_be_bytes(event.icmp), entry.reply_sport, entry.reply_dport]
    {
        digest.int(i64::from(number));
    }
    for one in [event.src, event.dst, entry.reply_src, entry.reply_dst] {
        digest.optional_text(address(event.family, one).as_deref());
    }
    digest.optional_text(text(&event.device).as_deref()).optional_text(text(&owner.name).as_deref());
    digest.int(i64::from(entry.left)).int(owner.cgroup.cast_signed());
    digest.optional(jiffies_per_s.map(i64::from));
    if let Some(by) = pushed_out_by.as_ref().filter(|by| by.flags & flag::TUPLE != 0) {
        for number in [u16::from(by.proto), by.sport, by.dport] {
            digest.int(i64::from(number));
        }
        for one in [by.src, by.dst] {
            digest.optional_text(address(by.family, one).as_deref());
        }
    }
    if let Some(who) = who {
        let Owner { process, cgroup, container, anybodys } = &**who;
        if let Some(ProcessId { pid, name, role }) = process {
            digest.int(i64::from(*pid)).optional_text(text(name).as_deref()).int(*role as i64);
        }
        digest.optional_text(cgroup.as_deref()).optional_text(container.as_deref()).int(i64::from(*anybodys));
    }
    digest.finish()
}

/// An address as text; nothing where the family says that there is none.
fn address(family: u8, bytes: [u8; 16]) -> Option<String> {
    let [a, b, c, d, ..] = bytes;
    match family {
        IPV4 => Some(IpAddr::from([a, b, c, d]).to_string()),
        IPV6 => Some(IpAddr::from(bytes).to_string()),
        _ => None,
    }
}

fn bytes(address: Option<String>) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address.and_then(|address| address.parse().ok()) {
        Some(IpAddr::V4(address)) => bytes[..4].copy_from_slice(&address.octets()),
        Some(IpAddr::V6(address)) => bytes = address.octets(),
        None => {}
    }
    bytes
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
    NetnsId(loss.event.netns)
}
