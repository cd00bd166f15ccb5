//! `ctwatch table` as people and scripts see it: the story's table by several keys, and whatever can be odd about one.
//! The same reports go through the schema test.

use std::net::IpAddr;

use crate::fixtures::{HOST, WEB1, golden, time};
use crate::goldens::{fits_80_columns, json, text};
use ctwatch::contract::breakdown::{Skipped, TableReport};
use ctwatch::model::{
    Address, CensusKey, HiddenEntries, LocalAddress, Locals, NetnsId, Protocol, TableEntry,
};
use ctwatch::state::Filter;
use ctwatch::state::table::{Breakdown, BreakdownConfig, Dimension, Keys, ScanContext, TableResult, combine};
use ctwatch::view::View;

const TCP: Protocol = Protocol::TCP;
const NOW_NS: u64 = 1_000_000_000_000;

fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().unwrap())
}

fn entry(src: &str, dst: &str, proto: Protocol, port: u16) -> TableEntry {
    let (src, dst) = (address(src), address(dst));
    TableEntry { id: 1, proto, port, src, dst, reply_src: dst, left: 30, ..TableEntry::default() }
}

/// The table of that night: redis on loopback in TIME_WAIT, and everything else.
fn story() -> Vec<TableEntry> {
    let mut entries = Vec::new();
    for index in 0..5_481_u32 {
        let redis = entry("127.0.0.1", "127.0.0.1", TCP, 6379);
        let tcp_state = if index % 33 == 0 { 3 } else { 7 };
        entries.push(TableEntry {
            tcp_state,
            assured: true,
            unevictable: true,
            seen_reply: true,
            left: index % 120,
            ..redis
        });
    }
    for index in 0..1_926_u32 {
        let client = format!("198.51.100.{}", index % 200);
        let web = entry(&client, "192.0.2.7", TCP, if index % 3 == 0 { 443 } else { 80 });
        let established = TableEntry {
            tcp_state: 3,
            assured: true,
            unevictable: true,
            seen_reply: true,
            left: 431_990,
            ..web
        };
        entries.push(if index % 5 == 0 {
            TableEntry { tcp_state: 1, left: 100, ..web }
        } else {
            established
        });
    }
    let answered = TableEntry { seen_reply: true, ..entry("192.0.2.7", "2001:db8::53", Protocol::UDP, 53) };
    entries.extend(std::iter::repeat_n(TableEntry { mark: 0x10, zone: 7, ..answered }, 250));
    entries.push(entry("fd00::9", "2001:db8:ffff:ffff:ffff:ffff:ffff:fff8", Protocol::ICMPV6, 128 << 8));
    entries.push(entry("203.0.113.1", "203.0.113.2", Protocol(47), 0));
    entries.push(TableEntry {
        sctp_state: 4,
        assured: true,
        unevictable: true,
        ..entry("192.0.2.7", "203.0.113.2", Protocol::SCTP, 38_412)
    });
    entries
}

fn settings(by: Keys, top: usize) -> BreakdownConfig {
    BreakdownConfig { by, filter: Filter::default(), top }
}

fn locals() -> Locals {
    let local = |address: &str| LocalAddress {
        address: address.parse().unwrap(),
        prefix: 24,
        on_loopback: false,
        broadcast: None,
    };
    Locals::new(&[local("192.0.2.7"), local("fd00::9")])
}

fn named(name: &str, container: Option<&str>, listed: usize) -> ScanContext {
    let count = Some(listed as u32);
    ScanContext {
        count_before: count,
        count,
        max: Some(262_144),
        listed: listed as u64,
        took_s: 0.021,
        name: Some(name.into()),
        container: container.map(Into::into),
        ..ScanContext::default()
    }
}

fn listed(settings: &BreakdownConfig, netns: u32, entries: &[TableEntry], seen: ScanContext) -> TableResult {
    let mut census = Breakdown::new(settings, NetnsId::from_packed(netns), locals(), NOW_NS);
    entries.iter().for_each(|entry| census.add(entry));
    census.end(seen)
}

fn report(settings: &BreakdownConfig, finished: Vec<TableResult>) -> TableReport {
    combine(settings, finished, Vec::new(), false, "0.1.0", time(0), 0.022)
}

/// The story by some keys: the host, and a container with little in it.
fn story_by(keys: Keys) -> TableReport {
    let settings = settings(keys, 5);
    let entries = story();
    let host = listed(&settings, HOST, &entries, named("host", None, entries.len()));
    let web: Vec<TableEntry> = entries.iter().rev().take(40).copied().collect();
    let seen = named("docker:3f2a9c0b1d2e", Some("docker:3f2a9c0b1d2e"), web.len());
    report(&settings, vec![host, listed(&settings, WEB1, &web, seen)])
}

