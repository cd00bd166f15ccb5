use std::collections::HashMap;

use super::rows::quiet;
use super::*;
use crate::contract::breakdown;
use crate::model::{Address, CensusKey, HiddenEntries, Protocol};
use crate::state::PortRange;
use proptest::prelude::*;

fn settings(by: Keys, top: usize) -> BreakdownConfig {
    BreakdownConfig { by, filter: Filter::default(), top }
}

fn tcp(port: u16, tcp_state: u8) -> TableEntry {
    TableEntry {
        id: 1,
        proto: Protocol::TCP,
        port,
        tcp_state,
        assured: tcp_state != 1,
        left: 60,
        ..TableEntry::default()
    }
}

fn from(src: &str, entry: TableEntry) -> TableEntry {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    TableEntry { src: address(src), dst: address("10.0.0.9"), reply_src: address("10.0.0.9"), ..entry }
}

fn report(settings: &BreakdownConfig, tables: &[&[TableEntry]]) -> breakdown::TableReport {
    let finished = (1..).zip(tables).map(|(netns, entries)| {
        let mut census = Breakdown::new(settings, NetnsId::from_packed(netns), Locals::default(), 0);
        entries.iter().for_each(|entry| census.add(entry));
        census.end(ScanContext { max: Some(1_000), ..quiet(entries) })
    });
    let time = "2026-03-14T12:03:04Z".parse().unwrap();
    combine(settings, finished.collect(), Vec::new(), false, "0", time, 0.1)
}

#[test]
fn the_storys_table_by_port_names_its_culprit() {
    let mut entries = vec![tcp(6379, 7); 71];
    entries.extend(vec![tcp(80, 3); 20]);
    entries.extend(vec![
        TableEntry { proto: Protocol::ICMP, port: 8 << 8, left: 30, ..TableEntry::default() };
        9
    ]);
    let report = report(&settings(Keys::default(), 2), &[&entries]);
    let first = &report.rows[0];
    assert_eq!((first.port, first.service, first.entries), (Some(6379), Some(Some("redis")), 71));
    assert_eq!((first.share, first.share_of_max), (0.71, Some(0.071)));
    assert_eq!((first.time_wait_share, first.assured_share), (Some(1.0), Some(1.0)));
    assert_eq!(first.timeout_left_median_s, Some(60.0));
    let rest = &report.rows[2];
    assert!(rest.rest && rest.entries == 9 && rest.error == 0 && rest.proto.is_none());
    assert_eq!(report.rows.len(), 3);
}

#[test]
fn icmp_has_a_type_and_a_code_and_no_time_wait() {
    let echo = TableEntry { proto: Protocol::ICMPV6, port: 128 << 8 | 3, ..TableEntry::default() };
    let row = report(&settings(Keys::default(), 9), &[&[echo]]).rows.remove(0);
    assert_eq!(
        (row.port, row.icmp_type, row.icmp_code, row.time_wait_share),
        (None, Some(128), Some(3), None)
    );
}

#[test]
fn states_are_spelt_as_conntrack_does() {
    let udp = |assured, seen_reply| TableEntry {
        proto: Protocol::UDP,
        assured,
        seen_reply,
        ..TableEntry::default()
    };
    let sctp = TableEntry { proto: Protocol::SCTP, sctp_state: 4, ..TableEntry::default() };
    let entries = [tcp(80, 7), tcp(80, 1), udp(true, true), udp(false, true), udp(false, false), sctp];
    let rows = report(&settings(Keys::one(Dimension::State), 9), &[&entries]).rows;
    let mut states: Vec<_> = rows.iter().map(|row| (row.proto.unwrap().0, row.state.unwrap())).collect();
    states.sort_unstable();
    let expected = [
        (6, "SYN_SENT"),
        (6, "TIME_WAIT"),
        (17, "ASSURED"),
        (17, "REPLIED"),
        (17, "UNREPLIED"),
        (132, "ESTABLISHED"),
    ];
    assert_eq!(states, expected);
}

#[test]
fn rows_are_of_one_table_and_each_table_has_its_rest() {
    let (a, b) = (vec![tcp(80, 3); 10], [vec![tcp(80, 3); 30], vec![tcp(443, 3); 5]].concat());
    let report = report(&settings(Keys::default(), 2), &[&a, &b]);
    let rows: Vec<_> =
        report.rows.iter().map(|row| (row.netns.packed(), row.port, row.entries, row.rest)).collect();
    assert_eq!(rows, [(2, Some(80), 30, false), (1, Some(80), 10, false), (2, None, 5, true)]);
}

