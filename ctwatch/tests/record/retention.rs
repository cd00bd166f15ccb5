//! A recording stays as small and as young as it was told to, and its totals stay right.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ctwatch::model::{NetnsId, Owner, WallMono};
use ctwatch::record::rows::{Names, Notice, Run};
use ctwatch::record::tick::{NetnsTick, Presence, Tick};
use ctwatch::record::writer::Batch;
use ctwatch::record::{Recording, Retention, RetentionLimits, Writer};
use ctwatch::testing::slot;
use ctwatch_common::slot::{KIND_LOOPBACK, SlotKey};

use super::synthetic::{at, batch, incident, run, write};

const NEVER: RetentionLimits = RetentionLimits {
    keep: Duration::from_secs(1 << 31),
    max_size: u64::MAX,
    detail: Duration::from_secs(1 << 31),
};

type Totals = BTreeMap<SlotKey, [i64; 3]>;

fn totals(path: &Path) -> Totals {
    let recording = Recording::open(path).unwrap();
    recording.verify().unwrap();
    let mut totals = Totals::new();
    for run in recording.runs().unwrap() {
        for tick in recording.ticks(&run, i64::MIN..=i64::MAX).unwrap() {
            let tick = tick.unwrap().tick;
            for (key, losses) in tick.losses {
                totals.entry(key).or_default()[0] += losses;
            }
            for (key, counts) in tick.flows {
                for (sum, more) in totals.entry(key).or_default().iter_mut().zip(counts) {
                    *sum += more;
                }
            }
        }
    }
    totals
}

fn ticks_by_level(path: &Path) -> BTreeMap<u8, usize> {
    let recording = Recording::open(path).unwrap();
    let mut levels = BTreeMap::new();
    for run in recording.runs().unwrap() {
        for tick in recording.ticks(&run, i64::MIN..=i64::MAX).unwrap() {
            *levels.entry(tick.unwrap().level).or_default() += 1;
        }
    }
    levels
}

fn record(limits: RetentionLimits, seconds: i64) -> (tempfile::TempDir, std::path::PathBuf) {
    record_by_clock(limits, seconds, |second| at(second).time)
}

/// With ticks labelled by this wall clock.
fn record_by_clock(
    limits: RetentionLimits,
    seconds: i64,
    clock: impl Fn(i64) -> jiff::Timestamp,
) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut retention = Retention::new(limits);
    for second in 1..=seconds {
        let mut batch = batch(second);
        batch.tick.as_mut().unwrap().time = clock(second);
        if second == 1000 {
            batch.incidents = vec![incident(1000)];
        }
        writer.write(&batch).unwrap();
        retention.step(&mut writer, at(second).mono_us).unwrap();
    }
    drop(writer);
    (folder, path)
}

#[test]
fn a_small_file_holds_the_same_totals_and_the_incident_in_detail() {
    let (_whole, whole) = record(NEVER, 6000);
    let (_thin, thin) = record(RetentionLimits { max_size: 1 << 20, ..NEVER }, 6000);
    assert_eq!(totals(&whole), totals(&thin));
    let (before, after) = (std::fs::metadata(&whole).unwrap().len(), std::fs::metadata(&thin).unwrap().len());
    assert!(before > 5 << 19 && after < (1 << 20) + (1 << 18), "{before} bytes became {after}");
    let levels = ticks_by_level(&thin);
    assert!(levels.len() > 2 && levels[&0] > 100, "{levels:?}");
    let recording = Recording::open(&thin).unwrap();
    let run = recording.runs().unwrap().remove(0);
    let around = recording.ticks(&run, 998..=1005).unwrap();
    assert!(around.map(Result::unwrap).all(|tick| tick.level == 0), "the incident is kept in detail");
    let detail = recording.losses(1000..=1000).unwrap();
    assert_eq!(detail.len(), 1);
}

