//! ctwatch in odd places: words people write, readers and disks that take nothing, clocks that are put back, file systems that
//! lack something. By the command line; some of it needs root, and a kernel with nf_conntrack whose settings are only read.

mod clocks;
mod file_systems;
mod fuse;
mod listings;
mod output;
mod progress;
mod rights;
mod troubleshooting;
mod words;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ctwatch::model::WallMono;
use ctwatch::record::Writer;
use ctwatch::record::rows::{EndReason, Run, RunEnd};
use ctwatch::record::writer::Batch;
use ctwatch::testing;

fn ctwatch(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Its exit code, and what it says on stdout and stderr.
fn said(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A folder that nobody else may write to.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A recording with a tick a second from then on.
fn recording(folder: &Path, start: &str, seconds: i64) -> PathBuf {
    let path = folder.join("a.ctw");
    let start: jiff::Timestamp = start.parse().unwrap();
    let at = |second: i64| WallMono {
        time: start + jiff::SignedDuration::from_secs(second),
        mono_us: (1_000 + second) * 1_000_000,
    };
    let mut writer = Writer::open(&path, &Run { started: at(0), ..testing::run() }).unwrap();
    for second in 1..=seconds {
        let tick = Some(testing::tick(at(second), 400, 1_000));
        writer.write(&Batch { tick, ..Batch::default() }).unwrap();
    }
    writer.end(&RunEnd { at: at(seconds), reason: EndReason::Signal, last_tick: seconds }).unwrap();
    path
}

/// One that lies anywhere.
fn any_recording(folder: &Path) -> String {
    recording(folder, "2026-03-14T12:00:00Z", 20).to_str().unwrap().to_owned()
}
