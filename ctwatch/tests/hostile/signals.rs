//! SIGTERM and SIGINT end every reader at once, whatever it is busy with and whoever doesn't take what it writes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::figures::{ctwatch, readers};
use super::synthetic::write;

/// Two minutes of reading, by a slow build.
fn long(path: &Path) {
    drop(write(path, 3000));
}

fn ends(mut child: Child, signal: &str, what: &str) {
    let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
    assert!(kill.success(), "{what}");
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{what}: SIG{signal} doesn't end it");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{what}: it took {:?}", began.elapsed());
}

#[test]
fn a_signal_ends_every_reader_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    long(&path);
    for signal in ["TERM", "INT"] {
        for (name, mut command) in readers(&path) {
            // Nobody reads what they write: they wait for that, or are still reading.
            let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(300));
            ends(child, signal, name);
        }
        for (name, arguments) in [
            ("report -o", &["report"][..]),
            ("export -o", &["export", "--to", "ndjson"]),
            ("export -o FOLDER", &["export", "--to", "csv"]),
        ] {
            let out = folder.path().join("out");
            let mut command = ctwatch();
            command.args(arguments).arg(&path).arg("-o").arg(&out);
            let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(300));
            ends(child, signal, name);
            let left: Vec<_> = std::fs::read_dir(folder.path())
                .unwrap()
                .map(|one| one.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with("out"))
                .collect();
            // It may have been done by then.
            assert!(left.is_empty() || left == ["out"], "{name}: {left:?}");
            let _ = std::fs::remove_file(&out);
            let _ = std::fs::remove_dir_all(&out);
        }
    }
}
