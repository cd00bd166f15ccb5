//! `ctwatch report` as people and scripts see it: the story's night in a recording, in all four formats.
//! The JSON goes through the schema test.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant as Stopwatch;

use crate::advice::machine;
use crate::fixtures::{HOST, censuses, golden, loss, of, time};
use crate::goldens::fits_80_columns;
use ctwatch::listing::Listing as Listed;
use ctwatch::model::{
    Backend, Direction, KernelCounters, NetnsId, Protocol, Role, TableEntry as Entry, TimeoutKind, WallMono,
};
use ctwatch::postmortem::{ReportFormat, Request, gather, render};
use ctwatch::record::Writer;
use ctwatch::record::rows::Names;
use ctwatch::record::rows::{
    EndReason, Incident, MachineSnapshot, Notice, Run, RunEnd, Setting, SnapshotReason, StoredListing,
};
use ctwatch::record::tick::{NetnsTick, Tick};
use ctwatch::record::writer::Batch;
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, SlotKey};
use jiff::tz::TimeZone;

const MAX: u32 = 262_144;

fn at(second: i64) -> WallMono {
    WallMono { time: time(second * 1_000), mono_us: second * 1_000_000 }
}

fn run() -> Run {
    Run {
        started: at(0),
        boot_id: Some("f00".into()),
        host: Some("web1".into()),
        version: "0.1.0".into(),
        kernel_release: "6.12.43+deb13-cloud-amd64".into(),
        backend: Backend::Kprobe,
        backend_reason: None,
        interval_us: 1_000_000,
        counts_flows: true,
        hooks: Vec::new(),
        since_boot: KernelCounters::default(),
        continues: false,
    }
}

/// The night, second by second: the table fills, is full for 20 s, and has room again.
fn tick(second: i64) -> Tick {
    let slot = |port, kind| SlotKey { netns: HOST, port, proto: 6, kind };
    let full = Cause::TableFull as u8;
    let mut tick = Tick::quiet(at(second).time, at(second).mono_us, 1_000_000);
    // As many entries leave as the count says.
    let (count, lost, left) = match second {
        1..=20 => (229_000 + 1_650 * second, 0, 560),
        21..=40 => (i64::from(MAX), 1, if second == 21 { 2_066 } else { 2_210 }),
        _ => (i64::from(MAX) - 4_000 * (second - 40), 0, 6_210),
    };
    let count = u32::try_from(count).ok();
    let losses = [
        (slot(80, full), 41 * lost),
        (slot(443, full), 97 * lost),
        (slot(443, Cause::Evicted as u8), 18 * lost),
        (slot(6379, full | KIND_LOOPBACK), (1_204 + second) * lost),
    ];
    tick.losses = losses.into_iter().filter(|(_, count)| *count > 0).collect();
    tick.losses.sort_by_key(|(key, _)| *key);
    let dropped = (41 + 97 + 1_204 + second) * lost;
    let netns = NetnsTick {
        id: NetnsId::from_packed(HOST),
        count,
        peak: count,
        max: Some(MAX),
        ..NetnsTick::default()
    };
    tick.netns = vec![NetnsTick { kernel: [dropped, 18 * lost, 0, 0], ..netns }];
    tick.flows = vec![(slot(443, KIND_FLOWS), [210, 210, 0]), (slot(6379, KIND_FLOWS), [2_210, left, 0])];
    tick.events_seen = (dropped + 18 * lost).unsigned_abs();
    tick
}

fn listing(second: i64) -> StoredListing {
    let mut census =
        Listed::new([(TimeoutKind::TimeWait, 120), (TimeoutKind::Established, 432_000)].into(), 15);
    for left in (0..120).flat_map(|left| std::iter::repeat_n(left, 1_500)) {
        let entry = Entry { proto: Protocol::TCP, port: 6379, tcp_state: 7, left, ..Entry::default() };
        census.add(&entry, Direction::Loopback);
    }
    for left in (0..120).flat_map(|left| std::iter::repeat_n(left, 300)) {
        census.add(
            &Entry { proto: Protocol::TCP, port: 443, tcp_state: 7, left, ..Entry::default() },
            Direction::In,
        );
    }
    for left in std::iter::repeat_n(431_000, 30_000) {
        census.add(
            &Entry { proto: Protocol::TCP, port: 80, tcp_state: 3, left, ..Entry::default() },
            Direction::In,
        );
    }
    StoredListing {
        netns: NetnsId::from_packed(HOST),
        reason: SnapshotReason::Trigger,
        at: at(second),
        took_us: 800_000,
        entries: 246_000,
        duplicates: 0,
        interrupted: false,
        census,
    }
}

