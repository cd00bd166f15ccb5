//! Tables listed entry by entry, as rows and back: what `advise` calculates with.
//! A listing has one checksum over all its rows.

use std::collections::{BTreeMap, HashMap};

use rusqlite::types::Null;
use rusqlite::{Connection, ToSql};

use super::columns::{LISTING, LISTING_PHASE, ListingColumns, ListingPhaseColumns};
use super::digest::Digest;
use super::fault::{ReadError, corrupt_row, too_much};
use super::limits;
use super::query::{RowSpan, each};
use super::rows::{SnapshotReason, StoredListing};
use super::sparse::{NamedNumbers as NamedTimeouts, sparse_from, sparse_text};
use crate::listing::{Listing, ServiceEntries, TimeoutBucket};
use crate::model::{Direction, NetnsId, Protocol, TimeoutHistogram, TimeoutKind, Timeouts, WallMono};

/// Listings of tables in trouble that are kept, of all namespaces: the latest. There is no end to trouble.
const CHANGED: i64 = 128;

/// Writes a listing.
pub(super) fn insert(
    connection: &Connection,
    run: i64,
    netns: i64,
    listing: &StoredListing,
) -> rusqlite::Result<()> {
    let StoredListing { netns: _, reason, at, took_us, entries, duplicates, interrupted, census } = listing;
    if *reason == SnapshotReason::Changed {
        let others = "(SELECT id FROM listing WHERE reason = 'changed' ORDER BY id DESC LIMIT -1 OFFSET ?1)";
        connection.execute(&format!("DELETE FROM listing_phase WHERE listing IN {others}"), [CHANGED - 1])?;
        connection.execute(&format!("DELETE FROM listing WHERE id IN {others}"), [CHANGED - 1])?;
    }
    ListingColumns::<&dyn ToSql> {
        id: &Null,
        run: &run,
        netns: &netns,
        reason: &reason.name(),
        wall_us: &at.time.as_microsecond(),
        mono_us: &at.mono_us,
        took_us,
        entries: &entries.cast_signed(),
        duplicates: &duplicates.cast_signed(),
        interrupted,
        look_s: &census.look_s(),
        timeouts: &timeouts_text(census),
        crc: &checksum(listing),
    }
    .insert(connection)?;
    let id = connection.last_insert_rowid();
    let mut statement = ListingPhaseColumns::statement(connection)?;
    for ((proto, port, direction), service) in census.services() {
        for (phase, TimeoutBucket { timeout, entries, idle, entered }) in &service.phases {
            ListingPhaseColumns::<&dyn ToSql> {
                listing: &id,
                proto,
                port,
                direction: &direction.name(),
                phase: &phase.name(),
                timeout,
                entries,
                entered,
                idle: &sparse_text(&idle.sparse().collect()),
                pairs: &service.pairs(),
            }
            .write(&mut statement)?;
        }
    }
    Ok(())
}

/// Reads the listings of a run.
pub(super) fn read(
    connection: &Connection,
    run: i64,
    [first, last]: RowSpan,
) -> Result<Vec<StoredListing>, ReadError> {
    let mut held = 0;
    // The netns's number follows the listing's own columns.
    const NETNS_NUMBER: usize = ListingColumns::NAMES.len();
    let sql = format!(
        "SELECT {}, n.number FROM listing l CROSS JOIN netns n ON n.id = l.netns WHERE l.run = ?1 \
         AND l.id BETWEEN ?2 AND ?3 ORDER BY l.id",
        ListingColumns::of("l")
    );
    each(connection, &sql, [run, first, last], |row| {
        let id: i64 = row.get(LISTING.id)?;
        let (Some(reason), Some(at), Some(timeouts)) = (
            SnapshotReason::from_name(&row.get::<_, String>(LISTING.reason)?),
            WallMono::from_columns(row.get(LISTING.wall_us)?, row.get(LISTING.mono_us)?),
            timeouts_from(&row.get::<_, String>(LISTING.timeouts)?),
        ) else {
            return corrupt_row("listing", id);
        };
        let Some(services) = read_services(connection, id, &mut held)? else {
            return corrupt_row("listing", id);
        };
        let listing = StoredListing {
            netns: NetnsId::from_packed(row.get(NETNS_NUMBER)?),
            reason,
            at,
            took_us: row.get(LISTING.took_us)?,
            entries: u64::from(row.get::<_, u32>(LISTING.entries)?),
            duplicates: u64::from(row.get::<_, u32>(LISTING.duplicates)?),
            interrupted: row.get(LISTING.interrupted)?,
            census: Listing::restored(timeouts, row.get(LISTING.look_s)?, services),
        };
        let holds =
            checksum(&listing) == row.get::<_, u32>(LISTING.crc)? && limits::is_clock(listing.took_us);
        if holds { Ok(listing) } else { corrupt_row("listing", id) }
    })
}

