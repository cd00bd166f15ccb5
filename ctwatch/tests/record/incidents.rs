//! Triggers: an incident goes on in the next file, and is told with the number it has in the file.
//! Synthetic ticks go in; nobody watches.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ctwatch::kernel::roots::Roots;
use ctwatch::model::{Backend, Sample};
use ctwatch::record::delta_decoder::DeltaDecoder;
use ctwatch::record::recorder::{Fired, Plan, Recorder};
use ctwatch::record::rows::{EndReason, RunEnd};
use ctwatch::record::writer::Batch;
use ctwatch::record::writer_thread::WriterThread;
use ctwatch::record::{Lock, Recording, RetentionLimits, Writer};
use ctwatch::state::StateConfig;

use super::synthetic::{at, incident, run, tick, write};

fn start(path: &Path) -> (WriterThread, i64) {
    let limits = RetentionLimits {
        keep: Duration::from_secs(1 << 31),
        max_size: u64::MAX,
        detail: Duration::from_secs(1 << 31),
    };
    let writer = Writer::open(path, &run()).unwrap();
    let next = writer.next_tick();
    (WriterThread::start(writer, limits, Arc::new(Lock::take(path).unwrap())).unwrap(), next)
}

/// Records into this file, with `drops>0` as the condition, and three seconds kept afterwards.
fn recorder(path: &Path) -> Recorder {
    let plan = Plan {
        when: vec!["drops>0".parse().unwrap()],
        before: Duration::from_secs(2),
        after: Duration::from_secs(3),
        interval: Duration::from_secs(1),
    };
    let settings = StateConfig::totals(Backend::Kprobe, true);
    let nowhere = path.with_extension("roots");
    let roots = Roots { proc: nowhere.join("proc"), sys: nowhere.join("sys") };
    let (writer, next) = start(path);
    Recorder::new(plan, settings, &roots, writer, next)
}

/// Seconds of a watch, of which some lose something.
#[derive(Default)]
struct Seconds(DeltaDecoder);

impl Seconds {
    fn pass(&mut self, second: i64, loses: bool, recorder: &mut Recorder) -> Vec<Fired> {
        let mut tick = tick(second);
        if !loses {
            tick.losses.clear();
        }
        self.0.add(&tick);
        let mono_us = second * 1_000_000;
        let sample = Sample { mono_us, ..self.0.sample(&tick, &Default::default()) };
        recorder.sample(&sample).unwrap().fired
    }
}

#[test]
fn a_recorder_goes_on_in_the_next_file_with_its_incident() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("1.ctw"), folder.path().join("2.ctw"));
    let mut recorder = recorder(&first);
    let mut seconds = Seconds::default();
    let mut sample = |second: i64, recorder: &mut Recorder| {
        seconds.pass(second, (5..=12).contains(&second), recorder).len()
    };
    let fired: usize = (1..=8).map(|second| sample(second, &mut recorder)).sum();
    assert_eq!((fired, recorder.has_open_incident()), (1, true));
    recorder.finish(EndReason::Rotated).unwrap();
    assert_eq!(recorder.numbered(8_000_000).len(), 1);
    let (writer, next) = start(&second);
    recorder.continue_in(writer, next);
    let fired: usize = (9..=20).map(|second| sample(second, &mut recorder)).sum();
    assert_eq!((fired, recorder.has_open_incident()), (0, false), "it is the same incident");
    recorder.finish(EndReason::Duration).unwrap();
    assert!(recorder.numbered(20_000_000).is_empty(), "it was told before");

    let lost = |path: &Path| {
        let recording = Recording::open(path).unwrap();
        recording.verify().unwrap();
        let run = recording.runs().unwrap().remove(0);
        let ticks = recording.ticks(&run, 1..=i64::MAX).unwrap().map(Result::unwrap);
        let lost: i64 = ticks.flat_map(|stored| stored.tick.losses).map(|(_, losses)| losses).sum();
        (lost, recording.incidents(1).unwrap().remove(0).1)
    };
    let expected = |seconds: std::ops::RangeInclusive<i64>| seconds.map(|second| second % 3 + 1).sum::<i64>();
    let (in_first, incident_there) = lost(&first);
    let (in_second, incident_here) = lost(&second);
    assert_eq!((in_first, in_second), (expected(5..=8), expected(9..=12)));
    assert_eq!((incident_there.tick, incident_there.detail_from, incident_there.ceased), (5, 3, None));
    assert_eq!((incident_here.tick, incident_here.detail_from), (1, 1));
    assert_eq!(incident_here.ceased.unwrap(), at(12).time);
}