#[test]
fn what_is_too_old_becomes_a_sum_and_an_old_run_goes() {
    let keep = RetentionLimits { keep: Duration::from_secs(600), ..NEVER };
    let (_whole, whole) = record(NEVER, 3000);
    let (_kept, kept) = record(keep, 3000);
    assert_eq!(totals(&whole), totals(&kept));
    let levels = ticks_by_level(&kept);
    assert_eq!(levels.keys().copied().collect::<Vec<_>>(), [0, 4]);
    assert!(levels[&0] < 1300 && levels[&4] <= 2, "{levels:?}");
    let mut writer = write(&kept, 1);
    let mut retention = Retention::new(keep);
    for second in 0..200 {
        writer.write(&Batch::default()).unwrap();
        retention.step(&mut writer, at(100_000 + second).mono_us).unwrap();
    }
    drop(writer);
    let recording = Recording::open(&kept).unwrap();
    recording.verify().unwrap();
    assert_eq!(
        recording.runs().unwrap().iter().map(|run| run.id).collect::<Vec<_>>(),
        [1, 2],
        "it has an incident"
    );
}

/// Whenever ticks are added to a sum, all its slots are written anew.
#[test]
fn a_sum_takes_many_ticks_at_a_time_and_none_stays_much_longer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut retention = Retention::new(RetentionLimits { keep: Duration::from_secs(400), ..NEVER });
    let reader = rusqlite::Connection::open(&path).unwrap();
    let mut sums = Vec::new();
    for second in 1..=1500 {
        writer.write(&batch(second)).unwrap();
        retention.step(&mut writer, at(second).mono_us).unwrap();
        let sum: Option<i64> =
            reader.query_row("SELECT max(id) FROM tick WHERE level = 4", [], |row| row.get(0)).unwrap();
        sums.extend(sum.filter(|sum| sums.last() != Some(sum)));
        // An eighth of what is kept, and eight ticks between two checks.
        assert!(second - sum.unwrap_or(0) <= 400 + 50 + 8, "{second}: ticks to {sum:?} are in the sum");
    }
    assert!((18..=22).contains(&sums.len()), "{sums:?}");
    // What is in the sum is older than was asked for.
    assert!(sums.last().unwrap() < &1100, "{sums:?}");
    drop(writer);
    assert_eq!(ticks_by_level(&path)[&4], 1);
}

#[test]
fn detail_that_no_incident_claimed_is_dropped() {
    let (_folder, path) = record(RetentionLimits { detail: Duration::from_secs(60), ..NEVER }, 2000);
    let recording = Recording::open(&path).unwrap();
    let kept = recording.losses(1..=1900).unwrap();
    // Even seconds are detail: of these only the incident's are left.
    let even: Vec<i64> = kept.iter().map(|(tick, _)| *tick).filter(|tick| tick % 2 == 0).collect();
    assert_eq!(even, [998, 1000, 1002, 1004]);
    assert_eq!(kept.len(), 950 + 4);
}

/// A host on which each loss has another process, as where clients live for a moment.
#[test]
fn processes_that_are_named_no_more_make_room_before_an_incident_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut retention =
        Retention::new(RetentionLimits { max_size: 1 << 20, detail: Duration::from_secs(2), ..NEVER });
    for second in 1..=1500 {
        let mut batch = batch(second);
        if second == 100 {
            batch.incidents = vec![incident(100)];
        }
        let (loss, _) = batch.events[0].clone();
        batch.events = (0..40)
            .map(|place| {
                let mut loss = loss.clone();
                let mut who = Owner::clone(loss.owner.as_ref().unwrap());
                if let Some(process) = &mut who.process {
                    process.pid = u32::try_from(second * 40 + place).unwrap();
                }
                loss.owner = Some(Arc::new(who));
                (loss, true)
            })
            .collect();
        writer.write(&batch).unwrap();
        retention.step(&mut writer, at(second).mono_us).unwrap();
    }
    drop(writer);
    let count = |sql: &str| {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let owners = count("SELECT count(*) FROM owner");
    assert!(owners < 20_000, "{owners} owners of 60,000 are left");
    assert_eq!(count("SELECT count(*) FROM incident"), 1);
    assert_eq!(count("SELECT count(*) FROM event WHERE owner NOT IN (SELECT id FROM owner)"), 0);
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size < 3 << 20, "{size} bytes");
    Recording::open(&path).unwrap().verify().unwrap();
}