/// A service's entries by kind of timeout, and its number of address pairs.
type ByTimeout = (BTreeMap<TimeoutKind, TimeoutBucket>, Option<u32>);

type Services = HashMap<(Protocol, u16, Direction), ServiceEntries>;

/// Nothing if one of them is none.
fn read_services(connection: &Connection, id: i64, held: &mut usize) -> Result<Option<Services>, ReadError> {
    let sql = format!("{} WHERE listing = ?1", ListingPhaseColumns::SELECT);
    let mut phases: HashMap<(Protocol, u16, Direction), ByTimeout> = HashMap::new();
    let mut all = 0_u64;
    let read = each(connection, &sql, [id], |row| {
        let sparse = sparse_from(&row.get::<_, String>(LISTING_PHASE.idle)?);
        let (Some(direction), Some(phase), Some(idle)) = (
            Direction::from_name(&row.get::<_, String>(LISTING_PHASE.direction)?),
            TimeoutKind::from_name(&row.get::<_, String>(LISTING_PHASE.phase)?),
            sparse.and_then(|sparse| TimeoutHistogram::from_sparse(&sparse)),
        ) else {
            return Ok(false);
        };
        let bucket = TimeoutBucket {
            timeout: row.get(LISTING_PHASE.timeout)?,
            entries: row.get(LISTING_PHASE.entries)?,
            entered: row.get(LISTING_PHASE.entered)?,
            idle,
        };
        // A table has no more entries than an int can count.
        let idle_entries: u64 = bucket.idle.sparse().map(|(_, entries)| u64::from(entries)).sum();
        all += u64::from(bucket.entries).max(u64::from(bucket.entered)).max(idle_entries);
        *held += size_of::<TimeoutBucket>() + size_of::<ServiceEntries>();
        if *held > limits::HELD {
            return too_much("bytes of table listings at once", limits::HELD);
        }
        let key = (row.get(LISTING_PHASE.proto)?, row.get(LISTING_PHASE.port)?, direction);
        let service = phases.entry(key).or_default();
        service.0.insert(phase, bucket);
        service.1 = row.get(LISTING_PHASE.pairs)?;
        Ok(true)
    })?;
    if read.contains(&false) || all > u64::from(u32::MAX) {
        return Ok(None);
    }
    let restored = |(key, (phases, pairs))| (key, ServiceEntries::restored(phases, pairs));
    Ok(Some(phases.into_iter().map(restored).collect()))
}

fn checksum(listing: &StoredListing) -> u32 {
    let StoredListing { netns, reason, at, took_us, entries, duplicates, interrupted, census } = listing;
    let mut digest = Digest::default();
    digest.int(i64::from(netns.packed())).text(reason.name()).int(at.time.as_microsecond()).int(at.mono_us);
    digest.int(*took_us).int(entries.cast_signed()).int(duplicates.cast_signed());
    digest.int(i64::from(*interrupted)).int(i64::from(census.look_s())).text(&timeouts_text(census));
    let mut services: Vec<_> = census.services().collect();
    services.sort_by_key(|(key, _)| **key);
    for ((proto, port, direction), collected) in services {
        for (phase, TimeoutBucket { timeout, entries, idle, entered }) in &collected.phases {
            digest.int(i64::from(proto.0)).int(i64::from(*port)).text(direction.name()).text(phase.name());
            for number in [timeout, entries, entered] {
                digest.int(i64::from(*number));
            }
            digest.text(&sparse_text(&idle.sparse().collect())).optional(collected.pairs().map(i64::from));
        }
    }
    digest.finish()
}

fn timeouts_text(census: &Listing) -> String {
    let named: NamedTimeouts =
        census.timeouts().iter().map(|(kind, seconds)| (kind.name().to_owned(), seconds)).collect();
    serde_json::to_string(&named).unwrap_or_default()
}

fn timeouts_from(text: &str) -> Option<Timeouts> {
    let named: NamedTimeouts = serde_json::from_str(text).ok()?;
    named.into_iter().map(|(name, seconds)| Some((TimeoutKind::from_name(&name)?, seconds))).collect()
}
