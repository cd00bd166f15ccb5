//! One loss as a row, and a row as a loss.
//! What is read back is what `state` would have seen; only bytes of names that aren't valid text get lost.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ctwatch_common::event::{EntryPart, IPV4, IPV6, LossEvent, OwnerPart, flag};
use jiff::Timestamp;
use rusqlite::{Connection, Row, ToSql};

use super::columns::{EVENT, EventColumns, OwnerColumns};
use super::digest::Digest;
use super::open::{ReadError, corrupt_row};
use crate::model::{Loss, NetnsId, Owner, ProcessId, Role};

/// Losses with their netns and owner.
pub(super) static SELECT: LazyLock<String> = LazyLock::new(|| {
    let (event, owner) = (EventColumns::of("e"), OwnerColumns::of("o"));
    format!(
        "SELECT {event}, {owner}, n.number FROM event e JOIN netns n ON n.id = e.netns \
         LEFT JOIN owner o ON o.id = e.owner WHERE e.tick BETWEEN ?1 AND ?2 ORDER BY e.tick, e.place"
    )
});

/// Positions of the owner's columns in a row of [`SELECT`].
const OWNER: OwnerColumns<usize> = OwnerColumns::starting_at(EventColumns::NAMES.len());
/// Position of the netns's number in such a row.
const NETNS_NUMBER: usize = EventColumns::NAMES.len() + OwnerColumns::NAMES.len();

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
    EventColumns::<&dyn ToSql> {
        tick: &tick,
        place: &(place as i64),
        detail: &detail,
        wall_us: &time.as_microsecond(),
        at_ns: &event.at.cast_signed(),
        netns: &netns,
        cause: &event.kind,
        flags: &event.flags,
        proto: &event.proto,
        family: &event.family,
        src: &address(event.family, event.src),
        sport: &event.sport,
        dst: &address(event.family, event.dst),
        dport: &event.dport,
        icmp: &u16::from_be_bytes(event.icmp),
        hook: &event.hook,
        device: &text(&event.device),
        ifindex: &event.ifindex,
        length: &event.length,
        count: &event.count,
        max: &event.max,
        owner: &owner,
        sender_pid: &sender.pid,
        sender_name: &text(&sender.name),
        sender_cgroup: &sender.cgroup.cast_signed(),
        reply_src: &address(event.family, entry.reply_src),
        reply_sport: &entry.reply_sport,
        reply_dst: &address(event.family, entry.reply_dst),
        reply_dport: &entry.reply_dport,
        status: &entry.status,
        tcp_state: &entry.tcp_state,
        jiffies_left: &entry.left,
        jiffies_per_s: &jiffies_per_s,
        by_proto: &by.map(|by| by.proto),
        by_src: &by.and_then(|by| address(by.family, by.src)),
        by_sport: &by.map(|by| by.sport),
        by_dst: &by.and_then(|by| address(by.family, by.dst)),
        by_dport: &by.map(|by| by.dport),
        crc: &checksum(tick, loss),
    }
    .insert(connection)
}

/// Reads a loss, its tick and whether it is detail.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, bool, Loss), ReadError> {
    let tick: i64 = row.get(EVENT.tick)?;
    let event = LossEvent {
        at: row.get::<_, i64>(EVENT.at_ns)?.cast_unsigned(),
        netns: row.get(NETNS_NUMBER)?,
        count: row.get(EVENT.count)?,
        max: row.get(EVENT.max)?,
        ifindex: row.get(EVENT.ifindex)?,
        kind: row.get(EVENT.cause)?,
        proto: row.get(EVENT.proto)?,
        family: row.get(EVENT.family)?,
        hook: row.get(EVENT.hook)?,
        flags: row.get(EVENT.flags)?,
        icmp: row.get::<_, u16>(EVENT.icmp)?.to_be_bytes(),
        reserved: 0,
        sport: row.get(EVENT.sport)?,
        dport: row.get(EVENT.dport)?,
        length: row.get(EVENT.length)?,
        src: bytes(row.get(EVENT.src)?),
        dst: bytes(row.get(EVENT.dst)?),
        device: padded(row.get(EVENT.device)?),
    };
    let entry = EntryPart {
        reply_src: bytes(row.get(EVENT.reply_src)?),
        reply_dst: bytes(row.get(EVENT.reply_dst)?),
        reply_sport: row.get(EVENT.reply_sport)?,
        reply_dport: row.get(EVENT.reply_dport)?,
        status: row.get(EVENT.status)?,
        left: row.get(EVENT.jiffies_left)?,
        tcp_state: row.get(EVENT.tcp_state)?,
        reserved: [0; 3],
    };
    let owner = OwnerPart {
        cgroup: row.get::<_, i64>(EVENT.sender_cgroup)?.cast_unsigned(),
        pid: row.get(EVENT.sender_pid)?,
        reserved: 0,
        name: padded(row.get(EVENT.sender_name)?),
    };
    let Ok(time) = Timestamp::from_microsecond(row.get(EVENT.wall_us)?) else {
        return corrupt_row("event of tick", tick);
    };
    let loss = Loss {
        time,
        event,
        entry,
        owner,
        pushed_out_by: pushed_out_by(row, event.netns)?,
        who: who(row)?.map(Arc::new),
        jiffies_per_s: row.get(EVENT.jiffies_per_s)?,
    };
    if checksum(tick, &loss) != row.get::<_, u32>(EVENT.crc)? {
        return corrupt_row("event of tick", tick);
    }
    Ok((tick, row.get(EVENT.detail)?, loss))
}

fn pushed_out_by(row: &Row<'_>, netns: u32) -> rusqlite::Result<Option<LossEvent>> {
    let Some(proto) = row.get::<_, Option<u8>>(EVENT.by_proto)? else { return Ok(None) };
    let (src, dst): (Option<String>, Option<String>) = (row.get(EVENT.by_src)?, row.get(EVENT.by_dst)?);
    let family = if src.as_deref().is_some_and(|src| src.contains(':')) { IPV6 } else { IPV4 };
    Ok(Some(LossEvent {
        netns,
        proto,
        family,
        flags: flag::TUPLE,
        sport: row.get(EVENT.by_sport)?,
        dport: row.get(EVENT.by_dport)?,
        src: bytes(src),
        dst: bytes(dst),
        ..NOTHING
    }))
}

fn who(row: &Row<'_>) -> rusqlite::Result<Option<Owner>> {
    if row.get::<_, Option<i64>>(EVENT.owner)?.is_none() {
        return Ok(None);
    }
    let role = match row.get::<_, Option<String>>(OWNER.role)?.as_deref() {
        Some("listener") => Role::Listener,
        _ => Role::Sender,
    };
    let pid: Option<u32> = row.get(OWNER.pid)?;
    let name = padded(row.get(OWNER.name)?);
    Ok(Some(Owner {
        process: pid.map(|pid| ProcessId { pid, name, role }),
        cgroup: row.get(OWNER.cgroup)?,
        container: row.get(OWNER.container)?,
        anybodys: row.get::<_, Option<bool>>(OWNER.anybodys)?.unwrap_or_default(),
    }))
}

/// An event with nothing known.
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

/// An address as text; `None` if the family says there is none.
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

/// A name without trailing NULs; `None` if it is empty.
pub(super) fn text(name: &[u8; 16]) -> Option<String> {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    // One character per byte, so that the name keeps its length: a replacement character would take three bytes.
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
