//! Tables read entry by entry as rows, and rows as them: what `advise` reckons with.
//! One has a checksum over all its rows.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, params};

use super::digest::Digest;
use super::open::{ReadError, wrong};
use super::rows::{SnapshotReason, StoredListing};
use super::sparse::{NamedNumbers as NamedTimeouts, sparse_from, sparse_text};
use crate::listing::{Listing as Listed, ServiceEntries, TimeoutBucket};
use crate::model::{Direction, NetnsId, TimeoutHistogram, TimeoutKind, Timeouts, WallMono};

/// Writes a listing.
pub(super) fn insert(
    connection: &Connection,
    run: i64,
    netns: i64,
    listing: &StoredListing,
) -> rusqlite::Result<()> {
    let StoredListing { netns: _, occasion, at, took_us, entries, duplicates, interrupted, census } = listing;
    connection.execute(
        "INSERT INTO listing (run, netns, reason, wall_us, mono_us, took_us, entries, duplicates, interrupted, look_s, \
         timeouts, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            run,
            netns,
            occasion.name(),
            at.time.as_microsecond(),
            at.mono_us,
            took_us,
            entries.cast_signed(),
            duplicates.cast_signed(),
            interrupted,
            census.look_s(),
            phase_timeouts(census),
            checksum(listing),
        ],
    )?;
    let id = connection.last_insert_rowid();
    let mut statement = connection
        .prepare_cached("INSERT INTO listing_phase VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?;
    for ((proto, port, direction), collected) in census.services() {
        for (phase, seen) in &collected.phases {
            let TimeoutBucket { timeout, entries, idle, entered } = seen;
            let idle = sparse_text(&idle.sparse().collect());
            let (direction, phase) = (direction.name(), phase.name());
            let pairs = collected.pairs();
            statement.execute(params![
                id, proto, port, direction, phase, timeout, entries, entered, idle, pairs
            ])?;
        }
    }
    Ok(())
}

/// Reads the listings of a run; the error names what is wrong.
pub(super) fn read(connection: &Connection, run: i64) -> Result<Vec<StoredListing>, ReadError> {
    let mut statement = connection.prepare_cached(
        "SELECT l.id, n.number, l.reason, l.wall_us, l.mono_us, l.took_us, l.entries, l.duplicates, l.interrupted, \
         l.look_s, l.timeouts, l.crc FROM listing l JOIN netns n ON n.id = l.netns WHERE l.run = ?1 ORDER BY l.id",
    )?;
    let mut rows = statement.query([run])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let (Some(occasion), Some(at), Some(timeouts)) = (
            SnapshotReason::from_name(&row.get::<_, String>(2)?),
            WallMono::from_columns(row.get(3)?, row.get(4)?),
            phase_timeouts_from(&row.get::<_, String>(10)?),
        ) else {
            return wrong("listing", id);
        };
        let Some(services) = read_services(connection, id)? else {
            return wrong("listing", id);
        };
        let listing = StoredListing {
            netns: NetnsId(row.get(1)?),
            occasion,
            at,
            took_us: row.get(5)?,
            entries: row.get::<_, i64>(6)?.cast_unsigned(),
            duplicates: row.get::<_, i64>(7)?.cast_unsigned(),
            interrupted: row.get(8)?,
            census: Listed::restored(timeouts, row.get(9)?, services),
        };
        if checksum(&listing) != row.get::<_, u32>(11)? {
            return wrong("listing", id);
        }
        found.push(listing);
    }
    Ok(found)
}

/// Phases of a service, and its pairs of addresses.
type Kept = (BTreeMap<TimeoutKind, TimeoutBucket>, Option<u32>);

type Services = HashMap<(u8, u16, Direction), ServiceEntries>;

fn read_services(connection: &Connection, id: i64) -> rusqlite::Result<Option<Services>> {
    let mut statement = connection.prepare_cached(
        "SELECT proto, port, direction, phase, timeout, entries, entered, idle, pairs FROM listing_phase \
         WHERE listing = ?1",
    )?;
    let mut rows = statement.query([id])?;
    let mut phases: HashMap<(u8, u16, Direction), Kept> = HashMap::new();
    while let Some(row) = rows.next()? {
        let (Some(direction), Some(phase), Some(idle)) = (
            Direction::from_name(&row.get::<_, String>(2)?),
            TimeoutKind::from_name(&row.get::<_, String>(3)?),
            sparse_from(&row.get::<_, String>(7)?).and_then(|sparse| TimeoutHistogram::from_sparse(&sparse)),
        ) else {
            return Ok(None);
        };
        let seen = TimeoutBucket { timeout: row.get(4)?, entries: row.get(5)?, entered: row.get(6)?, idle };
        let service = phases.entry((row.get(0)?, row.get(1)?, direction)).or_default();
        service.0.insert(phase, seen);
        service.1 = row.get(8)?;
    }
    let restored = |(key, (phases, pairs))| (key, ServiceEntries::restored(phases, pairs));
    Ok(Some(phases.into_iter().map(restored).collect()))
}

fn checksum(listing: &StoredListing) -> u32 {
    let StoredListing { netns, occasion, at, took_us, entries, duplicates, interrupted, census } = listing;
    let mut digest = Digest::default();
    digest.int(i64::from(netns.0)).text(occasion.name()).int(at.time.as_microsecond()).int(at.mono_us);
    digest.int(*took_us).int(entries.cast_signed()).int(duplicates.cast_signed());
    digest.int(i64::from(*interrupted)).int(i64::from(census.look_s())).text(&phase_timeouts(census));
    let mut services: Vec<_> = census.services().collect();
    services.sort_by_key(|(key, _)| **key);
    for ((proto, port, direction), collected) in services {
        for (phase, TimeoutBucket { timeout, entries, idle, entered }) in &collected.phases {
            digest.int(i64::from(*proto)).int(i64::from(*port)).text(direction.name()).text(phase.name());
            for number in [timeout, entries, entered] {
                digest.int(i64::from(*number));
            }
            digest.text(&sparse_text(&idle.sparse().collect())).optional(collected.pairs().map(i64::from));
        }
    }
    digest.finish()
}

fn phase_timeouts(census: &Listed) -> String {
    let named: NamedTimeouts =
        census.timeouts().iter().map(|(kind, seconds)| (kind.name().to_owned(), seconds)).collect();
    serde_json::to_string(&named).unwrap_or_default()
}

fn phase_timeouts_from(text: &str) -> Option<Timeouts> {
    let named: NamedTimeouts = serde_json::from_str(text).ok()?;
    named.into_iter().map(|(name, seconds)| Some((TimeoutKind::from_name(&name)?, seconds))).collect()
}
