//! Recorders that are killed, disks that are full, and folders that nothing can be written to.
//! The killed writer is this very test program, started again.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ctwatch::record::rows::EndReason;
use ctwatch::record::writer_thread::WriterThread;
use ctwatch::record::{DiskFull, Lock, Recording, RetentionLimits, Writer};

use super::synthetic::{all_of, batch, run, tick, write};

const FILE: &str = "CTWATCH_TEST_RECORD";

/// Not a test of its own: what `kill_9_at_50_moments` starts and kills.
#[test]
fn writer_that_is_killed() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let mut writer = Writer::open(Path::new(&path), &run()).unwrap();
    for second in 1.. {
        writer.write(&batch(second)).unwrap();
        // Only what is committed counts.
        println!("committed {second}");
    }
}

#[test]
fn kill_9_at_50_moments_leaves_all_that_was_committed() {
    let folder = tempfile::tempdir().unwrap();
    for moment in 0..50u64 {
        let path = folder.path().join(format!("{moment}.ctw"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::writer_that_is_killed", "--nocapture"])
            .env(FILE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || std::io::read_to_string(out).unwrap());
        // From the very beginning to some hundreds of ticks, never at the same point of a tick.
        std::thread::sleep(Duration::from_micros(7_000 + moment * 5_701));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let said = reader.join().unwrap();
        let committed = said.lines().filter_map(|line| line.strip_prefix("committed ")).next_back();
        let committed: i64 = committed.map_or(0, |number| number.parse().unwrap());
        let recording = match Recording::open(&path) {
            Ok(recording) => recording,
            // It was killed before there was anything to lose.
            Err(_) if committed == 0 => continue,
            Err(error) => panic!("after {committed} ticks: {error:#}"),
        };
        recording.verify().unwrap();
        let runs = recording.runs().unwrap();
        assert!(committed == 0 || runs[0].end.is_none());
        let Some(first) = runs.first() else { continue };
        let ticks: Vec<_> = recording.ticks(first, 1..=i64::MAX).unwrap().map(Result::unwrap).collect();
        let kept = ticks.len() as i64;
        assert!(
            (committed..=committed + 1).contains(&kept),
            "{kept} ticks are left of {committed} committed"
        );
        assert!(ticks.iter().all(|stored| stored.tick == tick(stored.id)));
        drop(recording);
        // And it goes on.
        let mut writer = Writer::open(&path, &run()).unwrap();
        writer.write(&batch(1)).unwrap();
        drop(writer);
        Recording::open(&path).unwrap().verify().unwrap();
    }
}

/// A file system of this many bytes; none without the right to mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(bytes: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }

    fn remount_read_only(&self) {
        let done = Command::new("mount").args(["-o", "remount,ro"]).arg(self.0.path()).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn where_there_is_no_room_to_begin_nothing_is_left() {
    let Some(disk) = Small::mount("1m") else {
        eprintln!("skipped: no right to mount a tmpfs");
        return;
    };
    let (path, filling) = (disk.0.path().join("a.ctw"), disk.0.path().join("filling"));
    let mut refused = 0;
    for free in (0..512).step_by(20) {
        std::fs::write(&filling, vec![0; (1024 - free) << 10]).unwrap();
        let begun = Lock::take(&path).and_then(|mut lock| {
            lock.reserve_space(&path)?;
            Writer::open(&path, &run()).map(drop)
        });
        if let Err(error) = begun {
            refused += 1;
            assert!(error.is::<DiskFull>() && error.to_string().contains("nothing is recorded"), "{error:#}");
            let left = std::fs::read_dir(disk.0.path()).unwrap().count();
            assert_eq!(left, 1, "only what fills it, with {free} KB free");
        } else {
            Recording::open(&path).unwrap().verify().unwrap();
            std::fs::remove_file(&path).unwrap();
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn a_full_disk_ends_the_run_and_the_file_says_so() {
    let Some(disk) = Small::mount("6m") else {
        eprintln!("skipped: no right to mount a tmpfs");
        return;
    };
    let path = disk.0.path().join("a.ctw");
    let mut lock = Lock::take(&path).unwrap();
    lock.reserve_space(&path).unwrap();
    let lock = Arc::new(lock);
    let writer = Writer::open(&path, &run()).unwrap();
    let limits = RetentionLimits {
        keep: Duration::from_secs(1 << 31),
        max_size: u64::MAX,
        detail: Duration::from_secs(1 << 31),
    };
    let writer = WriterThread::start(writer, limits, Arc::clone(&lock)).unwrap();
    let sent = (1..100_000).take_while(|second| writer.send(batch(*second)).is_ok()).count();
    let end = ctwatch::record::rows::RunEnd {
        at: super::synthetic::at(0),
        reason: EndReason::Signal,
        last_tick: sent as i64,
    };
    let error = writer.finish(end).unwrap_err();
    assert!(error.is::<DiskFull>() && error.to_string().contains("Free some space"), "{error:#}");
    let recording = Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let run = recording.runs().unwrap().remove(0);
    let ticks = recording.ticks(&run, 1..=i64::MAX).unwrap().map(Result::unwrap).count();
    assert!(ticks > 100, "{ticks} ticks in six megabytes");
    let end = run.end.expect("there was room for the end");
    assert_eq!((end.reason, end.last_tick), (EndReason::DiskFull, ticks as i64));
}

#[test]
fn a_read_only_folder_can_be_read_also_with_what_a_killed_recorder_left() {
    let Some(disk) = Small::mount("20m") else {
        eprintln!("skipped: no right to mount a tmpfs");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let writer = write(&path, 30);
    let with_wal = disk.0.path().join("with.ctw");
    for ending in ["", "-wal"] {
        let name = |path: &Path| format!("{}{ending}", path.display());
        std::fs::copy(name(&path), name(&with_wal)).unwrap();
    }
    drop(writer);
    let without = disk.0.path().join("without.ctw");
    std::fs::copy(&path, &without).unwrap();
    disk.remount_read_only();
    let whole = all_of(&path).unwrap();
    assert_eq!(all_of(&without).unwrap(), whole);
    assert_eq!(all_of(&with_wal).unwrap(), whole, "what is only in the -wal counts");
    let left: Vec<_> =
        std::fs::read_dir(disk.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn reading_leaves_nothing_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(write(&path, 5));
    all_of(&path).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
