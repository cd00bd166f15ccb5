//! From what was counted to what is reported: rows with their shares, tables with what doesn't add up.
//! All rounding is done here, once, for every view.

use std::net::IpAddr;

use super::cells::{Counted, Sum};
use super::key::Wide;
use super::{Breakdown, BreakdownConfig, Dimension, Keys};
use crate::contract::breakdown::{Hidden, HiddenService, Reason, Row, Skipped, TableBreakdown, TableReport};
use crate::contract::{SCHEMA, fill};
use crate::foreign::Foreign;
use crate::model::{CensusKey, HiddenEntries, PortParts, Protocol, ServicePort, state_name};
use jiff::Timestamp;

/// One netns's table, counted.
#[derive(Clone, Debug)]
pub struct TableResult {
    table: TableBreakdown,
    rows: Vec<Row>,
    matched: Sum,
    /// No key that has no row has more entries, where counts are not exact.
    each_at_most: Option<u64>,
}

/// What was seen around the listing of one table.
#[derive(Clone, Debug, Default)]
pub struct ScanContext {
    /// Entries before, as the kernel counts them.
    pub count_before: Option<u32>,
    /// And after.
    pub count: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// Entries listed.
    pub listed: u64,
    /// Entries listed twice.
    pub duplicates: u64,
    /// Listings given up because of a resize.
    pub restarts: u32,
    /// The last listing was not, though the table was resized.
    pub resized: bool,
    /// The kernel called the dump inconsistent.
    pub interrupted: bool,
    /// What the kernel counts and the listing leaves out, asked if there is any.
    pub hidden: Option<HiddenEntries>,
    /// Whether conntrack tracks, asked if nothing was listed.
    pub tracks: Option<Option<bool>>,
    /// How long it took.
    pub took_s: f64,
    /// What the netns is called.
    pub name: Option<Foreign>,
    /// What lives in it.
    pub container: Option<Foreign>,
}

impl Breakdown<'_> {
    /// The end of this table's listing.
    #[must_use]
    pub fn end(self, seen: ScanContext) -> TableResult {
        let (settings, netns, filters) = (self.settings, self.netns, self.filters);
        let unevictable = self.unevictable;
        let (counted, matched, each_at_most) = self.finish();
        let (unlisted, mut reasons) = difference(&seen);
        let top = settings.top;
        let ScanContext {
            count_before,
            count,
            max,
            listed,
            duplicates,
            restarts,
            resized,
            interrupted: _,
            hidden,
            tracks,
            took_s,
            name,
            container,
        } = seen;
        let hidden = hidden.filter(|_| unlisted > 0).map(|hidden| name_hidden(&hidden, unlisted, top));
        if let Some(hidden) = &hidden {
            reasons.retain(|reason| may_be(*reason, hidden));
        }
        let table = TableBreakdown {
            netns,
            name,
            container,
            count,
            count_before,
            max,
            fill: count.zip(max).and_then(|(count, max)| fill(count, max)),
            listed,
            unevictable,
            matched: filters.then_some(matched.entries),
            duplicates,
            restarts,
            resized,
            unlisted,
            reasons,
            hidden,
            tracks,
            took_s,
        };
        let rows = counted.iter().map(|counted| row(settings.by, counted, &table)).collect();
        TableResult { table, rows, matched, each_at_most }
    }
}

/// How far the listing is from what the kernel counted, and why that can be.
fn difference(seen: &ScanContext) -> (i64, Vec<Reason>) {
    let Some((before, after)) = seen.count_before.zip(seen.count) else { return (0, Vec::new()) };
    let listed = seen.listed as i64;
    // What came or went meanwhile may have been listed or not.
    let nearest = listed.clamp(before.min(after).into(), before.max(after).into());
    let unlisted = nearest - listed;
    let moved = before != after || seen.duplicates > 0;
    let mut reasons = Vec::new();
    if unlisted > 0 {
        reasons.extend([Reason::Expired, Reason::Unconfirmed, Reason::Dying, Reason::ReplyOnly]);
    }
    if unlisted < 0 || (unlisted != 0 && moved) {
        reasons.push(Reason::Churn);
    }
    if unlisted != 0 && seen.resized {
        reasons.push(Reason::Resize);
    }
    if unlisted != 0 && seen.interrupted {
        reasons.push(Reason::Interrupted);
    }
    (unlisted, reasons)
}

/// What the kernel's lists say of the entries that were not listed.
fn name_hidden(hidden: &HiddenEntries, unlisted: i64, top: usize) -> Hidden {
    let HiddenEntries { dying, unconfirmed, complete } = hidden;
    let sum = |keys: &Vec<CensusKey>| keys.iter().map(|key| u64::from(key.entries)).sum::<u64>();
    let (dying_sum, unconfirmed_sum) = (dying.as_ref().map(sum), unconfirmed.as_ref().map(sum));
    let named = dying_sum.unwrap_or(0) + unconfirmed_sum.unwrap_or(0);
    let of = |sort, keys: &Option<Vec<CensusKey>>| {
        let keys = keys.clone().unwrap_or_default();
        keys.into_iter().map(move |key| hidden_service(sort, &key)).collect::<Vec<_>>()
    };
    let mut services = [of(Reason::Dying, dying), of(Reason::Unconfirmed, unconfirmed)].concat();
    services.sort_by_key(|service| std::cmp::Reverse(service.entries));
    services.truncate(top);
    Hidden {
        dying: dying_sum,
        unconfirmed: unconfirmed_sum,
        complete: *complete,
        others: unlisted.unsigned_abs().saturating_sub(named),
        services,
    }
}

