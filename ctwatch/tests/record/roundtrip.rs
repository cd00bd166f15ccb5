//! What was written comes back as it was.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use ctwatch::model::{Name, Owner, ProcessId};
use ctwatch::record::rows::{EndReason, RunEnd, SnapshotReason};
use ctwatch::record::writer::Batch;
use ctwatch::record::{Recording, Writer};

use super::synthetic::{at, batch, incident, listing, loss, rules, run, tick, write};

#[test]
fn everything_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 60);
    writer.write(&Batch { incidents: vec![incident(30)], ..Batch::default() }).unwrap();
    let mut ceased = incident(30);
    (ceased.ceased, ceased.detail_to) = (Some(at(50).time), 55);
    writer.write(&Batch { incidents: vec![ceased.clone()], ..Batch::default() }).unwrap();
    let end = RunEnd { at: at(61), reason: EndReason::Duration, last_tick: 60 };
    writer.end(&end).unwrap();

    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let runs = recording.runs().unwrap();
    assert_eq!((runs.len(), &runs[0].run, runs[0].end), (1, &run(), Some(end)));
    let ticks: Vec<_> = recording.ticks(&runs[0], 1..=60).unwrap().map(Result::unwrap).collect();
    assert_eq!(ticks.len(), 60);
    for (second, stored) in (1..).zip(&ticks) {
        assert_eq!((stored.id, stored.first, stored.level), (second, second, 0));
        assert_eq!(stored.tick, tick(second), "tick {second}");
    }
    let some: Vec<_> = recording.ticks(&runs[0], 20..=29).unwrap().map(|tick| tick.unwrap().id).collect();
    assert_eq!(some, Vec::from_iter(20..=29));
    for (second, (number, kept)) in (1..).zip(recording.losses(1..=60).unwrap()) {
        let mut written = loss(second);
        written.packet.device.name = Some(Name::new(b"lo"));
        assert_eq!(kept.pushed_out_by, written.pushed_out_by);
        assert_eq!((number, format!("{kept:?}")), (second, format!("{written:?}")));
    }
    let names = recording.names(1).unwrap();
    assert_eq!(names.values().next().unwrap().name.as_ref().map(|text| text.raw()), Some("host51"));
    assert_eq!(recording.listings(1).unwrap()[0].census.services().count(), 1);
    let listed = |second| {
        format!("{:?}", listing(second).census.services().map(|(k, v)| (*k, v.pairs())).collect::<Vec<_>>())
    };
    assert_eq!(
        format!(
            "{:?}",
            recording.listings(1).unwrap()[0]
                .census
                .services()
                .map(|(k, v)| (*k, v.pairs()))
                .collect::<Vec<_>>()
        ),
        listed(1)
    );
    assert_eq!(recording.settings(1).unwrap()[1].before.as_ref().map(|text| text.raw()), Some("1"));
    let kept: Vec<_> = [1, 26, 51].map(|second| rules(second, SnapshotReason::Start)).into();
    assert_eq!(recording.rules(1).unwrap(), kept);
    assert!(kept[0].rules.as_ref().unwrap().unpack().unwrap().contains("203.0.113.9"));
    let settings = recording.netns_settings(1).unwrap();
    assert_eq!((settings.len(), settings[0].setting.value.as_ref().map(|text| text.raw())), (3, Some("2")));
    assert_eq!(recording.notices(1).unwrap().len(), 3);
    assert_eq!(recording.machines(1).unwrap().len(), 3);
    assert_eq!(recording.incidents(1).unwrap(), [(1, ceased)]);
}

#[test]
fn a_second_run_goes_on_in_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 10));
    let mut writer = Writer::open(&path, &run()).unwrap();
    assert_eq!(writer.next_tick(), 11);
    writer.write(&batch(1)).unwrap();
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let runs = recording.runs().unwrap();
    assert_eq!((runs.len(), runs[1].first_tick, runs[0].end), (2, 11, None));
    let again = recording.ticks(&runs[1], i64::MIN..=i64::MAX).unwrap().next().unwrap().unwrap();
    assert_eq!(again.tick, tick(1));
}

