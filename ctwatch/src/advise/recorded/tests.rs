//! A recording made by the Writer gives the demand that was put into it.

use super::*;
use crate::advise::report::report;
use crate::firewall::{Dump, HostFacts, Note, Tools};
use crate::listing::Listing as Listed;
use crate::model::{Direction, NetnsNumber, Protocol, TableEntry as Entry, TimeoutKind};
use crate::record::Writer;
use crate::record::rows::MachineSnapshot;
use crate::record::rules::{Packed, StoredRules};
use crate::record::tick::Tick;
use crate::record::writer::Batch;
use crate::testing::{self, HOST, at, run, slot};
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK};
use std::path::Path;

/// Fifty flows a second get in, and for a while another fifty are refused.
fn tick(second: i64) -> Tick {
    let full = (60..90).contains(&second);
    let mut tick = testing::tick(at(second), if full { 3_000 } else { 1_500 }, 3_000);
    tick.flows = vec![(slot(6379, KIND_FLOWS), [50, 50, 0])];
    if full {
        tick.losses = vec![(slot(6379, Cause::TableFull as u8 | KIND_LOOPBACK), 50)];
    }
    tick
}

fn listing(second: i64) -> StoredListing {
    let mut census =
        Listed::new([(TimeoutKind::TimeWait, 60), (TimeoutKind::Established, 432_000)].into(), 15);
    for left in (0..60).flat_map(|left| std::iter::repeat_n(left, 50)) {
        let entry = Entry { proto: Protocol::TCP, port: 6379, tcp_state: 7, left, ..Entry::default() };
        census.add(&entry, Direction::Loopback);
    }
    StoredListing {
        netns: HOST,
        reason: SnapshotReason::Trigger,
        at: at(second),
        took_us: 1,
        entries: 3_000,
        duplicates: 0,
        interrupted: false,
        census,
    }
}

fn facts() -> MachineSnapshot {
    let machine = Machine { kernel_release: "6.12.1".to_owned(), ..Machine::default() };
    MachineSnapshot {
        at: at(0),
        reason: SnapshotReason::Start,
        json: serde_json::to_string(&machine).unwrap(),
    }
}

fn write(path: &Path, listings: Vec<StoredListing>, facts: Vec<MachineSnapshot>) -> Recording {
    write_with(path, listings, facts, Vec::new())
}

fn write_with(
    path: &Path,
    listings: Vec<StoredListing>,
    facts: Vec<MachineSnapshot>,
    rules: Vec<StoredRules>,
) -> Recording {
    write_by_clock(path, listings, facts, rules, |at| at)
}

/// With everything labelled by this wall clock.
fn write_by_clock(
    path: &Path,
    mut listings: Vec<StoredListing>,
    mut facts: Vec<MachineSnapshot>,
    mut rules: Vec<StoredRules>,
    clock: impl Fn(WallMono) -> WallMono,
) -> Recording {
    listings.iter_mut().for_each(|one| one.at = clock(one.at));
    facts.iter_mut().for_each(|one| one.at = clock(one.at));
    rules.iter_mut().for_each(|one| one.at = clock(one.at));
    let mut writer = Writer::open(path, &run()).unwrap();
    let names = HashMap::from([(HOST, Names { name: Some("host".into()), container: None })]);
    writer.write(&Batch { names, listings, facts, rules, ..Batch::default() }).unwrap();
    for second in 1..=120 {
        let tick = Tick { time: clock(at(second)).time, ..tick(second) };
        writer.write(&Batch { tick: Some(tick), ..Batch::default() }).unwrap();
    }
    drop(writer);
    Recording::open(path).unwrap()
}

fn question() -> Question {
    Question { netns: None, window_s: 15.0, ticks: i64::MIN..=i64::MAX, times: 2.0, bare: false }
}