fn hidden_service(sort: Reason, key: &CensusKey) -> HiddenService {
    let proto = key.proto;
    let PortParts { port, service, icmp_type, icmp_code } = ServicePort { proto, port: key.port }.parts();
    HiddenService {
        sort,
        proto,
        port,
        service: port.map(|_| service),
        icmp_type,
        icmp_code,
        entries: key.entries.into(),
    }
}

/// Whether, with what the kernel's lists say, this can still be a reason.
fn may_be(reason: Reason, hidden: &Hidden) -> bool {
    match reason {
        Reason::Dying => hidden.dying.map_or(!hidden.complete, |dying| dying > 0 || !hidden.complete),
        Reason::Unconfirmed => hidden.unconfirmed.is_none_or(|unconfirmed| unconfirmed > 0),
        Reason::Expired | Reason::ReplyOnly => hidden.others > 0 || !hidden.complete,
        Reason::Churn | Reason::Resize | Reason::Interrupted => true,
    }
}

fn row(by: Keys, counted: &Counted<Wide>, table: &TableBreakdown) -> Row {
    let fields = by.fields(counted.key);
    let proto = fields.proto.map(Protocol);
    let parts = proto.zip(fields.port).map(|(proto, port)| ServicePort { proto, port }.parts());
    let PortParts { port, service, icmp_type, icmp_code } = parts.unwrap_or_default();
    let certain = counted.entries - counted.error;
    let tells_time_wait = proto.is_none_or(|proto| proto == Protocol::TCP);
    Row {
        state: fields.state.map(|state| state_name(proto.unwrap_or_default(), state)),
        proto,
        port,
        service: port.map(|_| service),
        icmp_type,
        icmp_code,
        direction: fields.direction,
        src: fields.src.map(IpAddr::from),
        dst: fields.dst.map(IpAddr::from),
        zone: fields.zone,
        mark: fields.mark,
        error: counted.error,
        entries_min: (counted.error > 0).then_some(certain),
        entries_max: (counted.error > 0).then_some(counted.entries),
        assured_share: (certain > 0).then(|| part(counted.assured, certain)),
        time_wait_share: (certain > 0 && tells_time_wait).then(|| part(counted.time_wait, certain)),
        timeout_left_median_s: counted.left_median.map(f64::round),
        timeout_left_p90_s: counted.left_p90.map(f64::round),
        age_median_s: counted.age_median.map(f64::round),
        ..of_table(by, certain, table)
    }
}

/// A row that says nothing but whose and how many, at least.
fn of_table(by: Keys, entries: u64, table: &TableBreakdown) -> Row {
    Row {
        netns: table.netns,
        name: by.has(Dimension::Netns).then(|| table.name.clone()),
        container: by.has(Dimension::Container).then(|| table.container.clone()),
        entries,
        share: part(entries, table.listed),
        share_of_max: table.max.filter(|max| *max > 0).map(|max| part(entries, max.into())),
        ..Row::default()
    }
}

/// Rounded down to four digits, so that only all is 1; never above it.
fn part(of: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    (of as f64 / all as f64 * 10_000.0 + 1e-9).floor().min(10_000.0) / 10_000.0
}

/// The rows of all tables in one report: the largest of all, and for each table a sum of its others.
#[must_use]
pub fn combine(
    settings: &BreakdownConfig,
    finished: Vec<TableResult>,
    skipped: Vec<Skipped>,
    own_netns_only: bool,
    version: &str,
    time: Timestamp,
    took_s: f64,
) -> TableReport {
    let mut rows: Vec<Row> = finished.iter().flat_map(|one| one.rows.iter().cloned()).collect();
    // Stable: what has as many entries stays in the order of its table.
    rows.sort_by_key(|row| std::cmp::Reverse(row.entries));
    rows.truncate(settings.top);
    let rests: Vec<Row> = finished.iter().filter_map(|one| rest(settings.by, one, &rows)).collect();
    rows.extend(rests);
    TableReport {
        schema: SCHEMA,
        version: version.to_owned(),
        time,
        took_s,
        by: settings.by.each().map(Dimension::name).collect(),
        tables: finished.into_iter().map(|one| one.table).collect(),
        rows,
        skipped,
        own_netns_only,
    }
}

fn rest(by: Keys, finished: &TableResult, shown: &[Row]) -> Option<Row> {
    let TableResult { table, rows, matched, each_at_most } = finished;
    let shown = shown.iter().filter(|row| row.netns == table.netns);
    let at_most = |row: &Row| row.entries + row.error;
    // Those shown are its first.
    let left_out = rows.iter().skip(shown.clone().count()).map(at_most).max();
    let (most, error) = shown.fold((0, 0), |(most, error), row| (most + at_most(row), error + row.error));
    let entries = matched.entries.saturating_sub(most);
    (entries + error > 0).then(|| Row {
        rest: true,
        error,
        entries_min: (error > 0).then_some(entries),
        entries_max: (error > 0).then_some(entries + error),
        each_at_most: each_at_most.map(|most| most.max(left_out.unwrap_or(0))),
        ..of_table(by, entries, table)
    })
}

/// For [`super::tests`]: counts these entries as one quiet table.
#[cfg(test)]
pub(super) fn quiet(entries: &[crate::model::TableEntry]) -> ScanContext {
    let count = Some(entries.len() as u32);
    ScanContext { count_before: count, count, listed: entries.len() as u64, ..ScanContext::default() }
}
