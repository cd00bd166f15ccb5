//! Censuses as rows, and rows as censuses.
//! A census has one checksum over all its rows; how many ports were left out for size is recorded.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use rusqlite::types::Null;
use rusqlite::{Connection, ToSql};

use super::columns::{
    CENSUS, CENSUS_DETAIL, CENSUS_KEY, CensusColumns, CensusDetailColumns, CensusKeyColumns,
};
use super::digest::Digest;
use super::fault::{ReadError, corrupt_row, too_much};
use super::limits;
use super::query::{each, for_each};
use super::sparse::{NamedNumbers as NamedTimeouts, Sparse, sparse_from, sparse_text};
use crate::model::{
    Census, CensusKey, FlowOffset, NetnsId, PortDetail, Protocol, StateCounts, TimeoutHistogram, TimeoutKind,
    Timeouts,
};

/// Ports kept of one census: those with the most entries.
const KEYS: usize = 2048;
/// Ports whose states and timeouts are kept individually; those of the others are summed by protocol.
const DETAILS: usize = 16;

/// Those of a file that is read, with room for other versions: there are 256 protocols.
const MOST_DETAILS: usize = 1024;

/// What those of several ticks may take at once.
const AT_ONCE: usize = 16 << 20;

/// A census and the tick that it ended in.
type OfTick = (i64, Census);

/// Writes a census.
pub(super) fn insert(
    connection: &Connection,
    tick: i64,
    netns: i64,
    census: &Census,
) -> rusqlite::Result<()> {
    let (census, omitted) = kept(census);
    let Census { netns: _, keys, details, bases, replaces_offsets, timeouts, exact } = &census;
    CensusColumns::<&dyn ToSql> {
        id: &Null,
        tick: &tick,
        netns: &netns,
        rebase: replaces_offsets,
        exact,
        timeouts: &timeouts_text(timeouts),
        omitted: &(omitted as i64),
        crc: &checksum(tick, &census, omitted),
    }
    .insert(connection)?;
    let id = connection.last_insert_rowid();
    let mut rows: BTreeMap<(Protocol, u16), (Option<CensusKey>, Option<i64>)> = BTreeMap::new();
    for key in keys {
        rows.entry((key.proto, key.port)).or_default().0 = Some(*key);
    }
    for base in bases {
        rows.entry((base.proto, base.port)).or_default().1 = Some(base.entries);
    }
    let mut statement = CensusKeyColumns::statement(connection)?;
    for ((proto, port), (key, base)) in rows {
        CensusKeyColumns::<&dyn ToSql> {
            census: &id,
            proto: &proto,
            port: &port,
            entries: &key.map(|key| key.entries),
            assured: &key.map(|key| key.assured),
            time_wait: &key.map(|key| key.time_wait),
            base: &base,
        }
        .write(&mut statement)?;
    }
    let mut statement = CensusDetailColumns::statement(connection)?;
    for PortDetail { proto, port, mix, refreshed, expiring } in details {
        CensusDetailColumns::<&dyn ToSql> {
            census: &id,
            proto,
            port: &port.map_or(-1, i64::from),
            assured: &mix.assured,
            states: &sparse_text(&states(mix)),
            lasting: &sparse_text(&refreshed.sparse().collect()),
            ending: &sparse_text(&expiring.sparse().collect()),
        }
        .write(&mut statement)?;
    }
    Ok(())
}

/// The ports with the most entries, in the order [`read`] returns them, and how many were left out.
fn kept(census: &Census) -> (Census, usize) {
    let mut census = census.clone();
    let held: HashMap<(Protocol, u16), u32> =
        census.keys.iter().map(|key| ((key.proto, key.port), key.entries)).collect();
    let weight = |proto, port| std::cmp::Reverse(held.get(&(proto, port)).copied().unwrap_or(0));
    census.bases.sort_by_key(|base| (weight(base.proto, base.port), base.proto, base.port));
    census.keys.sort_by_key(|key| (weight(key.proto, key.port), key.proto, key.port));
    let omitted = census.bases.len().max(census.keys.len()).saturating_sub(KEYS);
    census.bases.truncate(KEYS);
    census.keys.truncate(KEYS);
    sum_up_small(&mut census.details);
    (ordered(census), omitted)
}

