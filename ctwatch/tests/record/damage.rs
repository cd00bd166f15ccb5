//! Files that are no recording, not a whole one, or not the one that was written.

use std::path::{Path, PathBuf};

use ctwatch::record::{Fault, Recording};

use super::synthetic::{all_of, write};

fn fault(path: &Path) -> Fault {
    let error = Recording::open(path).map(drop).expect_err("it opened");
    error.downcast_ref::<Fault>().unwrap_or_else(|| panic!("{error:#}")).clone()
}

fn recording(folder: &Path) -> PathBuf {
    let path = folder.join("a.ctw");
    drop(write(&path, 200));
    path
}

#[test]
fn what_is_no_recording_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    assert!(matches!(fault(&path), Fault::Missing(_)));
    for bytes in [&b""[..], b"short", &[0; 4096], b"SQLite format 3\0", &[b'x'; 10_000]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(fault(&path), Fault::NotARecording(_)), "{:?}", fault(&path));
    }
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(matches!(fault(&path), Fault::NotARecording(_)), "another program's SQLite file");
}

#[test]
fn a_newer_schema_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path());
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
    assert!(matches!(fault(&path), Fault::Newer(_, 7)));
    assert!(fault(&path).to_string().contains("a newer one"), "{}", fault(&path));
}

#[test]
fn whatever_is_cut_off_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    for part in 1..20 {
        std::fs::write(&path, &bytes[..bytes.len() * part / 20]).unwrap();
        assert!(matches!(fault(&path), Fault::Truncated(..)), "{part}/20: {:?}", fault(&path));
    }
}

#[test]
fn a_flipped_bit_is_harmless_or_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let whole = all_of(&path).unwrap();
    let mut said = 0;
    // A prime, so that all offsets within pages and rows come up.
    for at in (0..bytes.len()).step_by(997) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(&path, &flipped).unwrap();
        match all_of(&path) {
            Ok(text) => {
                // A row that went missing has no checksum any more: SQLite's own check finds the hole.
                if Recording::open(&path).unwrap().verify().is_err() {
                    continue;
                }
                let odd = text.lines().zip(whole.lines()).find(|(a, b)| a != b);
                assert!(text == whole, "byte {at} changed what is read, and nobody said so: {odd:?}");
            }
            Err(error) => {
                assert!(error.downcast_ref::<Fault>().is_some(), "{error:#}");
                said += 1;
            }
        }
    }
    assert!(said > 20, "only {said} flips were noticed");
}