#[test]
fn by_netns_a_table_is_one_row() {
    let entries = vec![tcp(80, 3); 10];
    let keys = Keys::two(Dimension::Netns, Dimension::Container).unwrap();
    let report = report(&settings(keys, 9), &[&entries, &entries]);
    assert_eq!(report.rows.len(), 2);
    assert_eq!(
        (report.rows[0].share, &report.rows[0].name, &report.rows[0].container),
        (1.0, &Some(None), &Some(None))
    );
}

#[test]
fn filters_choose_entries_and_shares_stay_those_of_the_table() {
    let entries = [from("10.0.0.1", tcp(80, 3)), from("10.0.0.2", tcp(80, 3)), from("10.0.0.1", tcp(81, 3))];
    let mut settings = settings(Keys::one(Dimension::Src), 9);
    settings.filter.ports = vec![PortRange { first: 80, last: 80 }];
    settings.filter.src = vec!["10.0.0.1/32".parse().unwrap()];
    let report = report(&settings, &[&entries]);
    assert_eq!(report.tables[0].matched, Some(1));
    assert_eq!((report.rows.len(), report.rows[0].entries, report.rows[0].share), (1, 1, 0.3333));
    assert!(settings.wanted().addresses && !settings.needs_locals());
}

#[test]
fn a_loopback_filter_needs_to_know_local_addresses() {
    let local =
        TableEntry { src: Address::from(IpAddr::from([127, 0, 0, 1])), ..from("127.0.0.1", tcp(80, 3)) };
    let local = TableEntry { reply_src: local.src, ..local };
    let mut settings = settings(Keys::one(Dimension::Direction), 9);
    settings.filter.loopback = Some(true);
    let report = report(&settings, &[&[local, from("10.0.0.1", tcp(80, 3))]]);
    assert_eq!((report.rows.len(), report.rows[0].direction), (1, Some(Direction::Loopback)));
}

fn difference(before: u32, after: u32, listed: u64, duplicates: u64) -> (i64, Vec<breakdown::Reason>) {
    let settings = settings(Keys::default(), 1);
    let census = Breakdown::new(&settings, NetnsId::from_packed(1), Locals::default(), 0);
    let (count_before, count) = (Some(before), Some(after));
    let end = census.end(ScanContext { count_before, count, listed, duplicates, ..ScanContext::default() });
    let report = combine(&settings, vec![end], Vec::new(), false, "0", Default::default(), 0.0);
    (report.tables[0].unlisted, report.tables[0].reasons.clone())
}

#[test]
fn what_moved_meanwhile_is_no_difference_and_what_did_not_is() {
    use breakdown::Reason::{Churn, Dying, Expired, ReplyOnly, Unconfirmed};
    assert_eq!(difference(100, 90, 95, 0), (0, vec![]));
    assert_eq!(difference(100, 100, 100, 0), (0, vec![]));
    assert_eq!(difference(100, 100, 90, 0), (10, vec![Expired, Unconfirmed, Dying, ReplyOnly]));
    assert_eq!(difference(100, 110, 90, 0), (10, vec![Expired, Unconfirmed, Dying, ReplyOnly, Churn]));
    assert_eq!(difference(100, 100, 103, 0), (-3, vec![Churn]));
}

/// A table of which the kernel counts 80 entries more than were listed, and what its lists say of them.
fn hidden(entries: HiddenEntries) -> breakdown::TableBreakdown {
    let settings = settings(Keys::default(), 2);
    let census = Breakdown::new(&settings, NetnsId::from_packed(1), Locals::default(), 0);
    let count = Some(80);
    let seen = ScanContext { count_before: count, count, hidden: Some(entries), ..ScanContext::default() };
    let report = combine(&settings, vec![census.end(seen)], Vec::new(), false, "0", Default::default(), 0.0);
    report.tables.into_iter().next().expect("one table")
}

fn of_port(proto: u8, port: u16, entries: u32) -> CensusKey {
    CensusKey { proto: Protocol(proto), port, entries, assured: 0, time_wait: 0 }
}