#[test]
fn the_worst_window_gives_the_demand() {
    let folder = tempfile::tempdir().unwrap();
    let recording = write(&folder.path().join("a.ctw"), vec![listing(2), listing(70)], vec![facts()]);
    let (case, source) = case(&recording, "0.1.0", &question()).unwrap();
    assert!((source.window_s - 15.0).abs() < 0.1, "{}", source.window_s);
    assert!((at(74).time..=at(90).time).contains(&source.time), "{}", source.time);
    assert!(source.notes[0].contains("trigger"), "{:?}", source.notes);
    assert!(source.notes.iter().any(|note| note.contains("upper bound")), "no event was kept");
    let service = &case.demand.services[0];
    assert!((service.admitted_per_s - 50.0).abs() < 0.1, "{service:?}");
    assert!((service.refused_per_s - 50.0).abs() < 0.1, "{service:?}");
    assert!((service.offered_per_s - 100.0).abs() < 0.2, "{service:?}");
    assert_eq!(case.demand.max, 3_000);
    let report = report(&case, source, None);
    assert_eq!(report.table.count, 3_000);
    // 100 flows/s for 60 s, and those that have expired and wait for gc.
    assert!((6_000.0..8_000.0).contains(&report.table.demand.needed), "{}", report.table.demand.needed);
    let notrack = report.items.iter().find(|item| item.id.starts_with("notrack")).unwrap();
    assert!(!notrack.refused.is_empty() && notrack.commands.now.is_empty(), "{notrack:?}");
    assert_eq!(notrack.refused[0].rule, "unknown: recorded before rule sets were kept");
    assert!(report.notes.iter().any(|note| note.contains("unknown: recorded before")), "{:?}", report.notes);
}

#[test]
fn a_protocol_without_ports_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut listed = listing(70);
    for left in 0..60 {
        listed.census.add(&Entry { proto: Protocol(47), left, ..Entry::default() }, Direction::In);
    }
    let recording = write(&folder.path().join("a.ctw"), vec![listed], vec![facts()]);
    let (case, source) = case(&recording, "0.1.0", &question()).unwrap();
    let report = report(&case, source, None);
    let gre = report.services.iter().find(|service| service.proto == Protocol(47)).expect("it is listed");
    assert_eq!((gre.port, gre.icmp_type), (None, None));
}

#[test]
fn what_a_recording_lacks_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let without = write(&folder.path().join("a.ctw"), vec![], vec![facts()]);
    let error = format!("{:#}", case(&without, "0.1.0", &question()).unwrap_err());
    assert!(
        error.contains("a.ctw") && error.contains("entry by entry") && error.contains("record again"),
        "{error}"
    );
    let without = write(&folder.path().join("b.ctw"), vec![listing(70)], vec![]);
    let error = format!("{:#}", case(&without, "0.1.0", &question()).unwrap_err());
    assert!(error.contains("no machine snapshot"), "{error}");
    let elsewhere = Question { netns: Some(Which::Name("blue".to_owned())), ..question() };
    let error = format!("{:#}", case(&without, "0.1.0", &elsewhere).unwrap_err());
    assert!(error.contains("of that netns"), "{error}");
}

#[test]
fn of_namespaces_that_had_one_inode_number_the_one_asked_for_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let later = StoredListing { netns: NetnsId::new(HOST.inode(), 1), ..listing(80) };
    let recording = write(&folder.path().join("a.ctw"), vec![listing(70), later], vec![facts()]);
    let listed = |generation| {
        let number = NetnsNumber { inode: HOST.inode(), generation };
        let question = Question { netns: Some(Which::Number(number)), ..question() };
        let listings = Contents::read(&recording, &question).ok()?.listings;
        Some(listings.iter().filter_map(|(_, one)| one.netns?.generation().into()).collect::<Vec<u32>>())
    };
    assert_eq!(listed(None), Some(vec![0, 1]));
    assert_eq!(listed(Some(0)), Some(vec![0]));
    assert_eq!(listed(Some(1)), Some(vec![1]));
    assert_eq!(listed(Some(2)), None);
}

