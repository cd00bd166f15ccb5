//! Numbers that no kernel counts to and times that no clock shows, with checksums that are right: each is refused or
//! reckoned with, and nothing overflows.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use ctwatch::listing::{Listing, ServiceEntries, TimeoutBucket};
use ctwatch::machine::Machine;
use ctwatch::model::{
    Census, CensusKey, Direction, EntryState, FlowOffset, PortDetail, Protocol, TimeoutHistogram,
    TimeoutKind, WallMono,
};
use ctwatch::record::Writer;
use ctwatch::record::rows::{MachineSnapshot, Names, Notice, Run, Setting, SnapshotReason, StoredListing};
use ctwatch::record::writer::Batch;
use ctwatch::testing::{self, slot};
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK};
use jiff::Timestamp;

use super::figures::{readers, run};
use super::synthetic::{HOST, at, incident, listing, loss};

/// The ends of an integer, of what a file may hold, and of what fits elsewhere.
const NUMBERS: [i64; 7] = [i64::MIN, -1, 0, 1 << 32, 1 << 53, i64::MAX / 1000 + 1, i64::MAX];
const TIMES: [Timestamp; 3] = [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX];

/// Losses, arrivals, and all that advice asks for.
fn batches() -> Vec<Batch> {
    let names = HashMap::from([(HOST, Names { name: Some("host".into()), container: None })]);
    let machine = Machine { kernel_release: "6.12.1".to_owned(), ..Machine::default() };
    let json = serde_json::to_string(&machine).unwrap();
    let mut first =
        Batch { names, listings: vec![listing(2)], incidents: vec![incident(20)], ..Batch::default() };
    first.facts = vec![MachineSnapshot { at: at(0), reason: SnapshotReason::Start, json }];
    first.notices = vec![Notice { at: at(3), code: "events_lost".into(), text: "a word".into() }];
    first.settings = vec![Setting {
        at: at(3),
        name: "net.netfilter.nf_conntrack_max".into(),
        value: Some("3000".into()),
        before: Some("1".into()),
    }];
    let mut all = vec![first];
    for second in 1..=40 {
        let full = (20..30).contains(&second);
        let mut tick = testing::tick(at(second), if full { 3_000 } else { 1_500 }, 3_000);
        tick.flows = vec![(slot(6379, KIND_FLOWS), [50, 40, 0])];
        if full {
            tick.losses = vec![(slot(6379, Cause::TableFull as u8 | KIND_LOOPBACK), 50)];
            tick.netns[0].kernel = [50, 0, 0, 0];
            tick.events_seen = 50;
        }
        let events = if full { vec![(loss(second), true)] } else { Vec::new() };
        all.push(Batch { tick: Some(tick), events, ..Batch::default() });
    }
    all
}

/// A recording that advice can be had of.
pub fn base(path: &Path) -> Writer {
    let mut writer = Writer::open(path, &testing::run()).unwrap();
    for batch in batches() {
        writer.write(&batch).unwrap();
    }
    writer
}

type Change = Box<dyn Fn(&mut Run, &mut Vec<Batch>)>;

/// The batch with the tick that is changed, in the middle of the incident.
const PLACE: usize = 25;

