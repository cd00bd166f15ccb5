//! What another user puts where root is about to write.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::figures::{Ran, ctwatch, recorder, run};
use super::synthetic::write;

/// nobody, who attacks.
const OTHER: u32 = 65_534;

/// What is put in the way, and what it would have been turned against.
const PLANTS: [&str; 7] = ["link", "dangling link", "hard link", "FIFO", "socket", "device", "file"];

struct Victim {
    folder: tempfile::TempDir,
}

impl Victim {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "words").unwrap();
        fs::set_permissions(folder.path().join("precious"), Permissions::from_mode(0o600)).unwrap();
        Self { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn plant(&self, what: &str, at: &Path) {
        match what {
            "link" => symlink(self.at("precious"), at).unwrap(),
            "dangling link" => symlink(self.at("not-yet"), at).unwrap(),
            "hard link" => fs::hard_link(self.at("precious"), at).unwrap(),
            "FIFO" => mkfifo(at, Mode::from_bits_truncate(0o666)).unwrap(),
            "socket" => drop(UnixListener::bind(at).unwrap()),
            "device" => symlink("/dev/zero", at).unwrap(),
            _ => fs::write(at, "planted").unwrap(),
        }
        if what != "hard link" {
            lchown(at, Some(OTHER), Some(OTHER)).unwrap();
        }
    }

    fn is_unhurt(&self, what: &str) {
        assert_eq!(fs::read(self.at("precious")).unwrap(), b"words", "{what}");
        assert!(!self.at("not-yet").exists(), "{what}: it made the target of a link");
    }
}

fn refused(ran: &Ran, what: &str) {
    assert!(ran.took < Duration::from_secs(10), "{what}: {ran:?}");
    assert!(matches!(ran.status.code(), Some(1 | 2)), "{what}: {ran:?}");
    assert!(ran.error.starts_with("error: ") && !ran.error.contains("panicked"), "{what}: {ran:?}");
}

fn needs_root() {
    assert!(nix::unistd::geteuid().is_root(), "as another user there is nobody to attack");
}

/// Each name that the recorder opens, in a folder like /tmp and in one of its own.
#[test]
fn nothing_in_the_way_of_a_recorder_is_followed_written_or_waited_for() {
    needs_root();
    for mode in [0o1777, 0o777, 0o700] {
        for ending in ["", "-lock", "-new", "-wal", "-shm", "-journal"] {
            for plant in PLANTS {
                let what = format!("{plant} at a.ctw{ending}, folder {mode:o}");
                let victim = Victim::new();
                fs::create_dir(victim.at("shared")).unwrap();
                fs::set_permissions(victim.at("shared"), Permissions::from_mode(mode)).unwrap();
                victim.plant(plant, &victim.at(&format!("shared/a.ctw{ending}")));
                let ran = run(recorder(&victim.at("shared/a.ctw"), &victim.at("proc")));
                victim.is_unhurt(&what);
                // A draft is a name of the recorder's own, and in its own folder nobody else put one there.
                if mode != 0o700 || ending != "-new" {
                    refused(&ran, &what);
                }
                let left = fs::read_dir(victim.at("shared")).unwrap().count();
                assert!(left <= 2, "{what}: something was made");
            }
        }
    }
}