#[test]
fn only_the_owner_may_read_it_and_readers_see_whole_ticks_while_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 5);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let reader = Recording::open(&path).unwrap();
    for second in 6..=600 {
        writer.write(&batch(second)).unwrap();
    }
    let count = |recording: &Recording| {
        let run = recording.runs().unwrap().remove(0);
        recording.ticks(&run, i64::MIN..=i64::MAX).unwrap().map(Result::unwrap).count()
    };
    assert_eq!(count(&reader), 5, "as it was when it was opened");
    assert_eq!(count(&Recording::open(&path).unwrap()), 600);
}

#[test]
fn the_queries_of_the_docs_run_as_written() {
    let docs = include_str!("../../../docs/recording.md");
    let mut queries = String::new();
    // What a block is for stands above it; those for DuckDB are in its own SQL.
    let (mut heading, mut inside) = ("", false);
    for line in docs.lines() {
        match line.strip_prefix("    ") {
            Some(code) => {
                inside |= code.starts_with("-- ") && !heading.contains("DuckDB");
                if inside {
                    queries += &format!("{code}\n");
                }
            }
            None if line.is_empty() => inside = false,
            None => (heading, inside) = (line, false),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 60));
    let sqlite = rusqlite::Connection::open(&path).unwrap();
    let mut ran = 0;
    for query in queries.split(';').filter(|query| query.contains("SELECT")) {
        let mut statement = sqlite.prepare(query).unwrap_or_else(|error| panic!("{error}: {query}"));
        let rows = statement.query_map([], |_| Ok(())).unwrap().map(Result::unwrap).count();
        assert!(rows > 0, "nothing comes of: {query}");
        ran += 1;
    }
    assert_eq!(ran, 8);
    let lost: i64 = sqlite.query_row("SELECT sum(losses) FROM losses", [], |row| row.get(0)).unwrap();
    assert_eq!(lost, (1..=60).map(|second| second % 3 + 1).sum::<i64>());
    for view in ["fills", "arrivals", "drops"] {
        let count: i64 =
            sqlite.query_row(&format!("SELECT count(*) FROM {view}"), [], |row| row.get(0)).unwrap();
        assert!(count >= 60, "{view}");
    }
}

#[test]
fn a_file_from_before_rules_were_kept_is_read_and_goes_on_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let end = RunEnd { at: at(10), reason: EndReason::Signal, last_tick: 10 };
    write(&path, 10).end(&end).unwrap();
    // As an older ctwatch left it.
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("DROP TABLE rules; DROP TABLE netns_setting").unwrap();
    drop(connection);
    let old = Recording::open(&path).unwrap();
    old.verify().unwrap();
    assert!(old.rules(1).unwrap().is_empty() && old.netns_settings(1).unwrap().is_empty());
    drop(old);
    let mut writer = Writer::open(&path, &run()).unwrap();
    writer.write(&batch(1)).unwrap();
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    assert!(recording.rules(1).unwrap().is_empty());
    assert_eq!(recording.rules(2).unwrap(), [rules(1, SnapshotReason::Start)]);
}

#[test]
fn a_name_comes_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run()).unwrap();
    // The kernel cuts names in the middle of a letter.
    let (process, device) = (Name::new(b"dienst-gr\xc3"), Name::new("v\u{1b}\\th".as_bytes()));
    let mut loss = loss(1);
    loss.packet.device.name = Some(device);
    let owner = loss.owner.as_deref().cloned().unwrap();
    let process = ProcessId { name: process, ..owner.process.unwrap() };
    loss.owner = Some(Arc::new(Owner { process: Some(process), ..owner }));
    writer.write(&Batch { tick: Some(tick(1)), events: vec![(loss, true)], ..Batch::default() }).unwrap();
    drop(writer);
    let kept = Recording::open(&path).unwrap().losses(1..=1).unwrap().remove(0).1;
    assert_eq!(kept.packet.device.name, Some(device));
    assert_eq!(kept.owner.unwrap().process, Some(process));
    assert_eq!(process.name.to_string(), "dienst-gr\\xc3");
}