#[test]
fn the_oldest_rules_go_first_and_those_of_an_incident_and_the_newest_stay() {
    use super::synthetic::rules;
    use ctwatch::record::rows::SnapshotReason::{Changed, Start};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let heavy = |second, reason| {
        let mut stored = rules(second, reason);
        // Such as nothing compresses.
        stored.rules.as_mut().unwrap().bytes =
            (0..4096_u32).flat_map(|n| (n * second as u32).to_le_bytes()).collect();
        stored
    };
    // Each takes 16 KiB, and all may take 64.
    let mut retention = Retention::new(RetentionLimits { max_size: 8 * (64 << 10), ..NEVER });
    for second in 1..=64 {
        let mut batch = Batch { tick: batch(second).tick, ..Batch::default() };
        if second % 8 == 1 {
            let reason = if second == 1 { Start } else { Changed };
            batch.rules = vec![heavy(second, reason)];
        }
        if second == 20 {
            batch.incidents = vec![incident(20)];
        }
        writer.write(&batch).unwrap();
        retention.step(&mut writer, at(second).mono_us).unwrap();
    }
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let kept: Vec<_> = recording.rules(1).unwrap().iter().map(|one| one.rules.is_some()).collect();
    // Read at 1, 9, 17 (in force at the incident), 25, … 57.
    assert_eq!(kept, [false, false, true, false, false, true, true, true]);
    assert_eq!(recording.rules(1).unwrap()[0].reason, Start);
}

/// The wall clock of a second: set ahead by 400 days a third of the way, and then back by 400 days from where it was.
fn stepped(second: i64) -> jiff::Timestamp {
    let by = match second {
        ..1000 => 0,
        1000..2000 => 400 * 24,
        _ => -400 * 24,
    };
    at(second).time + jiff::SignedDuration::from_hours(by)
}

#[test]
fn a_wall_clock_that_is_set_makes_nothing_older_and_breaks_no_order() {
    for limits in [
        NEVER,
        RetentionLimits { keep: Duration::from_secs(600), ..NEVER },
        RetentionLimits { detail: Duration::from_secs(60), ..NEVER },
        RetentionLimits { max_size: 1 << 20, ..NEVER },
    ] {
        let (_straight, straight) = record(limits, 3000);
        let (_stepped, stepped) = record_by_clock(limits, 3000, stepped);
        let ticks = |path: &Path| {
            let recording = Recording::open(path).unwrap();
            recording.verify().unwrap();
            let run = recording.runs().unwrap().remove(0);
            let ticks: Vec<_> =
                recording.ticks(&run, i64::MIN..=i64::MAX).unwrap().map(Result::unwrap).collect();
            let detail: Vec<i64> =
                recording.losses(1..=3000).unwrap().into_iter().map(|(tick, _)| tick).collect();
            (ticks.iter().map(|one| (one.id, one.level, one.tick.mono_us)).collect::<Vec<_>>(), detail)
        };
        let (kept, detail) = ticks(&stepped);
        assert!(kept.is_sorted_by_key(|(_, _, mono_us)| *mono_us));
        assert_eq!((kept, detail), ticks(&straight), "{limits:?}");
        assert_eq!(totals(&straight), totals(&stepped));
    }
}

#[test]
fn readers_take_a_recording_whose_clock_was_set() {
    let (_folder, path) = record_by_clock(NEVER, 2200, stepped);
    for arguments in [
        &["replay", "--speed", "max", "--format", "json"][..],
        &["replay", "--speed", "max", "--from", "+1m"],
        &["report"],
        &["report", "--format", "html"],
        &["export", "--to", "ndjson"],
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ctwatch"))
            .args(&arguments[..1])
            .arg(&path)
            .args(&arguments[1..])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {said}");
        if arguments.contains(&"json") {
            let lines: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stdout)
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            let ticks = lines.iter().filter(|line| line["type"] == "tick");
            assert_eq!(ticks.count(), 2200);
            assert_eq!(lines.iter().filter(|line| line["code"] == "clock_stepped").count(), 2);
            let end = lines.last().unwrap();
            assert_eq!(end["duration_s"], 2200.0);
        }
    }
}