#[test]
fn an_incident_is_told_with_its_number_once_it_is_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    // Another run has been there, so that it isn't the first one.
    let mut writer = write(&path, 4);
    writer.write(&Batch { incidents: vec![incident(2), incident(4)], ..Batch::default() }).unwrap();
    writer.end(&RunEnd { at: at(4), reason: EndReason::Signal, last_tick: 4 }).unwrap();
    let mut recorder = recorder(&path);
    let mut seconds = Seconds::default();
    let fired: Vec<Fired> =
        (1..=12).flat_map(|second| seconds.pass(second, second == 1 || second == 7, &mut recorder)).collect();
    let mut told = Vec::new();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    // Now and not in the end: nothing ends here.
    while told.len() < 2 && std::time::Instant::now() < until {
        for (one, number) in recorder.numbered(1_000_000) {
            let recording = Recording::open(&path).unwrap();
            let incidents = recording.incidents(2).unwrap();
            let found =
                incidents.iter().find(|(id, _)| Some(*id) == number).expect("it is in the file by now");
            assert_eq!((found.1.tick, found.1.at), (one.tick, one.at));
            told.push((one, number));
        }
    }
    let numbers = [Some(3), Some(4)];
    assert_eq!(told, fired.into_iter().zip(numbers).collect::<Vec<_>>());
    recorder.finish(EndReason::Signal).unwrap();
    // Where it can't be written it is told all the same.
    let late = seconds.pass(20, true, &mut recorder);
    assert_eq!(recorder.numbered(20_000_000), [(late[0].clone(), None)]);
    assert!(recorder.numbered(20_000_000).is_empty());
}

/// What whoever has a netns can make of its settings, and of names in notices and facts.
#[test]
fn a_recorder_writes_nothing_that_no_reader_takes() {
    use ctwatch::record::rows::{MachineSnapshot, NetnsSetting, Setting, SnapshotReason};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recorded.ctw");
    let mut recorder = recorder(&path);
    let mut seconds = Seconds::default();
    let ports: String = (1..65_000).step_by(2).map(|port| format!("{port},")).collect();
    let setting = |second: i64, name: String, value: &str, before: Option<&str>| NetnsSetting {
        netns: super::synthetic::HOST,
        setting: Setting {
            at: at(second),
            name: name.into(),
            value: Some(value.into()),
            before: before.map(Into::into),
        },
    };
    for second in 1..=20 {
        let reserved = "net.ipv4.ip_local_reserved_ports".to_owned();
        // 40,000 changes with 4 KB each are more than a reader holds, and the list is longer than any text.
        let changes = (0..2000).map(|n| setting(second, format!("a{}", n % 40), &ports[..4000], Some("1")));
        recorder.netns_settings(changes.chain([setting(second, reserved, &ports, Some("1,3"))]));
        recorder.notice(at(second), "no_listing", &"é".repeat(100_000));
        let json = format!("\"{}\"", "x".repeat(5 << 20));
        recorder.found(None, Some(MachineSnapshot { at: at(second), reason: SnapshotReason::Trigger, json }));
        seconds.pass(second, false, &mut recorder);
    }
    recorder.finish(EndReason::Duration).unwrap();
    let recording = Recording::open(&path).unwrap();
    let run = recording.runs().unwrap().remove(0);
    let settings = recording.netns_settings(run.id).unwrap();
    let last = |name: &str| settings.iter().rfind(|one| one.setting.name == *name).unwrap();
    for name in ["a0", "a39", "net.ipv4.ip_local_reserved_ports"] {
        assert_eq!(last(name).setting.value, None, "{name}: what isn't kept is unknown");
    }
    let notices = recording.notices(run.id).unwrap();
    for code in ["no_listing", "settings_cut", "facts_too_large"] {
        assert!(notices.iter().any(|notice| notice.code == *code), "{code}");
    }
    assert!(recording.machines(run.id).unwrap().is_empty());
}
