//! `ctwatch record` as a process: whoever started it may read nothing, signal early, or wait for READY=1.
//! /proc is an empty folder here, so conntrack is never loaded and nothing of the host is needed.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// One that waits for nf_conntrack, with a folder of its own.
fn recorder(folder: &Path, more: &[&str]) -> Command {
    let proc = folder.join("proc");
    std::fs::create_dir_all(&proc).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.arg("record").arg("-o").arg(folder.join("a.ctw")).arg("--proc-root").arg(proc);
    command.args(["--backend", "counters"]).args(more).stdin(Stdio::null());
    command
}

/// The exit code, within this time.
fn end(mut child: Child, within: Duration) -> Option<i32> {
    let until = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it goes on after {within:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn whoever_reads_stderr_may_go() {
    let folder = tempfile::tempdir().unwrap();
    // Its notice that it waits goes to a pipe that nobody reads, and so does an error's message.
    for (more, code) in
        [(&["--when", "drops>0", "--once", "--duration", "100ms"][..], 4), (&["--no-such"], 2)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = recorder(folder.path(), more).stderr(writer).spawn().unwrap();
        assert_eq!(end(child, Duration::from_secs(20)), Some(code), "{more:?}");
    }
}

#[test]
fn waiting_for_conntrack_is_being_ready_and_sighup_does_not_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let child =
        recorder(folder.path(), &[]).env("NOTIFY_SOCKET", &socket).stderr(Stdio::null()).spawn().unwrap();
    let mut buffer = [0; 1024];
    let read = supervisor.recv(&mut buffer).unwrap();
    let told = String::from_utf8_lossy(&buffer[..read]);
    assert!(told.contains("READY=1") && told.contains("STATUS=waiting until nf_conntrack"), "{told}");
    let signal = |name: &str| {
        let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    signal("HUP");
    std::thread::sleep(Duration::from_millis(500));
    assert!(is_running(child.id()), "SIGHUP ended it");
    signal("TERM");
    assert_eq!(end(child, Duration::from_secs(20)), Some(0));
}

/// Whether it is there and no zombie.
fn is_running(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_condition_on_new_flows_says_where_it_cannot_fire() {
    let folder = tempfile::tempdir().unwrap();
    // As if conntrack were loaded: its settings are there.
    let settings = folder.path().join("proc/sys/net/netfilter");
    std::fs::create_dir_all(&settings).unwrap();
    std::fs::write(settings.join("nf_conntrack_max"), "262144\n").unwrap();
    let said = |more: &[&str]| {
        let flags = [&["--when", "full_in<60s", "--duration", "1s"], more].concat();
        let output = recorder(folder.path(), &flags).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = said(&[]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("full_in<60s: it can't fire") && text.contains("take fill>=90%"), "{text}");
    let (code, text) = said(&["--no-inserts"]);
    assert_eq!(code, Some(2), "{text}");
    let (_, text) = said(&["--when", "drops>0"]);
    assert!(text.contains("full_in<60s: it can't fire"), "{text}");
}