/// The first run is a day long and of another boot, and the clock was set while it went on.
#[test]
fn a_run_of_another_boot_is_as_old_as_it_is() {
    for (off, is_gone) in [(0, false), (2, true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ctw");
        let keep = RetentionLimits { keep: Duration::from_secs(3600), ..NEVER };
        let mut writer = write(&path, 0);
        for second in 1..=2500 {
            let mut batch = batch(second);
            batch.tick.as_mut().unwrap().time = stepped(second);
            writer.write(&batch).unwrap();
        }
        drop(writer);
        let started =
            WallMono { time: stepped(2500) + jiff::SignedDuration::from_hours(off), mono_us: 5_000_000 };
        let run = Run { boot_id: Some("another".into()), started, ..run() };
        let mut writer = Writer::open(&path, &run).unwrap();
        let mut retention = Retention::new(keep);
        for second in 1..100 {
            let mono_us = started.mono_us + second * 1_000_000;
            let tick = Tick::quiet(started.time, mono_us, 1_000_000);
            writer.write(&Batch { tick: Some(tick), ..Batch::default() }).unwrap();
            retention.step(&mut writer, mono_us).unwrap();
        }
        drop(writer);
        let runs = Recording::open(&path).unwrap().runs().unwrap();
        assert_eq!(runs.len(), if is_gone { 1 } else { 2 }, "off for {off} h");
        if !is_gone {
            assert_eq!(ticks_by_level(&path).keys().copied().collect::<Vec<_>>(), [0]);
        }
    }
}

/// Containers come and go, each with a port of its own, and notices come all the time.
#[test]
fn what_comes_and_goes_leaves_a_file_that_does_not_grow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut retention = Retention::new(RetentionLimits { keep: Duration::from_secs(150), ..NEVER });
    let (mut lost, mut moved) = (0, 0);
    let mut sizes = Vec::new();
    for second in 1..=5400i64 {
        let mut tick = Tick::quiet(at(second).time, at(second).mono_us, 1_000_000);
        let netns = |second: i64| NetnsId::from_packed(4_026_540_000 + second as u32);
        let there = |presence| NetnsTick {
            id: netns(second),
            presence,
            count: Some(7),
            peak: Some(7),
            max: Some(100),
            kernel: [3, 0, 0, 0],
            ..NetnsTick::default()
        };
        tick.netns = vec![
            NetnsTick { id: netns(second - 1), presence: Presence::Absent, ..NetnsTick::default() },
            there(Presence::Present),
        ];
        let key = SlotKey {
            netns: netns(second).packed(),
            port: (second % 60_000) as u16,
            ..slot(1, 1 | KIND_LOOPBACK)
        };
        tick.losses = vec![(key, 3)];
        (lost, moved) = (lost + 3, moved + 3);
        let names = Names { name: Some(format!("container-{second}").into()), container: None };
        let notice = Notice { at: at(second), code: "exec_failed".into(), text: "x".repeat(200).into() };
        let batch = Batch {
            tick: Some(tick),
            names: [(netns(second), names)].into(),
            notices: vec![notice; 3],
            ..Batch::default()
        };
        writer.write(&batch).unwrap();
        retention.step(&mut writer, at(second).mono_us).unwrap();
        if second % 1800 == 0 {
            sizes.push(std::fs::metadata(&path).unwrap().len());
        }
    }
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let run = recording.runs().unwrap().remove(0);
    let ticks: Vec<_> = recording.ticks(&run, i64::MIN..=i64::MAX).unwrap().map(Result::unwrap).collect();
    let total = |of: &dyn Fn(&Tick) -> i64| ticks.iter().map(|one| of(&one.tick)).sum::<i64>();
    let losses = total(&|tick| tick.losses.iter().map(|(_, losses)| losses).sum::<i64>());
    let overflow = total(&|tick| tick.overflow.iter().sum());
    assert_eq!(losses + overflow, lost, "totals stay exact");
    assert!(overflow > 0, "of ports used once only so many keep a row");
    assert_eq!(total(&|tick| tick.netns.iter().map(|netns| netns.kernel[0]).sum()), moved);
    let names = recording.names(run.id).unwrap();
    assert!(names.len() < 2600, "{} namespaces", names.len());
    let notices = recording.notices(run.id).unwrap().len();
    assert!(notices < 4096 + 3 * 400, "{notices} notices");
    assert!(sizes[2] < sizes[1] + (1 << 18), "{sizes:?}");
}

