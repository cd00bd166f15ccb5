//! Whoever reads stops reading: stdout, or stderr too, takes nothing any more. No command is deaf to a signal then.
//! As in `command.rs`, nothing of the host is needed.

use std::io::{ErrorKind, PipeReader, PipeWriter, Write as _, pipe};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::synthetic::write;

/// A pipe that is full.
fn full() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    for piece in [&[b' '; 4096][..], b" "] {
        while match writer.write(piece) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        } {}
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

fn ctwatch(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn end(child: &mut Child, within: Duration) -> ExitStatus {
    let until = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it goes on after {within:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether one of its threads waits for room in a pipe.
fn is_writing(child: &Child) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    threads.flatten().any(|thread| {
        let call = std::fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
        call.starts_with(&format!("{} ", libc::SYS_write))
    })
}

fn listens(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
    caught & 1 << (Signal::SIGTERM as u32 - 1) != 0
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

fn recording(folder: &Path) -> String {
    let path = folder.join("a.ctw");
    drop(write(&path, 40));
    path.display().to_string()
}

#[test]
fn a_signal_ends_each_command_whose_reader_has_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let recording = recording(folder.path());
    let proc = folder.path().join("proc");
    std::fs::create_dir(&proc).unwrap();
    let (proc, new) = (proc.display().to_string(), folder.path().join("new.ctw").display().to_string());
    let waits = ["--proc-root", &proc, "--backend", "counters"];
    let commands: [(&str, Vec<&str>, bool); 6] = [
        ("drops", [&["drops", "--format", "json"], &waits[..]].concat(), true),
        ("record", [&["record", "-o", &new], &waits[..]].concat(), true),
        ("replay", vec!["replay", &recording, "--speed", "max"], true),
        ("report", vec!["report", &recording], false),
        ("export", vec!["export", &recording, "--to", "ndjson"], false),
        ("check", vec!["check", "--proc-root", &proc], false),
    ];
    for (name, arguments, catches) in &commands {
        for signal_sent in [Signal::SIGTERM, Signal::SIGINT] {
            for both in [false, true] {
                let ((_reader, out), (_other, err)) = (full(), full());
                let mut command = ctwatch(arguments);
                command.stdout(out);
                if both {
                    command.stderr(err);
                } else {
                    command.stderr(Stdio::null());
                }
                let mut child = command.spawn().unwrap();
                drop(command);
                // While it waits, record says something on stderr alone.
                if both || *name != "record" {
                    wait_until(&format!("{arguments:?} writes nothing"), || is_writing(&child));
                }
                wait_until(&format!("{arguments:?}"), || !catches || listens(&child));
                signal(&child, signal_sent);
                let status = end(&mut child, Duration::from_secs(5));
                // Its stdout had nothing to take yet.
                if *name != "record" {
                    assert!(!status.success(), "{arguments:?}: what it had to say was not read: {status}");
                }
            }
        }
    }
}

#[test]
fn a_supervisor_that_takes_no_notifications_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(&[0; 64], &socket).is_ok() {}
    let proc = folder.path().join("proc");
    std::fs::create_dir(&proc).unwrap();
    let new = folder.path().join("new.ctw");
    let mut command = ctwatch(&["record", "--backend", "counters"]);
    command.arg("-o").arg(&new).arg("--proc-root").arg(&proc).env("NOTIFY_SOCKET", &socket);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it listens to nothing", || listens(&child));
    std::thread::sleep(Duration::from_millis(1500));
    signal(&child, Signal::SIGTERM);
    assert_eq!(end(&mut child, Duration::from_secs(5)).code(), Some(0));
    drop(supervisor);
    let said = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(said.contains("its socket is full"), "{said}");
}

#[test]
fn nothing_is_set_on_a_stdout_that_others_share() {
    let folder = tempfile::tempdir().unwrap();
    let recording = recording(folder.path());
    let (reader, writer) = pipe().unwrap();
    let mut child = ctwatch(&["replay", &recording]).stdout(writer.try_clone().unwrap()).spawn().unwrap();
    drop(std::thread::spawn(move || std::io::read_to_string(reader)));
    assert_eq!(end(&mut child, Duration::from_secs(60)).code(), Some(0));
    let flags = OFlag::from_bits_truncate(fcntl(&writer, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK));
}