/// More sources than cells, and what doesn't add up.
fn odd() -> Vec<TableReport> {
    let by_src = settings(Keys::two(Dimension::Src, Dimension::Dst).unwrap(), 3);
    let mut many: Vec<TableEntry> = (0..70_000_u32)
        .map(|index| TableEntry { src: Address(u128::from(index) << 64), ..entry("::1", "fd00::9", TCP, 80) })
        .collect();
    let started_ns = NOW_NS - 59_000_000_000;
    many.extend(std::iter::repeat_n(
        TableEntry { started_ns, ..entry("10.0.0.1", "192.0.2.7", TCP, 80) },
        9_000,
    ));
    let seen = ScanContext { duplicates: 17, count: Some(79_900), ..named("host", None, many.len()) };
    let seen = ScanContext { count_before: Some(80_000), restarts: 1, ..seen };
    let crowded = report(&by_src, vec![listed(&by_src, HOST, &many, seen)]);

    let by_port = settings(Keys::default(), 5);
    let few = vec![entry("10.0.0.1", "10.0.0.2", TCP, 80); 3];
    let torn = ScanContext {
        count: Some(1),
        count_before: Some(2),
        resized: true,
        interrupted: true,
        ..named("torn", None, 3)
    };
    let unlimited = ScanContext { max: Some(0), name: None, ..named("", None, 3) };
    let mut filtered = by_port.clone();
    filtered.filter.protos = vec![Protocol::UDP];
    let mut reports = vec![
        crowded,
        report(&by_port, vec![listed(&by_port, WEB1, &few, torn)]),
        report(&by_port, vec![listed(&by_port, WEB1, &few, unlimited)]),
        report(&filtered, vec![listed(&filtered, WEB1, &few, named("web", None, 3))]),
    ];
    for tracks in [Some(true), Some(false), None] {
        let seen = ScanContext { tracks: Some(tracks), ..named("host", None, 0) };
        reports.push(report(&by_port, vec![listed(&by_port, HOST, &[], seen)]));
    }
    let dying = CensusKey { proto: Protocol::ICMPV6, port: 128 << 8, entries: 78, assured: 0, time_wait: 0 };
    let all = HiddenEntries { dying: Some(vec![dying]), unconfirmed: Some(Vec::new()), complete: true };
    for hidden in [all, HiddenEntries::default()] {
        let count = Some(80);
        let seen = ScanContext { count_before: count, count, hidden: Some(hidden), ..named("host", None, 0) };
        let seen = ScanContext { tracks: Some(None), ..seen };
        reports.push(report(&by_port, vec![listed(&by_port, HOST, &[], seen)]));
    }
    let skipped = |name: &str| Skipped {
        netns: NetnsId::from_packed(WEB1),
        name: (!name.is_empty()).then(|| name.into()),
        reason: "entering the netns /proc/812/ns/net (this needs CAP_SYS_ADMIN: run as root): EPERM".into(),
    };
    let host = listed(&by_port, HOST, &few, named("host", None, 3));
    let skipped = vec![skipped("blue"), skipped(""), skipped("a"), skipped("b"), skipped("c")];
    reports.push(combine(&by_port, vec![host], skipped, true, "0.1.0", time(0), 0.001));
    reports
}

/// Every report of this file, for the schema.
pub fn reports() -> Vec<TableReport> {
    let mut reports: Vec<TableReport> =
        Dimension::ALL.into_iter().map(|key| story_by(Keys::one(key))).collect();
    reports.extend(odd());
    reports
}

#[test]
fn text_of_a_table_by_each_key() {
    let two = |first, second| Keys::two(first, second).unwrap();
    for (keys, name) in [
        (Keys::default(), "port"),
        (two(Dimension::Port, Dimension::State), "port-state"),
        (two(Dimension::Direction, Dimension::Proto), "direction-proto"),
        (two(Dimension::Src, Dimension::Dst), "src-dst"),
        (two(Dimension::Zone, Dimension::Mark), "zone-mark"),
        (two(Dimension::Netns, Dimension::Container), "netns-container"),
    ] {
        let text = text(false, |view: &mut dyn View| view.table(&story_by(keys)).unwrap());
        fits_80_columns(&text);
        golden(&format!("table-by-{name}.txt"), &text);
    }
}

#[test]
fn text_of_tables_that_do_not_add_up() {
    let text = text(false, |view: &mut dyn View| odd().iter().for_each(|report| view.table(report).unwrap()));
    fits_80_columns(&text);
    golden("table-odd.txt", &text);
}

#[test]
fn json_of_a_table() {
    golden("table.ndjson", &json(|view: &mut dyn View| view.table(&story_by(Keys::default())).unwrap()));
}