/// Names come and go for months, each with a number one higher; a port of the host's own is in use all the time.
#[test]
fn names_with_numbers_far_apart_are_found_and_downsampled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut retention = Retention::new(RetentionLimits { max_size: 1 << 18, ..NEVER });
    let other = rusqlite::Connection::open(&path).unwrap();
    let mut lost = Totals::new();
    for second in 1..=3000i64 {
        let mut tick = Tick::quiet(at(second).time, at(second).mono_us, 1_000_000);
        let young = SlotKey {
            netns: 4_026_540_000 + (second / 300) as u32,
            ..slot((second / 30) as u16, 1 | KIND_LOOPBACK)
        };
        let old = slot(6379, 1 | KIND_LOOPBACK);
        tick.losses = vec![(old, 1), (young, 2)];
        tick.losses.sort_by_key(|(key, _)| *key);
        for (key, losses) in &tick.losses {
            lost.entry(*key).or_default()[0] += losses;
        }
        writer.write(&Batch { tick: Some(tick), ..Batch::default() }).unwrap();
        if second % 300 == 0 {
            // Those that came and went meanwhile.
            for sql in [
                "INSERT INTO slot SELECT id + 40000, netns, proto, port, 9, loopback, unattributed FROM slot ORDER BY id DESC LIMIT 1",
                "INSERT INTO netns SELECT id + 40000, run, number + 1000000, inode, life, name, container, crc FROM netns \
                 ORDER BY id DESC LIMIT 1",
            ] {
                assert_eq!(other.execute(sql, []).unwrap(), 1);
            }
        }
        retention.step(&mut writer, at(second).mono_us).unwrap();
    }
    drop(writer);
    let numbers = |sql: &str| other.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert!(numbers("SELECT max(slot) - min(slot) FROM tick_loss") > 300_000);
    assert!(numbers("SELECT max(id) - min(id) FROM netns") > 300_000);
    assert!(ticks_by_level(&path).keys().any(|level| *level > 0), "{:?}", ticks_by_level(&path));
    // Made up above, without a checksum of their own.
    other.execute("DELETE FROM netns WHERE id NOT IN (SELECT netns FROM slot)", []).unwrap();
    assert_eq!(totals(&path), lost);
}

/// Ticks that stand for a minute of a host with many services, and those that they become.
#[test]
fn ticks_with_thousands_of_slots_are_read_and_downsampled_a_few_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    // 512 of them have more rows (2^21) than a reader holds.
    const SLOTS: u16 = 4_200;
    const LARGE: i64 = 515;
    const TICKS: i64 = LARGE + 980;
    let mut lost = 0;
    for second in 1..=TICKS {
        let mut tick = Tick::quiet(at(second * 60).time, at(second * 60).mono_us, 60_000_000);
        let slots = if second <= LARGE { SLOTS } else { 1 };
        tick.losses = (1..=slots).map(|port| (slot(port, 1 | KIND_LOOPBACK), second)).collect();
        tick.losses.sort_by_key(|(key, _)| *key);
        lost += i64::from(slots) * second;
        writer.write(&Batch { tick: Some(tick), ..Batch::default() }).unwrap();
    }
    let other = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(other.execute("UPDATE tick SET level = 2", []).unwrap() as i64, TICKS);
    let sum = |path: &Path| {
        let recording = Recording::open(path).unwrap();
        let run = recording.runs().unwrap().remove(0);
        let ticks = recording.ticks(&run, i64::MIN..=i64::MAX).unwrap().map(|tick| tick.unwrap().tick);
        // A sum keeps the slots with the most.
        let of = |tick: Tick| {
            tick.losses.iter().map(|(_, losses)| losses).sum::<i64>() + tick.overflow.iter().sum::<i64>()
        };
        ticks.map(of).sum::<i64>()
    };
    assert_eq!(sum(&path), lost);
    let mut retention = Retention::new(RetentionLimits { max_size: 1 << 20, ..NEVER });
    for second in 1..=300 {
        writer.write(&Batch::default()).unwrap();
        retention.step(&mut writer, at(TICKS * 60 + second).mono_us).unwrap();
    }
    drop(writer);
    let levels = ticks_by_level(&path);
    assert!(levels[&3] > 10 && levels[&3] < 200, "{levels:?}");
    assert_eq!(sum(&path), lost);
}