#[test]
fn entries_that_no_listing_shows_are_counted_by_name_where_the_kernel_lists_them() {
    use breakdown::Reason::{Dying, Expired, ReplyOnly, Unconfirmed};
    let all = hidden(HiddenEntries {
        dying: Some(vec![of_port(6, 80, 9), of_port(58, 128 << 8, 70)]),
        unconfirmed: Some(vec![of_port(17, 53, 1)]),
        complete: true,
    });
    let told = all.hidden.expect("asked");
    assert_eq!((told.dying, told.unconfirmed, told.others), (Some(79), Some(1), 0));
    let first = &told.services[0];
    assert_eq!((first.sort, first.icmp_type, first.icmp_code, first.port), (Dying, Some(128), Some(0), None));
    assert_eq!((told.services.len(), all.reasons), (2, vec![Unconfirmed, Dying]));
    let some =
        hidden(HiddenEntries { dying: Some(Vec::new()), unconfirmed: Some(Vec::new()), complete: true });
    assert_eq!((some.hidden.expect("asked").others, some.reasons), (80, vec![Expired, ReplyOnly]));
}

#[test]
fn what_the_kernel_does_not_list_is_unknown_and_not_none() {
    use breakdown::Reason::{Dying, Expired, ReplyOnly, Unconfirmed};
    let unknown = hidden(HiddenEntries::default());
    let told = unknown.hidden.expect("asked");
    assert_eq!((told.dying, told.unconfirmed, told.complete, told.others), (None, None, false, 80));
    assert_eq!(unknown.reasons, [Expired, Unconfirmed, Dying, ReplyOnly]);
}

#[test]
fn a_bound_is_told_as_one_and_its_share_is_that_of_what_is_certain() {
    // Twice as many destinations as there are cells: one of 1,000 entries, the others of one each.
    let settings = settings(Keys::one(Dimension::Dst), 4);
    let mut census = Breakdown::new(&settings, NetnsId::from_packed(1), Locals::default(), 0);
    let entry = |dst: u32| TableEntry {
        dst: Address::from(IpAddr::from(dst.to_be_bytes())),
        ..TableEntry { proto: Protocol::UDP, ..TableEntry::default() }
    };
    let mut listed = 0;
    for index in 0..2 * WIDE as u32 {
        census.add(&entry(0x0A00_0000 + index));
        listed += 1;
        if index > WIDE as u32 && index < WIDE as u32 + 1_001 {
            census.add(&entry(0x0B00_0000));
            listed += 1;
        }
    }
    let count = Some(listed as u32);
    let end = ScanContext { count_before: count, count, listed, max: count, ..ScanContext::default() };
    let report = combine(&settings, vec![census.end(end)], Vec::new(), false, "0", Default::default(), 0.0);
    let [row, rest] = &report.rows[..] else { panic!("{:?}", report.rows) };
    assert_eq!(row.dst, Some(IpAddr::from([11, 0, 0, 0])));
    let (least, most) = (row.entries_min.expect("a bound"), row.entries_max.expect("a bound"));
    assert!(least <= 1_000 && 1_000 <= most && least == row.entries && most - least == row.error, "{row:?}");
    assert!(row.share <= 1_000.0 / listed as f64, "{row:?}");
    assert_eq!(rest.entries_min, Some(rest.entries));
    assert_eq!(rest.entries_max, Some(rest.entries + rest.error));
    assert!(rest.each_at_most.is_some_and(|most| (1..=3).contains(&most)), "{rest:?}");
    assert_eq!(row.entries + row.error + rest.entries, listed);
    assert_eq!(row.entries_min, Some(row.entries), "as in the row of the others");
}

proptest! {
    #[test]
    fn rows_and_rests_add_up_to_the_table(
        ports in prop::collection::vec((0..40u16, 0..11u8), 0..400),
        top in 1..50usize,
        first in 0..10usize,
        second in 0..10usize,
    ) {
        let entries: Vec<TableEntry> =
            ports.iter().map(|(port, state)| from(&format!("10.0.0.{port}"), tcp(*port, *state))).collect();
        let (first, second) = (Dimension::ALL[first], Dimension::ALL[second]);
        let keys = Keys::two(first, second).unwrap_or(Keys::one(first));
        let report = report(&settings(keys, top), &[&entries]);
        prop_assert_eq!(report.rows.iter().map(|row| row.entries).sum::<u64>(), entries.len() as u64);
        prop_assert!(report.rows.iter().filter(|row| !row.rest).count() <= top);
        let mut truth: HashMap<u16, u64> = HashMap::new();
        ports.iter().for_each(|(port, _)| *truth.entry(*port).or_default() += 1);
        if keys == Keys::default() {
            for row in report.rows.iter().filter(|row| !row.rest) {
                prop_assert_eq!(row.entries, truth[&row.port.unwrap()]);
            }
        }
    }
}