fn batch(second: i64) -> Batch {
    let mut batch = Batch { tick: Some(tick(second)), ..Batch::default() };
    match second {
        1 => {
            let name = Names { name: Some("host".into()), container: None };
            batch.names = HashMap::from([(NetnsId::from_packed(HOST), name)]);
            let json = serde_json::to_string(&machine()).unwrap();
            batch.facts = vec![MachineSnapshot { at: at(0), reason: SnapshotReason::Start, json }];
            let night = batch.tick.as_mut().unwrap();
            night.censuses =
                censuses().into_iter().filter(|census| census.netns == NetnsId::from_packed(HOST)).collect();
            // It listed what the kernel counted.
            for census in &mut night.censuses {
                (census.keys[0].entries, census.keys[0].time_wait) = (154_872, 150_500);
                census.bases[0].entries = 154_872 - 1_650;
            }
        }
        12 => {
            let name = "net.netfilter.nf_conntrack_tcp_timeout_time_wait".to_owned();
            let (before, value) = (Some("60".to_owned()), Some("120".to_owned()));
            batch.settings = vec![Setting {
                at: at(12),
                name: name.into(),
                value: value.map(Into::into),
                before: before.map(Into::into),
            }];
        }
        21..=40 => {
            let redis = of("nginx", Role::Sender, Some("unit:nginx.service"), loss(false, 6));
            batch.events = vec![(redis, true), (loss(true, 6), true)];
            batch.listings = if second == 21 { vec![listing(21)] } else { Vec::new() };
        }
        45 => {
            let text = "the clock was set".to_owned();
            batch.notices = vec![Notice { at: at(45), code: "clock_step".into(), text: text.into() }];
        }
        _ => {}
    }
    batch
}

/// Writes the night as `name` beside the test binaries, which is where these tests run.
fn recorded(name: &str) -> PathBuf {
    recorded_with(name, |_, _| ())
}

/// The night with something else in the batch of a second.
pub fn recorded_with(name: &str, change: impl Fn(i64, &mut Batch)) -> PathBuf {
    static HERE: Once = Once::new();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // The report says which file it is of: the same on every machine only if the path is relative.
    HERE.call_once(|| std::env::set_current_dir(folder).expect("the folder for temporary files"));
    let path = PathBuf::from(name);
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{name}{ending}"));
    }
    let mut writer = Writer::open(&path, &run()).unwrap();
    for second in 1..=50 {
        let mut batch = batch(second);
        change(second, &mut batch);
        writer.write(&batch).unwrap();
    }
    let incident = Incident {
        condition: "drops>0".into(),
        tick: 21,
        at: at(21),
        measured: "{}".to_owned(),
        detail_from: 5,
        detail_to: 45,
        ceased: Some(at(41).time),
    };
    writer.write(&Batch { incidents: vec![incident], ..Batch::default() }).unwrap();
    writer.end(&RunEnd { at: at(50), reason: EndReason::Duration, last_tick: 50 }).unwrap();
    path
}

fn shown(files: &[PathBuf], format: ReportFormat) -> String {
    let request = Request { files: files.to_vec(), incident: None, from: None, to: None, anonymize: None };
    render(&gather(&request, "0.1.0", &TimeZone::UTC).unwrap(), format, &TimeZone::UTC).unwrap()
}

