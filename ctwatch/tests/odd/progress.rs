//! What goes on is shown on a terminal, and nowhere else. Needs root, and a kernel with nf_conntrack.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::Stdio;

use crate::ctwatch;

/// Both ends of a terminal: the one that a person sees, and the program's.
fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: two places for numbers, and nothing else.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: these are new, and nobody else's.
    unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

/// All that comes until the last program has closed its end.
fn seen(mut master: File) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = master.read(&mut piece) {
        bytes.extend_from_slice(&piece[..length]);
    }
    let _ = master.flush();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn advise_says_on_a_terminal_what_it_waits_for_and_nothing_in_a_pipe() {
    let arguments = ["advise", "--window", "3s", "--format", "json"];
    let (master, slave) = terminal();
    let mut child = ctwatch(&arguments).stdout(Stdio::null()).stderr(slave).spawn().unwrap();
    let screen = seen(master);
    assert!(child.wait().unwrap().success(), "is this root, and a kernel with nf_conntrack? {screen}");
    assert!(screen.contains("measuring new flows and drops: ") && screen.contains(" s left ("), "{screen:?}");
    // Nothing of it stays.
    let last = screen.trim_end_matches('\r').rsplit('\r').next().unwrap();
    assert_eq!(last.trim(), "", "{screen:?}");
    let output = ctwatch(&arguments).output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