#[test]
fn folders_that_another_user_may_swap_are_refused_on_the_way() {
    needs_root();
    let victim = Victim::new();
    // Theirs, a link of theirs in a shared folder, and a folder of theirs above one of root's.
    fs::create_dir(victim.at("theirs")).unwrap();
    fs::create_dir(victim.at("theirs/below")).unwrap();
    chown(victim.at("theirs"), Some(OTHER), Some(OTHER)).unwrap();
    fs::create_dir(victim.at("shared")).unwrap();
    fs::set_permissions(victim.at("shared"), Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir(victim.at("mine")).unwrap();
    symlink(victim.at("mine"), victim.at("shared/link")).unwrap();
    lchown(victim.at("shared/link"), Some(OTHER), Some(OTHER)).unwrap();
    let recording = victim.at("source.ctw");
    drop(write(&recording, 5));
    for folder in ["theirs", "theirs/below", "shared/link"] {
        let at = victim.at(folder);
        refused(&run(recorder(&at.join("a.ctw"), &victim.at("proc"))), folder);
        for arguments in [&["report"][..], &["export", "--to", "ndjson"], &["export", "--to", "csv"]] {
            let mut command = ctwatch();
            command.args(arguments).arg(&recording).arg("-o").arg(at.join("out"));
            refused(&run(command), folder);
        }
        assert_eq!(
            fs::read_dir(&at).unwrap().filter(|one| one.as_ref().unwrap().file_name() != "below").count(),
            0
        );
    }
    assert_eq!(fs::read_dir(victim.at("mine")).unwrap().count(), 0);
}

#[test]
fn outputs_in_a_folder_like_tmp_meet_nothing_that_was_planted() {
    needs_root();
    let victim = Victim::new();
    let recording = victim.at("source.ctw");
    drop(write(&recording, 5));
    fs::create_dir(victim.at("shared")).unwrap();
    fs::set_permissions(victim.at("shared"), Permissions::from_mode(0o1777)).unwrap();
    let commands = |out: &Path| {
        [&["report"][..], &["export", "--to", "ndjson"], &["export", "--to", "parquet", "--table", "losses"]]
            .map(|arguments| {
                let mut command = ctwatch();
                command.args(arguments).arg(&recording).arg("-o").arg(out);
                command
            })
    };
    for ending in ["", ".partial"] {
        for plant in PLANTS {
            let at = victim.at(&format!("shared/out{ending}"));
            victim.plant(plant, &at);
            for command in commands(&victim.at("shared/out")) {
                let what = format!("{plant} at out{ending}: {command:?}");
                refused(&run(command), &what);
                victim.is_unhurt(&what);
            }
            fs::remove_file(at).unwrap();
        }
    }
    for (place, command) in commands(&victim.at("shared/out")).into_iter().enumerate() {
        assert!(run(command).status.success());
        let about = fs::symlink_metadata(victim.at("shared/out")).unwrap();
        assert_eq!((about.uid(), about.mode() & 0o7777, about.nlink()), (0, 0o600, 1), "{place}");
        fs::remove_file(victim.at("shared/out")).unwrap();
    }
    // A folder that is made is its owner's alone.
    let mut command = ctwatch();
    command.args(["export", "--to", "csv"]).arg(&recording).arg("-o").arg(victim.at("shared/folder"));
    assert!(run(command).status.success());
    assert_eq!(fs::metadata(victim.at("shared/folder")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_recording_that_another_user_may_change_is_not_gone_on_with() {
    needs_root();
    let victim = Victim::new();
    let recording = victim.at("a.ctw");
    drop(write(&recording, 5));
    let ran = || run(recorder(&recording, &victim.at("proc")));
    assert_eq!(ran().status.code(), Some(0), "its own");
    chown(&recording, Some(OTHER), None).unwrap();
    refused(&ran(), "of another user");
    chown(&recording, Some(0), None).unwrap();
    fs::set_permissions(&recording, Permissions::from_mode(0o666)).unwrap();
    refused(&ran(), "anybody may write to it");
    fs::set_permissions(&recording, Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&recording, victim.at("other-name")).unwrap();
    refused(&ran(), "it has another name");
    fs::remove_file(victim.at("other-name")).unwrap();
    assert_eq!(ran().status.code(), Some(0), "its own again");
    // Who makes himself root for it may use what is his.
    fs::create_dir(victim.at("home")).unwrap();
    chown(victim.at("home"), Some(1000), Some(1000)).unwrap();
    let mut command = recorder(&victim.at("home/a.ctw"), &victim.at("proc"));
    command.env("SUDO_UID", "1000");
    assert_eq!(run(command).status.code(), Some(0));
}

/// The script of docs/record takes no name that can be guessed.
#[test]
fn the_script_makes_a_folder_of_its_own() {
    needs_root();
    let victim = Victim::new();
    fs::create_dir(victim.at("shared")).unwrap();
    fs::set_permissions(victim.at("shared"), Permissions::from_mode(0o1777)).unwrap();
    // In ctwatch's place, one that says where it was to record.
    let bin = victim.at("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("ctwatch"), "#!/bin/sh\nstat -c '%u %a' \"${3%/*}\"\n: > \"$3\"\n").unwrap();
    fs::set_permissions(bin.join("ctwatch"), Permissions::from_mode(0o755)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/record/capture.sh");
    let mut folders = Vec::new();
    for _ in 0..2 {
        let mut command = std::process::Command::new("sh");
        command.arg(script).args(["1s"]).arg(victim.at("shared")).arg("drops>0");
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        let ran = run(command);
        assert_eq!(ran.out, "0 700\n", "{ran:?}");
        folders = fs::read_dir(victim.at("shared")).unwrap().map(|one| one.unwrap().file_name()).collect();
    }
    assert_eq!(folders.len(), 2, "{folders:?}");
}
