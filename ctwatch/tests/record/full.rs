//! More keys and namespaces than a recording keeps apart: a host with many of both, or somebody who makes them.

use ctwatch::model::NetnsId;
use ctwatch::record::tick::{NetnsTick, Presence};
use ctwatch::record::writer::Batch;
use ctwatch::record::{NETNS, Recording, SLOTS, Writer};
use ctwatch::testing::{self, slot};
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_FLOWS, SlotKey};

use super::synthetic::{at, loss, run};

/// A key of its own for each number.
fn key(number: usize, kind: u8) -> SlotKey {
    SlotKey { proto: (number >> 16) as u8, ..slot(number as u16, kind) }
}

#[test]
fn keys_beyond_the_most_of_a_run_are_in_its_sums() {
    const MORE: usize = 1_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run()).unwrap();
    let mut first = testing::tick(at(1), 5, 10);
    first.flows = (0..SLOTS - 10).map(|number| (key(number, KIND_FLOWS), [2, 1, 0])).collect();
    first.flows.sort_by_key(|(key, _)| *key);
    writer.write(&Batch { tick: Some(first), ..Batch::default() }).unwrap();
    assert!(!writer.is_full());
    // Ten find room, and whoever is known already.
    let mut second = testing::tick(at(2), 6, 10);
    second.losses = (0..MORE).map(|number| (key(number, Cause::TableFull as u8), 3)).collect();
    second.flows = vec![(key(7, KIND_FLOWS), [5, 0, 0]), (key(SLOTS, KIND_FLOWS), [4, 2, 1])];
    second.losses.sort_by_key(|(key, _)| *key);
    second.flows.sort_by_key(|(key, _)| *key);
    writer.write(&Batch { tick: Some(second), ..Batch::default() }).unwrap();
    assert!(writer.is_full());
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let runs = recording.runs().unwrap();
    let ticks: Vec<_> =
        recording.ticks(&runs[0], i64::MIN..=i64::MAX).unwrap().map(|one| one.unwrap().tick).collect();
    assert_eq!((ticks[1].losses.len(), ticks[1].flows.len()), (10, 1));
    assert_eq!(ticks[1].overflow[Cause::TableFull as usize], 3 * (MORE as i64 - 10));
    assert_eq!(ticks[1].flows_overflow, 7);
    drop(recording);
    // One more that somebody adds is more than any recorder writes.
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute("INSERT INTO slot SELECT 9999999, netns, 255, 1, 1, 0, 0 FROM slot LIMIT 1", [])
        .unwrap();
    drop(connection);
    let recording = Recording::open(&path).unwrap();
    let refused = recording.ticks(&runs[0], i64::MIN..=i64::MAX).unwrap_err().to_string();
    assert!(refused.contains("more than 131072 slots in a run"), "{refused}");
}

#[test]
fn namespaces_beyond_the_most_of_a_run_are_one() {
    const MORE: usize = 500;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run()).unwrap();
    let netns = |number: usize| NetnsTick {
        id: NetnsId::from_packed(4_026_600_000 + number as u32),
        presence: Presence::Present,
        count: Some(1),
        peak: Some(1),
        kernel: [1, 0, 0, 0],
        ..NetnsTick::default()
    };
    let mut tick = testing::tick(at(1), 5, 10);
    tick.netns = (0..NETNS + MORE).map(netns).collect();
    tick.netns.sort_by_key(|one| one.id);
    let beyond = loss(1);
    writer.write(&Batch { tick: Some(tick), events: vec![(beyond, false)], ..Batch::default() }).unwrap();
    assert!(writer.is_full());
    drop(writer);
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let runs = recording.runs().unwrap();
    let tick = recording.ticks(&runs[0], i64::MIN..=i64::MAX).unwrap().next().unwrap().unwrap().tick;
    assert!(tick.netns.len() < NETNS, "{}", tick.netns.len());
    let moved: i64 = tick.netns.iter().map(|one| one.kernel[0]).sum();
    assert_eq!(moved as usize, NETNS + MORE);
    let names = recording.names(runs[0].id).unwrap();
    assert!(names.values().any(|names| names.name.as_ref().is_some_and(|name| name.raw() == "others")));
}