/// For the schema test: a night, and a recording without anything.
pub fn json() -> String {
    // Several tests ask for it at once.
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let number = ASKED.fetch_add(1, Ordering::Relaxed);
    let night = recorded(&format!("schema-{number}.ctw"));
    let empty = PathBuf::from(format!("schema-{number}-empty.ctw"));
    let _ = std::fs::remove_file(&empty);
    drop(Writer::open(&empty, &run()).unwrap());
    shown(&[night.clone(), empty], ReportFormat::Json) + &shown(&[night], ReportFormat::Json)
}

#[test]
fn the_night_in_text() {
    let text = shown(&[recorded("text.ctw")], ReportFormat::Text);
    // Commands are to be copied: they alone may be longer.
    let prose: Vec<&str> = text.lines().filter(|line| !line.starts_with("    ")).collect();
    fits_80_columns(&prose.join("\n"));
    golden("postmortem.txt", &text);
}

#[test]
fn the_night_in_markdown() {
    golden("postmortem.md", &shown(&[recorded("markdown.ctw")], ReportFormat::Markdown));
}

#[test]
fn the_night_in_json() {
    golden("postmortem.json", &shown(&[recorded("json.ctw")], ReportFormat::Json));
}

#[test]
fn the_night_in_html_is_one_file_without_scripts() {
    let html = shown(&[recorded("html.ctw")], ReportFormat::Html);
    assert!(!html.contains("<script") && !html.contains("href=") && !html.contains("src="), "{html}");
    assert_eq!(html.matches("<svg ").count(), 5);
    golden("postmortem.html", &html);
}

#[test]
fn several_hosts_stand_side_by_side() {
    let text = shown(&[recorded("one.ctw"), recorded("other.ctw")], ReportFormat::Text);
    assert_eq!(text.matches("SUMMARY").count(), 2);
    let head: String = text
        .lines()
        .take_while(|line| !line.starts_with("web1"))
        .map(|line| line.to_owned() + "\n")
        .collect();
    fits_80_columns(&head);
    golden("postmortem-hosts.txt", &head);
}

#[test]
fn what_is_there_is_not_written_over_and_an_incident_that_is_not_there_is_wrong_usage() {
    let path = recorded("usage.ctw");
    let there = std::path::absolute("usage.html").unwrap();
    std::fs::write(&there, "mine").unwrap();
    for (flags, words) in
        [(["-o", there.to_str().unwrap()], "there already"), (["--incident", "7"], "has no such incident")]
    {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        let output = command.arg("report").arg(&path).args(flags).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.contains(words)), (Some(2), true), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&there).unwrap(), "mine");
}

/// A measurement of the optimized build: `cargo test --release -p ctwatch --test reports -- --ignored --nocapture a_day`
#[test]
#[ignore = "takes a while to record a day"]
fn a_day_of_ticks_is_reported_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("day.ctw");
    let mut writer = Writer::open(&path, &run()).unwrap();
    for second in 1..=86_400_i64 {
        // The storm lasts half an hour.
        let storms = (40_000..41_800).contains(&second);
        let of = if storms { 30 } else { 45 };
        let mut batch = batch(of);
        batch.listings.clear();
        batch.notices.clear();
        let tick = batch.tick.as_mut().unwrap();
        (tick.time, tick.mono_us) = (at(second).time, at(second).mono_us);
        let extra = |n: u16| {
            (
                SlotKey {
                    netns: HOST,
                    port: 10_000 + (second as u16 % 64) * 8 + n,
                    proto: 6,
                    kind: KIND_FLOWS,
                },
                [3, 3, 0],
            )
        };
        tick.flows.extend((0..8).map(extra));
        tick.flows.sort_by_key(|(key, _)| *key);
        if storms {
            batch.events = std::iter::repeat_n(batch.events[0].clone(), 16).collect();
        }
        writer.write(&batch).unwrap();
    }
    drop(writer);
    let size = std::fs::metadata(&path).unwrap().len();
    let began = Stopwatch::now();
    let html = shown(&[path], ReportFormat::Html);
    let took = began.elapsed();
    println!(
        "a day: {} MB, reported in {:.2} s, {} kB of HTML",
        size >> 20,
        took.as_secs_f64(),
        html.len() >> 10
    );
    assert!(took.as_secs_f64() < 1.0, "{took:?}");
}