fn sum_up_small(details: &mut Vec<PortDetail>) {
    details.sort_by_key(|detail| (detail.port.is_none(), std::cmp::Reverse(detail.mix.total())));
    let apart = details.iter().take_while(|detail| detail.port.is_some()).take(DETAILS).count();
    let mut rest: BTreeMap<Protocol, PortDetail> = BTreeMap::new();
    for detail in details.drain(apart..) {
        rest.entry(detail.proto).or_insert_with(|| PortDetail::new(detail.proto, None)).add_all(&detail);
    }
    details.extend(rest.into_values());
}

fn ordered(mut census: Census) -> Census {
    census.bases.sort_by_key(|base| (base.proto, base.port));
    census.keys.sort_by_key(|key| (key.proto, key.port));
    census.details.sort_by_key(|detail| (detail.proto, detail.port));
    census
}

/// Reads the censuses that ended in these ticks: those up to `least`, and as many of the others as there is room for at once. If
/// that is not all of them: from which tick on they are missing.
pub(super) fn read(
    connection: &Connection,
    from: i64,
    to: i64,
    least: i64,
) -> Result<(Vec<OfTick>, Option<i64>), ReadError> {
    // The netns's number follows the census's own columns.
    const NETNS_NUMBER: usize = CensusColumns::NAMES.len();
    let sql = format!(
        "SELECT {}, n.number FROM census c CROSS JOIN netns n ON n.id = c.netns WHERE c.tick BETWEEN ?1 AND ?2 \
         ORDER BY c.tick, c.id",
        CensusColumns::of("c")
    );
    let (mut found, mut held, mut missing_from) = (Vec::new(), 0, None);
    for_each(connection, &sql, [from, to], limits::TEXT, |row, values| {
        let (id, tick): (i64, i64) = (row.get(CENSUS.id)?, row.get(CENSUS.tick)?);
        if held > AT_ONCE && tick > least {
            missing_from = Some(tick);
            return Ok(ControlFlow::Break(()));
        }
        let Some(timeouts) = timeouts_from(&row.get::<_, String>(CENSUS.timeouts)?) else {
            return corrupt_row("census", id);
        };
        let mut census = Census {
            netns: NetnsId::from_packed(row.get(NETNS_NUMBER)?),
            replaces_offsets: row.get(CENSUS.rebase)?,
            exact: row.get(CENSUS.exact)?,
            timeouts,
            ..Census::default()
        };
        read_keys(connection, id, &mut census)?;
        let are_details = read_details(connection, id, &mut census)?;
        if !are_details || !fits(&census) {
            return corrupt_row("census", id);
        }
        held += values
            + size_of::<Census>()
            + census.keys.len() * size_of::<CensusKey>()
            + census.bases.len() * size_of::<FlowOffset>()
            + census.details.len() * size_of::<PortDetail>();
        if held > limits::HELD {
            return too_much("bytes of censuses at once", limits::HELD);
        }
        let census = ordered(census);
        let omitted = row.get::<_, u32>(CENSUS.omitted)? as usize;
        let holds = checksum(tick, &census, omitted) == row.get::<_, u32>(CENSUS.crc)?;
        if !holds {
            return corrupt_row("census", id);
        }
        found.push((tick, census));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((found, missing_from))
}

/// Whether a table can have had so many entries: an int counts them. So no sum of parts overflows.
fn fits(census: &Census) -> bool {
    let Census { keys, details, bases, .. } = census;
    let of =
        |histogram: &TimeoutHistogram| histogram.sparse().map(|(_, entries)| u64::from(entries)).sum::<u64>();
    let parts = [
        keys.iter().map(|key| u64::from(key.entries)).sum::<u64>(),
        keys.iter().map(|key| u64::from(key.assured)).sum(),
        keys.iter().map(|key| u64::from(key.time_wait)).sum(),
        details.iter().map(|one| one.mix.tcp.iter().map(|entries| u64::from(*entries)).sum::<u64>()).sum(),
        details.iter().map(|one| u64::from(one.mix.assured)).sum(),
        details.iter().map(|one| of(&one.refreshed) + of(&one.expiring)).sum(),
    ];
    parts.into_iter().all(|sum| sum <= u64::from(u32::MAX))
        && bases.iter().all(|one| limits::is_count(one.entries))
}

fn read_keys(connection: &Connection, id: i64, census: &mut Census) -> Result<(), ReadError> {
    let sql = format!("{} WHERE census = ?1", CensusKeyColumns::SELECT);
    each(connection, &sql, [id], |row| {
        let (proto, port) = (row.get(CENSUS_KEY.proto)?, row.get(CENSUS_KEY.port)?);
        if let Some(entries) = row.get(CENSUS_KEY.entries)? {
            let (assured, time_wait) = (row.get(CENSUS_KEY.assured)?, row.get(CENSUS_KEY.time_wait)?);
            census.keys.push(CensusKey { proto, port, entries, assured, time_wait });
        }
        if let Some(entries) = row.get(CENSUS_KEY.base)? {
            census.bases.push(FlowOffset { proto, port, entries });
        }
        Ok(())
    })?;
    Ok(())
}

/// Whether all of them are such.
fn read_details(connection: &Connection, id: i64, census: &mut Census) -> Result<bool, ReadError> {
    let sql = format!("{} WHERE census = ?1", CensusDetailColumns::SELECT);
    let read = each(connection, &sql, [id], |row| {
        if census.details.len() >= MOST_DETAILS {
            return too_much("ports with details in a census", MOST_DETAILS);
        }
        let port = u16::try_from(row.get::<_, i64>(CENSUS_DETAIL.port)?).ok();
        let mut detail = PortDetail::new(row.get(CENSUS_DETAIL.proto)?, port);
        detail.mix.assured = row.get(CENSUS_DETAIL.assured)?;
        let Some(states) = sparse_from(&row.get::<_, String>(CENSUS_DETAIL.states)?) else {
            return Ok(false);
        };
        for (state, entries) in states {
            let Some(place) = detail.mix.tcp.get_mut(state) else { return Ok(false) };
            *place = entries;
        }
        let remaining = |text: String| TimeoutHistogram::from_sparse(&sparse_from(&text)?);
        match (remaining(row.get(CENSUS_DETAIL.lasting)?), remaining(row.get(CENSUS_DETAIL.ending)?)) {
            (Some(lasting), Some(ending)) => (detail.refreshed, detail.expiring) = (lasting, ending),
            _ => return Ok(false),
        }
        census.details.push(detail);
        Ok(true)
    })?;
    Ok(!read.contains(&false))
}

fn checksum(tick: i64, census: &Census, omitted: usize) -> u32 {
    let Census { netns, keys, details, bases, replaces_offsets, timeouts, exact } = census;
    let mut digest = Digest::default();
    digest
        .int(tick)
        .int(i64::from(netns.packed()))
        .int(i64::from(*replaces_offsets))
        .int(i64::from(*exact))
        .int(omitted as i64);
    digest.text(&timeouts_text(timeouts));
    for CensusKey { proto, port, entries, assured, time_wait } in keys {
        for number in [u32::from(proto.0), u32::from(*port), *entries, *assured, *time_wait] {
            digest.int(i64::from(number));
        }
    }
    for FlowOffset { proto, port, entries } in bases {
        digest.int(i64::from(proto.0)).int(i64::from(*port)).int(*entries);
    }
    for PortDetail { proto, port, mix, refreshed, expiring } in details {
        digest.int(i64::from(proto.0)).optional(port.map(i64::from)).int(i64::from(mix.assured));
        for part in [states(mix), refreshed.sparse().collect(), expiring.sparse().collect()] {
            digest.text(&sparse_text(&part));
        }
    }
    digest.finish()
}

fn states(mix: &StateCounts) -> Sparse {
    mix.tcp.iter().copied().enumerate().filter(|(_, entries)| *entries > 0).collect()
}

/// The timeouts that are kept, by the names that files have for them.
const TIMEOUTS: [(&str, TimeoutKind); 8] = [
    ("tcp_syn_sent", TimeoutKind::SynSent),
    ("tcp_established", TimeoutKind::Established),
    ("tcp_time_wait", TimeoutKind::TimeWait),
    ("udp", TimeoutKind::Udp),
    ("udp_stream", TimeoutKind::UdpStream),
    ("icmp", TimeoutKind::Icmp),
    ("icmpv6", TimeoutKind::Icmpv6),
    ("generic", TimeoutKind::Generic),
];

fn timeouts_text(timeouts: &Timeouts) -> String {
    let known: NamedTimeouts = TIMEOUTS
        .into_iter()
        .filter_map(|(name, kind)| Some((name.to_owned(), timeouts.get(kind)?)))
        .collect();
    serde_json::to_string(&known).unwrap_or_default()
}

fn timeouts_from(text: &str) -> Option<Timeouts> {
    let named: NamedTimeouts = serde_json::from_str(text).ok()?;
    Some(TIMEOUTS.into_iter().filter_map(|(name, kind)| Some((kind, *named.get(name)?))).collect())
}