/// As an older recorder left them: more than a reader takes.
#[test]
fn what_no_reader_takes_ends_no_recorder_and_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut retention = Retention::new(RetentionLimits { max_size: 1 << 17, ..NEVER });
    let other = rusqlite::Connection::open(&path).unwrap();
    for second in 1..=1300 {
        if second == 1100 {
            let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 140000) \
                        INSERT INTO netns SELECT 1000 + i, 1, 1000 + i, 1, 1, 'a', NULL, 1 FROM n";
            other.execute(many, []).unwrap();
        }
        writer.write(&Batch { tick: batch(second).tick, ..Batch::default() }).unwrap();
        retention.step(&mut writer, at(second).mono_us).unwrap();
    }
    let recording = Recording::open(&path).unwrap();
    let run = recording.runs().unwrap().remove(0);
    let refused = recording.ticks(&run, i64::MIN..=i64::MAX).unwrap_err().to_string();
    drop(recording);
    assert!(
        refused.contains("more than ctwatch allows") && refused.contains("131072 namespaces"),
        "{refused}"
    );
    other.execute("DELETE FROM netns WHERE id > 1000", []).unwrap();
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let notices = recording.notices(1).unwrap();
    let told: Vec<_> = notices.iter().filter(|notice| notice.code.raw() == "not_thinned").collect();
    assert_eq!(told.len(), 1, "{notices:?}");
}

/// Containers come and go, and each loses something once.
#[test]
fn settings_and_rules_of_namespaces_that_are_gone_go_with_them() {
    use ctwatch::record::rows::{NetnsSetting, Setting, SnapshotReason};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut retention = Retention::new(RetentionLimits { keep: Duration::from_secs(150), ..NEVER });
    let netns = |second: i64| NetnsId::from_packed(4_026_540_000 + second as u32);
    for second in 1..=4400i64 {
        let mut tick = Tick::quiet(at(second).time, at(second).mono_us, 1_000_000);
        let one = |second, presence| NetnsTick { id: netns(second), presence, ..NetnsTick::default() };
        tick.netns = vec![one(second, Presence::Present)];
        // The first one stays.
        if second > 2 {
            tick.netns.insert(0, one(second - 1, Presence::Absent));
        }
        let setting = Setting { at: at(second), name: "a".into(), value: Some("1".into()), before: None };
        let rules = super::synthetic::rules(second, SnapshotReason::Start);
        let batch = Batch {
            tick: Some(tick),
            netns_settings: vec![NetnsSetting { netns: netns(second), setting }],
            rules: vec![ctwatch::record::rules::StoredRules { netns: netns(second), ..rules }],
            ..Batch::default()
        };
        writer.write(&batch).unwrap();
        retention.step(&mut writer, at(second).mono_us).unwrap();
    }
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let settings = recording.netns_settings(1).unwrap();
    let rules = recording.rules(1).unwrap();
    assert!(settings.len() < 2600 && rules.len() == settings.len(), "{}, {}", settings.len(), rules.len());
    assert_eq!(settings[0].netns, netns(1), "it is there");
    assert_eq!(settings.last().unwrap().netns, netns(4400));
    assert!(recording.names(1).unwrap().len() < 2600);
}