#[test]
fn a_quiet_recording_is_judged_by_the_window_of_its_listing() {
    let folder = tempfile::tempdir().unwrap();
    let recording = write(&folder.path().join("a.ctw"), vec![listing(40)], vec![facts()]);
    let early = Question { ticks: 1..=50, ..question() };
    let (case, source) = case(&recording, "0.1.0", &early).unwrap();
    assert_eq!(source.time, at(40).time);
    assert!((case.demand.services[0].admitted_per_s - 50.0).abs() < 0.1);
    assert_eq!(case.demand.services[0].refused_per_s, 0.0);
}

/// A host that doesn't forward.
fn known_host() -> HostFacts {
    HostFacts {
        own_v4: Some(vec!["127.0.0.1".parse().unwrap()]),
        own_v6: Some(vec!["::1".parse().unwrap()]),
        forwards_v4: Some(false),
        forwards_v6: Some(false),
        vrfs: Vec::new(),
    }
}

/// A redirect of the asked port, or a rule that has nothing to do with it.
fn rules(second: i64, redirects: bool, notes: Vec<Note>) -> StoredRules {
    let expr = if redirects {
        r#"[{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 6379}}, {"redirect": {"port": 7000}}]"#
    } else {
        r#"[{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}, {"accept": null}]"#
    };
    let (kind, priority) = if redirects { ("nat", -100) } else { ("filter", 0) };
    let nft_json = format!(
        r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6", "json_schema_version": 1}}}},
        {{"table": {{"family": "ip", "name": "acme", "handle": 1}}}},
        {{"chain": {{"family": "ip", "table": "acme", "name": "out", "handle": 1, "type": "{kind}", "hook": "output", "prio": {priority}, "policy": "accept"}}}},
        {{"rule": {{"family": "ip", "table": "acme", "chain": "out", "handle": 2, "expr": {expr}}}}}]}}"#
    );
    let tools = Tools { nft: true, iptables: false, ip6tables: false };
    let rules =
        RuleSet { dump: Dump { nft_json, tools, host: known_host(), unread: notes, ..Dump::default() } };
    let packed = Packed::new(&rules).unwrap();
    let reason = if second == 1 { SnapshotReason::Start } else { SnapshotReason::Changed };
    StoredRules { netns: HOST, at: at(second), reason, rules: Some(packed) }
}

fn advised(stored: Vec<StoredRules>) -> crate::advise::report::Advice {
    let folder = tempfile::tempdir().unwrap();
    let recording = write_with(&folder.path().join("a.ctw"), vec![listing(70)], vec![facts()], stored);
    let (case, source) = case(&recording, "0.1.0", &question()).unwrap();
    report(&case, source, None)
}

fn notrack(advice: &crate::advise::report::Advice) -> &crate::advise::items::Item {
    advice.items.iter().find(|item| item.id.starts_with("notrack")).unwrap()
}

#[test]
fn the_rules_in_force_then_are_judged_and_not_those_before_or_after() {
    // The window ends between 74 and 90 s.
    let refused = advised(vec![rules(1, false, vec![]), rules(60, true, vec![]), rules(100, false, vec![])]);
    let item = notrack(&refused);
    assert_eq!(item.refused[0].kind, ObjectionKind::NatRule, "{item:?}");
    assert!(item.refused[0].place.raw().contains("acme out") && item.commands.now.is_empty(), "{item:?}");
    let told = |advice: &crate::advise::report::Advice, words: &str| {
        advice.notes.iter().any(|note| note.contains(words))
    };
    assert!(told(&refused, "when they had changed"), "{:?}", refused.notes);
    let allowed = advised(vec![rules(1, true, vec![]), rules(60, false, vec![])]);
    let item = notrack(&allowed);
    assert!(item.refused.is_empty() && item.commands.now[0].contains("6379"), "{item:?}");
    let only_later = advised(vec![rules(110, false, vec![])]);
    assert!(told(&only_later, "after this window"), "{:?}", only_later.notes);
}

