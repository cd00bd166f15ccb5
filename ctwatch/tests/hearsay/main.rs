//! `ctwatch record` as root beside processes that call themselves what they are not, and name files that hang, have no end or
//! aren't theirs: as an unprivileged user or a container would. Needs root and a kernel with nf_conntrack; settings are only read.

mod processes;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ctwatch::machine::Machine;
use ctwatch::record::Recording;

/// A recording takes so long.
const SECONDS: &str = "2s";
/// What all of this host's processes see of each other is one thing.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// What it may take on a slow machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(40);
/// Of memory, kB: /dev/zero, or a file of 3 GB, was read as a whole.
const MOST_MEMORY: u64 = 200_000;

/// Until this goes, no other test has processes here.
fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that root alone can write to.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    folder
}

/// What ended, and the most memory it had, kB.
fn watched(mut child: Child) -> (Option<i32>, u64) {
    let until = Instant::now() + PATIENCE;
    let mut most = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        most = most.max(now.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code(), most);
        }
        if Instant::now() > until || most > 4 * MOST_MEMORY {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it goes on, and has had {most} kB");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A recorder in this folder.
fn recorder(folder: &Path, duration: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(["record", "--backend", "counters", "--duration", duration, "-o"]).arg(file_in(folder));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn file_in(folder: &Path) -> PathBuf {
    folder.join("recorded.ctw")
}

/// Records, and gives the facts that a recording begins with.
fn recorded(folder: &Path) -> Machine {
    recorded_for(folder, SECONDS)
}

fn recorded_for(folder: &Path, duration: &str) -> Machine {
    let (code, most) = watched(recorder(folder, duration).spawn().unwrap());
    assert_eq!(code, Some(0), "is this root, and a kernel with nf_conntrack?");
    assert!(most < MOST_MEMORY, "{most} kB");
    let recording = Recording::open(&file_in(folder)).unwrap();
    let run = recording.runs().unwrap().remove(0).id;
    let machine = serde_json::from_str(&recording.machines(run).unwrap()[0].json).unwrap();
    drop(recording);
    std::fs::remove_file(file_in(folder)).unwrap();
    machine
}
