//! A recording that gets another name while somebody reads it, as SIGHUP does, and new ones that never become whole.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use ctwatch::files::place::{self, Sharing};
use ctwatch::record::rows::{EndReason, RunEnd};
use ctwatch::record::{Lock, Recording, Writer, files};

use super::synthetic::{at, batch, run, write};

fn end(writer: Writer, last_tick: i64) {
    writer.end(&RunEnd { at: at(last_tick), reason: EndReason::Rotated, last_tick }).unwrap();
}

fn held(recording: &Recording) -> usize {
    let runs = recording.runs().unwrap();
    runs.iter().map(|run| recording.ticks(run, i64::MIN..=i64::MAX).unwrap().count()).sum()
}

fn ticks(path: &Path) -> usize {
    let recording = Recording::open(path).unwrap();
    recording.verify().unwrap();
    held(&recording)
}

#[test]
fn a_reader_in_the_middle_costs_neither_the_old_file_nor_the_new_one_anything() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut writer = Writer::open(&at("host.ctw"), &run()).unwrap();
    for second in 1..=20 {
        writer.write(&batch(second)).unwrap();
    }
    // A transaction that sees 20 ticks as long as it lasts, and one that only has the file open.
    let reader = Recording::open(&at("host.ctw")).unwrap();
    let idle = rusqlite::Connection::open(at("host.ctw")).unwrap();
    let count = "SELECT count(*) FROM tick";
    assert_eq!(idle.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 20);
    for second in 21..=40 {
        writer.write(&batch(second)).unwrap();
    }
    end(writer, 40);
    assert!(files::wal(&at("host.ctw")).is_some(), "the reader holds nothing up: this shows nothing");
    files::set_aside(&at("host.ctw"), &at("host-1.ctw")).unwrap();
    let mut writer = Writer::open(&at("host.ctw"), &run()).unwrap();
    for second in 41..=50 {
        writer.write(&batch(second)).unwrap();
    }
    assert_eq!(held(&reader), 20);
    assert_eq!(idle.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 40);
    assert_eq!(ticks(&at("host-1.ctw")), 40);
    drop((reader, idle));
    assert_eq!(ticks(&at("host-1.ctw")), 40);
    end(writer, 10);
    assert_eq!(ticks(&at("host.ctw")), 10);
    assert!(files::wal(&at("host.ctw")).is_none());
}

#[test]
fn a_file_that_is_only_open_somewhere_is_whole_when_it_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.ctw");
    let mut writer = Writer::open(&path, &run()).unwrap();
    let idle = rusqlite::Connection::open(&path).unwrap();
    for second in 1..=20 {
        writer.write(&batch(second)).unwrap();
    }
    assert_eq!(idle.query_row("SELECT count(*) FROM tick", [], |row| row.get::<_, i64>(0)).unwrap(), 20);
    end(writer, 20);
    let copy = folder.path().join("copy.ctw");
    fs::copy(&path, &copy).unwrap();
    assert_eq!(ticks(&copy), 20);
}

#[test]
fn what_a_killed_recorder_had_begun_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.ctw");
    for (ending, left) in [("-new", "half a file"), ("-wal", "of a file that is gone"), ("-shm", "this too")]
    {
        fs::write(folder.path().join(format!("host.ctw{ending}")), left).unwrap();
    }
    write(&path, 5);
    assert_eq!(ticks(&path), 5);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something is left");
}

#[test]
fn an_empty_file_becomes_a_recording_that_only_its_owner_may_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.ctw");
    fs::write(&path, "").unwrap();
    write(&path, 2);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn what_is_no_file_is_left_alone() {
    for path in ["/dev/null", "/proc"] {
        let refused = Writer::check(Path::new(path)).unwrap_err().to_string();
        assert!(refused.contains("not a regular file"), "{refused}");
    }
}

#[test]
fn a_link_leads_to_the_lock_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("host.ctw"), folder.path().join("link.ctw"));
    symlink("host.ctw", &link).unwrap();
    let _lock = Lock::take(&place::file(&file, Sharing::Refused).unwrap()).unwrap();
    let refused = Lock::take(&place::file(&link, Sharing::Refused).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("another ctwatch is recording"), "{refused}");
}