fn changes() -> Vec<(String, Change)> {
    let mut all: Vec<(String, Change)> = Vec::new();
    macro_rules! number {
        ($name:literal, |$run:ident, $batches:ident, $number:ident| $change:expr) => {
            for number in NUMBERS {
                let change: Change = Box::new(move |$run: &mut Run, $batches: &mut Vec<Batch>| {
                    let $number = number;
                    let _ = (&$run, &$batches);
                    $change;
                });
                all.push((format!("{} = {number}", $name), change));
            }
        };
    }
    macro_rules! of_tick {
        ($name:literal, |$tick:ident, $number:ident| $change:expr) => {
            number!($name, |_run, batches, $number| {
                let $tick = batches[PLACE].tick.as_mut().unwrap();
                $change
            });
        };
    }
    number!("run.mono", |run, _batches, number| run.started.mono_us = number);
    number!("run.interval", |run, _batches, number| run.interval_us = number);
    number!("run.since_boot", |run, _batches, number| run.since_boot.drop = number.cast_unsigned());
    of_tick!("tick.mono", |tick, number| tick.mono_us = number);
    of_tick!("tick.interval", |tick, number| tick.interval_us = number);
    of_tick!("tick.kernel", |tick, number| tick.netns[0].kernel = [number; 4]);
    of_tick!("tick.width", |tick, number| tick.netns[0].width = [number; 4]);
    of_tick!("tick.losses", |tick, number| tick.losses[0].1 = number);
    of_tick!("tick.inserts", |tick, number| tick.flows[0].1 = [number, 0, 0]);
    of_tick!("tick.deletes", |tick, number| tick.flows[0].1 = [0, number, 0]);
    of_tick!("tick.failed", |tick, number| tick.flows[0].1 = [0, 0, number]);
    of_tick!("tick.overflow", |tick, number| tick.overflow.fill(number));
    of_tick!("tick.lost_events", |tick, number| tick.lost_events.fill(number));
    of_tick!("tick.ambiguous", |tick, number| tick.ambiguous = number);
    of_tick!("tick.flows_overflow", |tick, number| tick.flows_overflow = number);
    of_tick!("tick.unexplained", |tick, number| tick.unexplained = [number; 4]);
    of_tick!("tick.events_seen", |tick, number| tick.events_seen = number.cast_unsigned());
    of_tick!("tick.count", |tick, number| {
        tick.netns[0].count = Some(number as u32);
        tick.netns[0].peak = Some(number as u32);
    });
    of_tick!("tick.max", |tick, number| tick.netns[0].max = Some(number as u32));
    of_tick!("census", |tick, number| tick.censuses = vec![census(number)]);
    number!("listing.took", |_run, batches, number| batches[0].listings[0].took_us = number);
    number!("listing.entries", |_run, batches, number| batches[0].listings[0].entries =
        number.cast_unsigned());
    number!("listing.services", |_run, batches, number| batches[0].listings[0].census = services(number));
    number!("listing.mono", |_run, batches, number| batches[0].listings[0].at.mono_us = number);
    number!("incident.tick", |_run, batches, number| batches[0].incidents[0].tick = number);
    number!("incident.from", |_run, batches, number| batches[0].incidents[0].detail_from = number);
    number!("incident.to", |_run, batches, number| batches[0].incidents[0].detail_to = number);
    number!("notice.mono", |_run, batches, number| batches[0].notices[0].at.mono_us = number);
    number!("setting.mono", |_run, batches, number| batches[0].settings[0].at.mono_us = number);
    number!("facts.mono", |_run, batches, number| batches[0].facts[0].at.mono_us = number);
    number!("event", |_run, batches, number| {
        let (loss, _) = &mut batches[PLACE].events[0];
        loss.packet.at_ns = number.cast_unsigned();
        loss.packet.count = Some(number as u32);
        loss.packet.max = Some(0);
        loss.jiffies_per_s = Some(number as u32);
        loss.entry = loss.entry.map(|entry| EntryState { left_jiffies: number as i32, ..entry });
    });
    for time in TIMES {
        let at = |name: &str, change: fn(&mut Run, &mut Vec<Batch>, Timestamp)| -> (String, Change) {
            (format!("{name} = {time}"), Box::new(move |run, batches| change(run, batches, time)))
        };
        all.push(at("run.started", |run, _, time| run.started.time = time));
        all.push(at("tick.time", |_, batches, time| batches[PLACE].tick.as_mut().unwrap().time = time));
        all.push(at("event.time", |_, batches, time| batches[PLACE].events[0].0.time = time));
        all.push(at("incident.time", |_, batches, time| batches[0].incidents[0].at.time = time));
        all.push(at("incident.ceased", |_, batches, time| batches[0].incidents[0].ceased = Some(time)));
        all.push(at("listing.time", |_, batches, time| batches[0].listings[0].at.time = time));
        all.push(at("notice.time", |_, batches, time| batches[0].notices[0].at.time = time));
        all.push(at("setting.time", |_, batches, time| batches[0].settings[0].at.time = time));
        all.push(at("facts.time", |_, batches, time| batches[0].facts[0].at.time = time));
        all.push(at("all times", |run, batches, time| {
            run.started.time = time;
            for batch in batches {
                batch.tick.iter_mut().for_each(|tick| tick.time = time);
                batch.events.iter_mut().for_each(|(loss, _)| loss.time = time);
                batch.listings.iter_mut().for_each(|one| one.at = WallMono { time, ..one.at });
            }
        }));
    }
    all
}

fn census(number: i64) -> Census {
    let entries = number as u32;
    let mut detail = PortDetail::new(Protocol::TCP, Some(6379));
    detail.mix.tcp[7] = entries;
    detail.mix.assured = entries;
    detail.refreshed = TimeoutHistogram::from_sparse(&[(1, entries)]).unwrap();
    detail.expiring = detail.refreshed.clone();
    let key = |port| CensusKey { proto: Protocol::TCP, port, entries, assured: entries, time_wait: entries };
    Census {
        netns: HOST,
        keys: vec![key(80), key(6379)],
        details: vec![detail.clone(), PortDetail { port: Some(80), ..detail }],
        bases: vec![FlowOffset { proto: Protocol::TCP, port: 6379, entries: number }],
        replaces_offsets: true,
        timeouts: [(TimeoutKind::TimeWait, entries), (TimeoutKind::Udp, 0)].into(),
        exact: true,
    }
}