/// The clock is set after 72 s, while the table is full: of what was read before, nothing is near by the wall clock.
#[test]
fn what_is_nearest_is_so_on_the_monotonic_clock() {
    for days in [0, 400, -400] {
        let clock = |at: WallMono| {
            let by = if at.mono_us > testing::at(72).mono_us { days * 24 } else { 0 };
            WallMono { time: at.time + jiff::SignedDuration::from_hours(by), ..at }
        };
        let folder = tempfile::tempdir().unwrap();
        let machine = |second, kernel: &str| {
            let machine = Machine { kernel_release: kernel.to_owned(), ..Machine::default() };
            MachineSnapshot { at: at(second), json: serde_json::to_string(&machine).unwrap(), ..facts() }
        };
        let recording = write_by_clock(
            &folder.path().join("a.ctw"),
            vec![listing(2), listing(70), listing(118)],
            vec![machine(0, "zeroth"), machine(71, "right"), machine(117, "late")],
            vec![rules(1, false, vec![]), rules(60, true, vec![]), rules(100, false, vec![])],
            clock,
        );
        let (case, source) = case(&recording, "0.1.0", &question()).unwrap();
        let to = clock(at(74)).time..=clock(at(90)).time;
        assert!(to.contains(&source.time), "{days}: {}", source.time);
        assert_eq!(case.machine.kernel_release, "right", "{days}");
        let notes = &source.notes;
        assert!(notes[0].contains(&format!("table listed at {:.0} ", at(70).time)), "{days}: {notes:?}");
        assert!(
            !notes.iter().any(|note| note.contains("min before") || note.contains("min after")),
            "{notes:?}"
        );
        let told = format!("as read at {:.0}, when they had changed", at(60).time);
        assert!(notes.iter().any(|note| note.ends_with(&told)), "{days}: {notes:?}");
        assert_eq!(notrack(&report(&case, source, None)).refused[0].kind, ObjectionKind::NatRule);
    }
}

/// The table was listed in a run of another boot, whose clock was a year ahead until it was set back near its end.
#[test]
fn another_boot_is_as_far_away_as_the_host_was_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let ahead = jiff::SignedDuration::from_hours(365 * 24);
    let clock = |at: WallMono| {
        let by = if at.mono_us > testing::at(115).mono_us { jiff::SignedDuration::ZERO } else { ahead };
        WallMono { time: at.time + by, ..at }
    };
    drop(write_by_clock(&path, vec![listing(70)], vec![facts()], vec![], clock));
    let started = WallMono { time: at(600).time, mono_us: 1_000_000 };
    let run = crate::record::rows::Run { boot_id: Some("another".into()), started, ..run() };
    drop(Writer::open(&path, &run).unwrap());
    let timeline = Recording::open(&path).unwrap().timeline().unwrap();
    let off_us = timeline.place_us(2, started.mono_us) - timeline.place_us(1, at(120).mono_us);
    assert_eq!(off_us, 480_000_000);
    assert_eq!(timeline.place_us(1, at(120).mono_us) - timeline.place_us(1, at(70).mono_us), 50_000_000);
}

#[test]
fn what_could_not_be_read_or_is_not_there_any_more_is_unknown() {
    let note = Note { tool: "iptables-save".to_owned(), text: "rules are unknown".to_owned() };
    let advice = advised(vec![rules(1, false, vec![note])]);
    assert!(advice.notes.iter().any(|note| note == "iptables-save: rules are unknown"), "{:?}", advice.notes);
    let mut dropped = rules(1, false, vec![]);
    dropped.rules = None;
    let mut elsewhere = rules(1, false, vec![]);
    elsewhere.netns = NetnsId::from_packed(7);
    let mut damaged = rules(1, false, vec![]);
    damaged.rules.as_mut().unwrap().size += 1;
    let mut foreign = rules(1, false, vec![]);
    foreign.rules = Some(Packed::new(&serde_json::json!({"dump": 1})).unwrap());
    for (stored, why) in [
        (dropped, "dropped to keep the recording small"),
        (elsewhere, "of this netns were not recorded"),
        (damaged, "not as long as its row says"),
        (foreign, "another version"),
    ] {
        let advice = advised(vec![stored]);
        let item = notrack(&advice);
        assert!(item.commands.now.is_empty() && item.refused[0].kind == ObjectionKind::Unknown, "{item:?}");
        assert!(item.refused[0].rule.raw().contains(why), "{item:?}");
    }
}
