//! A replay shows what a live run showed: the same samples go into a state live, and through a file.
//! The rest is what the program says about files, spans and gaps.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ctwatch::contract::{End, Tick};
use ctwatch::model::{
    Backend, FlowSample, KernelCounters, NetnsAccess, NetnsId, NetnsSample, Sample, SlotSample,
};
use ctwatch::record::delta_encoder::DeltaEncoder;
use ctwatch::record::replay::Replay;
use ctwatch::record::rows::Names;
use ctwatch::record::rows::{EndReason, RunEnd};
use ctwatch::record::span::Span;
use ctwatch::record::writer::Batch;
use ctwatch::record::{Recording, Writer};
use ctwatch::state::{By, Filter, State, StateConfig};
use ctwatch::view::View as _;
use ctwatch::view::json::JsonView;
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, SlotKey};
use proptest::prelude::*;
use serde_json::Value;

use super::synthetic::{HOST, at, loss, run, write};

/// What moves in a second: losses by port and cause, new and ended flows, entries, and losses the kernel alone counts.
type Second = (Vec<(u16, u8, u64)>, u64, u64, u32, u64);

fn seconds() -> impl Strategy<Value = Vec<Second>> {
    let lost = (79..82u16, prop::sample::select(vec![1u8, 3, 8, 1 | KIND_LOOPBACK]), 0..50u64);
    let second = (prop::collection::vec(lost, 0..5), 0..40u64, 0..40u64, 0..1000u32, 0..2u64);
    prop::collection::vec(second, 2..25)
}

/// What a watch sees of it.
fn samples(seconds: &[Second]) -> Vec<Sample> {
    let mut slots: HashMap<SlotKey, [u64; 3]> = HashMap::new();
    let (mut kernel, mut lost_events) = (KernelCounters::default(), [0; CAUSES]);
    let mut samples = Vec::new();
    for (second, (lost, new, ended, count, alone)) in (1..).zip(seconds) {
        let before = kernel;
        let slot = |port, kind| SlotKey { netns: HOST.packed(), port, proto: 6, kind };
        for (port, kind, losses) in lost {
            slots.entry(slot(*port, *kind)).or_default()[0] += losses;
            match kind & !KIND_LOOPBACK {
                8 => kernel.early_drop += losses,
                3 => {
                    (kernel.drop, kernel.insert_failed) =
                        (kernel.drop + losses, kernel.insert_failed + losses)
                }
                _ => kernel.drop += losses,
            }
        }
        kernel.drop += alone;
        lost_events[1] += alone;
        let flows = slots.entry(slot(80, KIND_FLOWS)).or_default();
        (flows[0], flows[1]) = (flows[0] + new, flows[1] + ended);
        let sample = |(key, [count, deletes, failed]): (&SlotKey, &[u64; 3])| SlotSample {
            key: *key,
            count: *count,
            deletes: *deletes,
            failed: *failed,
        };
        let netns = NetnsSample {
            id: HOST,
            name: Some("host".into()),
            container: None,
            count: Some(*count),
            max: Some(1000),
            before,
            after: kernel,
            gone: false,
            complete: false,
            access: NetnsAccess::Readable,
        };
        let mut slots: Vec<SlotSample> = slots.iter().map(sample).collect();
        slots.sort_by_key(|slot| slot.key);
        samples.push(Sample {
            mono_us: 0,
            counters_from: None,
            time: at(second).time,
            interval_s: 1.0,
            netns: vec![netns],
            slots,
            retired: Vec::new(),
            overflow: [0; CAUSES],
            lost_events,
            ambiguous: 0,
            flows: FlowSample::default(),
        });
    }
    samples
}

fn settings(by: By) -> StateConfig {
    StateConfig {
        by,
        filter: Filter::default(),
        top: 20,
        drop_events: true,
        insert_events: false,
        count_flows: true,
        backend: Backend::Kprobe,
    }
}