fn services(number: i64) -> Listing {
    let entries = number as u32;
    let idle = TimeoutHistogram::from_sparse(&[(0, entries), (3, entries)]).unwrap();
    let bucket = TimeoutBucket { timeout: entries, entries, idle, entered: entries };
    let phases = [TimeoutKind::TimeWait, TimeoutKind::Established].map(|kind| (kind, bucket.clone())).into();
    let service = ServiceEntries::restored(phases, Some(entries));
    let services = [(Protocol::TCP, 6379, Direction::Loopback), (Protocol::TCP, 80, Direction::In)]
        .map(|key| (key, service.clone()));
    Listing::restored([(TimeoutKind::TimeWait, entries)].into(), entries, services.into())
}

#[test]
fn numbers_beyond_all_counters_and_times_beyond_all_clocks_overflow_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut refusals = 0;
    for (what, change) in changes() {
        let (mut about, mut batches) = (testing::run(), batches());
        change(&mut about, &mut batches);
        let mut writer = Writer::open(&path, &about).unwrap();
        for batch in &batches {
            writer.write(batch).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        drop(writer);
        for (name, command) in readers(&path) {
            // The others show what these two reckon with.
            if !matches!(
                name,
                "report --format html" | "replay --speed max" | "export ndjson" | "advise" | "replay"
            ) {
                continue;
            }
            let ran = run(command);
            let bad = ran.error.contains("panicked") || !matches!(ran.status.code(), Some(0..=2));
            assert!(!bad && ran.took < Duration::from_secs(20), "{name}, {what}: {ran:?}");
            refusals += usize::from(ran.status.code() == Some(1));
        }
        std::fs::remove_file(&path).unwrap();
    }
    assert!(refusals > 100, "{refusals}");
}

/// Each number in the machine's facts, in turn.
#[test]
fn numbers_of_a_machine_that_there_is_not_overflow_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let facts = r#"{"total": 8000000000, "available": 100}"#;
    let mut machine = serde_json::to_value(Machine::default()).unwrap();
    machine["memory"] = serde_json::from_str(facts).unwrap();
    machine["cpus"] = 2.into();
    machine["table"]["max"] = 3000.into();
    machine["table"]["count"] = 3000.into();
    machine["table"]["buckets"] = 3000.into();
    machine["ephemeral_ports"] =
        serde_json::json!({"low": 1, "high": 9, "reserved": 3, "tw_reuse": 2, "timestamps": true});
    let places = places(&machine, String::new());
    assert!(places.len() > 8, "{places:?}");
    for place in places {
        for number in [0_u64, 1, u64::from(u32::MAX), u64::MAX] {
            let mut machine = machine.clone();
            *machine.pointer_mut(&place).unwrap() = number.into();
            let mut batches = batches();
            batches[0].facts[0].json = machine.to_string();
            let mut writer = Writer::open(&path, &testing::run()).unwrap();
            for batch in &batches {
                writer.write(batch).unwrap();
            }
            drop(writer);
            for (name, command) in
                readers(&path).into_iter().filter(|(name, _)| matches!(*name, "report" | "advise"))
            {
                let ran = run(command);
                let bad = ran.error.contains("panicked") || !matches!(ran.status.code(), Some(0 | 1));
                assert!(!bad, "{name}, {place} = {number}: {ran:?}");
            }
            std::fs::remove_file(&path).unwrap();
        }
    }
}

/// Where the numbers are.
fn places(json: &serde_json::Value, at: String) -> Vec<String> {
    match json {
        serde_json::Value::Number(_) => vec![at],
        serde_json::Value::Array(all) => {
            all.iter().enumerate().flat_map(|(place, one)| places(one, format!("{at}/{place}"))).collect()
        }
        serde_json::Value::Object(all) => {
            all.iter().flat_map(|(name, one)| places(one, format!("{at}/{name}"))).collect()
        }
        _ => Vec::new(),
    }
}

/// A listing's own time decides which window it is nearest to.
#[test]
fn a_listing_far_away_is_still_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut batches = batches();
    let far = WallMono { time: Timestamp::from_second(9_000_000_000).unwrap(), mono_us: i64::MAX / 1000 };
    batches[0].listings = vec![StoredListing { at: far, ..listing(2) }];
    let mut writer = Writer::open(&path, &testing::run()).unwrap();
    for batch in &batches {
        writer.write(batch).unwrap();
    }
    drop(writer);
    for (name, command) in readers(&path) {
        let ran = run(command);
        assert!(ran.status.success(), "{name}: {ran:?}");
    }
}