/// Records samples, each with one loss, of which it says that `seen` came.
fn record(path: &Path, samples: &[Sample], seen: u64) {
    let mut writer = Writer::open(path, &run()).unwrap();
    let mut encoder = DeltaEncoder::default();
    for (second, sample) in (1..).zip(samples) {
        let mut tick = encoder.tick(&Sample { mono_us: at(second).mono_us, ..sample.clone() });
        tick.events_seen = seen;
        let name = Names { name: Some("host".into()), container: None };
        writer
            .write(&Batch {
                tick: Some(tick),
                names: HashMap::from([(HOST, name)]),
                events: vec![(loss(second), false)],
                ..Batch::default()
            })
            .unwrap();
    }
    let last_tick = samples.len() as i64;
    writer.end(&RunEnd { at: at(last_tick), reason: EndReason::Signal, last_tick }).unwrap();
}

fn replayed(path: &Path, span: Span, by: By) -> (Vec<Tick>, End) {
    let recording = Recording::open(path).unwrap();
    let runs = recording.runs().unwrap();
    let mut replay = Replay::new(&recording, &runs[0], span, true).unwrap();
    let mut state = State::new(settings(by));
    let mut ticks = Vec::new();
    while let Some(step) = replay.step().unwrap() {
        if step.is_sampled {
            state.mark_sampled();
        }
        for loss in &step.losses {
            state.loss(loss);
        }
        if step.is_shown {
            ticks.push(state.sample(&step.sample));
        } else {
            state.advance(&step.sample);
        }
    }
    (ticks, state.end(at(1000).time))
}

fn text(ticks: &[Tick], end: &End) -> String {
    let mut out = Vec::new();
    let mut view = JsonView::new(&mut out);
    for tick in ticks {
        view.tick(tick).unwrap();
    }
    view.end(end).unwrap();
    drop(view);
    String::from_utf8(out).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_replay_is_the_live_run(seconds in seconds(), by in prop::sample::select(vec![By::Port, By::Cause, By::Netns, By::Flow, By::Process])) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ctw");
        let samples = samples(&seconds);
        record(&path, &samples, 1);
        let mut state = State::new(settings(by));
        let mut live = Vec::new();
        for (second, sample) in (1..).zip(&samples) {
            state.loss(&loss(second));
            live.push(state.sample(sample));
        }
        let end = state.end(at(1000).time);
        let (ticks, replayed_end) = replayed(&path, Span::default(), by);
        prop_assert_eq!(text(&ticks, &replayed_end), text(&live, &end));
    }

    #[test]
    fn spans_side_by_side_add_up_to_the_run(seconds in seconds(), cut in 1..25i64) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ctw");
        let samples = samples(&seconds);
        record(&path, &samples, 1);
        let cut = Some(at(cut).time);
        let (_, whole) = replayed(&path, Span::default(), By::Port);
        let (before, first) = replayed(&path, Span { from: None, to: cut }, By::Port);
        let (after, second) = replayed(&path, Span { from: cut, to: None }, By::Port);
        prop_assert_eq!(before.len() + after.len(), samples.len());
        let mut sum = first.counted;
        for (sum, more) in sum.0.iter_mut().zip(second.counted.0) {
            *sum += more;
        }
        prop_assert_eq!(sum, whole.counted);
        let counters = |of: fn(&KernelCounters) -> u64| {
            (of(&first.kernel_counters) + of(&second.kernel_counters), of(&whole.kernel_counters))
        };
        for (sum, whole) in [counters(|c| c.drop), counters(|c| c.early_drop), counters(|c| c.insert_failed)] {
            prop_assert_eq!(sum, whole);
        }
        prop_assert_eq!(first.lost_events + second.lost_events, whole.lost_events);
        let lost = |end: &End| end.rows.iter().map(|row| row.losses).sum::<u64>();
        prop_assert_eq!(lost(&first) + lost(&second), lost(&whole));
    }
}

#[test]
fn rows_made_of_a_sample_are_lower_bounds_and_those_of_counters_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let samples = samples(&[(vec![(80, 1, 9)], 1, 1, 5, 0), (vec![(80, 1, 9)], 1, 1, 5, 0)]);
    record(&path, &samples, 9);
    let (_, end) = replayed(&path, Span::default(), By::Flow);
    assert!(!end.rows.is_empty() && end.rows.iter().all(|row| !row.exact), "{:?}", end.rows);
    let (_, end) = replayed(&path, Span::default(), By::Port);
    assert!(end.rows.iter().all(|row| row.exact) && end.rows[0].losses == 18, "{:?}", end.rows);
}

#[test]
#[ignore = "takes a minute: cargo test --release -p ctwatch --test record -- --ignored --nocapture"]
fn a_day_takes_minutes_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("day.ctw");
    drop(write(&path, 86_400));
    for by in ["port", "flow"] {
        let began = std::time::Instant::now();
        let output = ctwatch(&[path.to_str().unwrap(), "--speed", "max", "--by", by]);
        assert!(output.status.success());
        let (took, size) = (began.elapsed(), std::fs::metadata(&path).unwrap().len());
        println!("by {by}: {took:.2?} for {size} bytes");
        assert!(took.as_secs() < 180, "{took:?}");
    }
}

/// There is a census every ten seconds. A forecast has models for 64 of these 100 ports, and which ones is left to chance.
#[test]
fn a_span_knows_who_fills_the_table_as_the_whole_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 60));
    let tables = |span| {
        let (ticks, _) = replayed(&path, span, By::Port);
        let about = |tick: &Tick| {
            let table = &tick.tables[0];
            (tick.time, table.occupants.clone(), table.occupancy_exact, table.new_per_s)
        };
        ticks.iter().map(about).collect::<Vec<_>>()
    };
    let part = tables(Span { from: Some(at(35).time), to: None });
    assert!(part[0].1.as_ref().is_some_and(|occupants| !occupants.is_empty()));
    let same = format!("{part:?}") == format!("{:?}", &tables(Span::default())[35..]);
    assert!(same, "what is before a span counts, too");
}

fn ctwatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ctwatch")).arg("replay").args(arguments).output().unwrap()
}

fn lines(arguments: &[&str]) -> Vec<Value> {
    let output = ctwatch(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn codes(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line["code"].as_str()).collect()
}

#[test]
fn every_run_has_a_start_and_an_end_and_what_is_missing_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 30));
    let mut later = run();
    later.started = at(100);
    let mut writer = Writer::open(&path, &later).unwrap();
    for second in 101..=103 {
        writer.write(&super::synthetic::batch(second)).unwrap();
    }
    writer.end(&RunEnd { at: at(103), reason: EndReason::DiskFull, last_tick: 33 }).unwrap();
    let file = path.to_str().unwrap();
    let lines = lines(&[file, "--speed", "max", "--format", "json", "--by", "src"]);
    let count = |kind: &str| lines.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((count("start"), count("tick"), count("end"), count("drop")), (2, 33, 2, 0));
    let codes = codes(&lines);
    for code in ["replay", "events_sampled", "no_end", "gap", "disk_full", "setting_changed", "events_lost"] {
        assert!(codes.contains(&code), "{code}: {codes:?}");
    }
    let end = lines.last().unwrap();
    assert_eq!((end["type"].as_str(), end["duration_s"].as_f64()), (Some("end"), Some(3.0)));
}

#[test]
fn a_span_says_where_its_totals_begin() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 60));
    let file = path.to_str().unwrap();
    let shown = |from: &str, to: &str| {
        lines(&[file, "--speed", "max", "--format", "json", "--from", from, "--to", to, "--events"])
    };
    let some = shown("+20s", "-30s");
    let ticks: Vec<&Value> = some.iter().filter(|line| line["type"] == "tick").collect();
    assert_eq!((ticks.len(), codes(&some).contains(&"span")), (10, true));
    assert_eq!(ticks[0]["time"], "2023-11-14T22:13:41.000Z");
    assert_eq!(some.iter().filter(|line| line["type"] == "drop").count(), 10);
    assert_eq!(some.last().unwrap()["duration_s"], 10.0);
}

#[test]
fn namespaces_that_had_one_inode_number_are_chosen_as_ctwatch_prints_them() {
    let lives = [0, 1].map(|generation| NetnsId::new(4_026_532_299, generation));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let [mut sample] = <[Sample; 1]>::try_from(samples(&[(vec![(80, 1, 100)], 0, 0, 100, 0)])).unwrap();
    let [first] = <[NetnsSample; 1]>::try_from(std::mem::take(&mut sample.netns)).unwrap();
    sample.netns = lives.map(|id| NetnsSample { id, name: None, ..first.clone() }).into();
    let [lost] = <[SlotSample; 1]>::try_from(
        std::mem::take(&mut sample.slots).into_iter().filter(|slot| slot.key.kind == 1).collect::<Vec<_>>(),
    )
    .unwrap();
    sample.slots = lives
        .iter()
        .zip([100, 200])
        .map(|(id, count)| SlotSample { key: SlotKey { netns: id.packed(), ..lost.key }, count, ..lost })
        .collect();
    let mut writer = Writer::open(&path, &run()).unwrap();
    let tick = Some(DeltaEncoder::default().tick(&Sample { mono_us: at(1).mono_us, ..sample }));
    let names = lives.map(|id| (id, Names { name: None, container: None })).into();
    writer.write(&Batch { tick, names, ..Batch::default() }).unwrap();
    drop(writer);
    let file = path.to_str().unwrap();
    let losses = |netns: &str| {
        let lines = lines(&[file, "--speed", "max", "--format", "json", "--netns", netns]);
        let rows = lines
            .iter()
            .filter(|line| line["type"] == "tick")
            .flat_map(|tick| tick["rows"].as_array().unwrap());
        let mut losses: Vec<u64> = rows.map(|row| row["losses"].as_u64().unwrap()).collect();
        losses.sort_unstable();
        losses
    };
    assert_eq!(losses("4026532299"), [100, 200]);
    assert_eq!(losses("net:[4026532299]"), [100, 200]);
    assert_eq!(losses("net:[4026532299]#0"), [100]);
    assert_eq!(losses(&lives[1].to_string()), [200]);
    let refused = ctwatch(&[file, "--netns", "blue"]);
    let refused = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.contains("there are net:[4026532299], net:[4026532299]#1"), "{refused}");
}

#[test]
fn wrong_usage_and_wrong_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 5));
    let file = path.to_str().unwrap();
    let says = |arguments: &[&str], code: i32, words: &str| {
        let output = ctwatch(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), error.contains(words)),
            (Some(code), true),
            "{arguments:?}: {error}"
        );
    };
    says(&[file, "--netns", "blue"], 2, "there are host");
    says(&[file, "--netns", &format!("{HOST}#1")], 2, "there are host");
    says(&[file, "--netns", "pid:1"], 2, "a name or an inode");
    says(&[file, "--from", "+1h"], 2, "the recording covers");
    says(&[file, "--from", "soon"], 2, "+10m");
    says(&[file, "--speed", "0"], 2, "max");
    says(&["/nonexistent.ctw"], 1, "no such file");
    says(&["/dev/null"], 1, "not a regular file");
}

#[test]
fn a_closed_pipe_and_ctrl_c_end_it_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 3000));
    let start = |speed: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        command.args(["replay", path.to_str().unwrap(), "--format", "json", "--speed", speed]);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut child = start("max");
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let mut child = start("1");
    let mut reader = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    std::io::BufRead::read_line(&mut reader, &mut first).unwrap();
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut reader, &mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(rest.lines().last().unwrap().contains("\"type\":\"end\""), "{rest}");
}
