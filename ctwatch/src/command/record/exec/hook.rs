//! One run of the command: started with a clean environment in a process group of its own, which ends with it.
//! Nothing here waits for the command without a limit, and all that was started is reaped.

use std::io::{ErrorKind, PipeReader, Read as _, Write as _, pipe};
use std::os::fd::AsFd;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::children::Family;
use crate::foreign::Foreign;
use crate::stderr;

/// How long it may run.
pub(super) const TIME: Duration = Duration::from_secs(60);
/// Between asking it to end and ending it.
const GRACE: Duration = Duration::from_secs(1);
/// How much of its output is passed on.
const OUTPUT: usize = 64 << 10;
/// A longer line becomes several.
const LINE: usize = 4096;
/// Between two looks whether it has ended.
const POLL_MS: u16 = 20;

/// What it gets of our environment. The rest may be meant for us alone (the supervisor's sockets) or may steer what is
/// loaded into it.
const KEPT: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// Where nobody gave us one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it to its end, or until it has taken too long or is to stop.
pub(super) fn run(words: &[String], json: &str, stop: &AtomicBool) -> Result<(), String> {
    run_within(TIME, words, json, stop)
}

fn run_within(time: Duration, words: &[String], json: &str, stop: &AtomicBool) -> Result<(), String> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("--exec {program}: {what}: {error}");
    let mut running =
        Running::start(program, arguments, json).map_err(|error| failed("starting it", &error))?;
    let (mut end, mut ending) = (Instant::now() + time, None);
    while !running.family.has_ended().map_err(|error| failed("waiting for it", &error))? {
        running.exchange();
        if ending.is_none() && (Instant::now() >= end || stop.load(Ordering::Relaxed)) {
            ending = Some(if Instant::now() >= end { "it ran too long" } else { "the run ended" });
            end = Instant::now() + GRACE;
            running.family.send(Signal::SIGTERM);
        } else if ending.is_some() && Instant::now() >= end {
            running.family.send(Signal::SIGKILL);
        }
    }
    // What it printed last; and whoever it left behind in its group ends with it.
    running.exchange();
    let status = running.reap().map_err(|error| failed("waiting for it", &error))?;
    match ending {
        Some(why) => {
            Err(format!("--exec {program}: {why}, and was ended with all that it had started ({status})"))
        }
        None if status.success() => Ok(()),
        None => Err(format!("--exec {program}: it ended with {status}")),
    }
}

struct Running {
    family: Family,
    /// Its stdin, until all is in there, and what isn't yet.
    stdin: Option<ChildStdin>,
    json: Vec<u8>,
    /// Its stdout and stderr, until they are closed.
    output: Option<PipeReader>,
    printed: Printed,
}

impl Running {
    fn start(program: &str, arguments: &[String], json: &str) -> std::io::Result<Self> {
        let (output, writer) = pipe()?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", PATH);
        command.envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut family = Family::start(&mut command)?;
        // Our ends of the pipes are nobody else's.
        let stdin = family.stdin().filter(dont_block);
        let output = Some(output).filter(dont_block);
        let json = format!("{json}\n").into_bytes();
        Ok(Self { family, stdin, json, output, printed: Printed::new(|line| stderr::line(line)) })
    }

    fn reap(mut self) -> std::io::Result<ExitStatus> {
        self.printed.finish();
        self.family.reap()
    }

    /// Waits a moment for it to read or to print.
    fn exchange(&mut self) {
        let mut fds = Vec::new();
        fds.extend(self.output.iter().map(|output| PollFd::new(output.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.stdin.iter().map(|stdin| PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)));
        let _ = poll(&mut fds, PollTimeout::from(POLL_MS));
        if fds.is_empty() {
            std::thread::sleep(Duration::from_millis(u64::from(POLL_MS)));
        }
        self.write();
        self.read();
    }

    fn write(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(&self.json) {
            Ok(written) => drop(self.json.drain(..written)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // It doesn't care for it.
            Err(_) => self.json.clear(),
        }
        if self.json.is_empty() {
            self.stdin = None;
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; LINE];
        // It may print faster than it is read: not without an end.
        for _ in 0..16 {
            let Some(output) = &mut self.output else { return };
            match output.read(&mut buffer) {
                Ok(0) => self.output = None,
                Ok(length) => self.printed.take(&buffer[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return;
                }
                Err(_) => self.output = None,
            }
        }
    }
}

fn dont_block(fd: &impl AsFd) -> bool {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok()
}

/// Passes on what it prints, line by line.
struct Printed {
    to: fn(&str),
    line: Vec<u8>,
    passed_on: usize,
    left_out: u64,
}

impl Printed {
    fn new(to: fn(&str)) -> Self {
        Self { to, line: Vec::new(), passed_on: 0, left_out: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.passed_on + self.line.len() >= OUTPUT {
                self.left_out += 1;
                continue;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
            if *byte == b'\n' || self.line.len() >= LINE {
                self.pass_on();
            }
        }
    }

    fn pass_on(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.passed_on += line.len() + 1;
        (self.to)(&Foreign::from_bytes(&line).to_string());
    }

    fn finish(&mut self) {
        if !self.line.is_empty() {
            self.pass_on();
        }
        if self.left_out > 0 {
            (self.to)(&format!("--exec: {} more bytes of its output are left out", self.left_out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sh(within: Duration, script: &str) -> Result<(), String> {
        let words = ["sh", "-c", script].map(str::to_owned);
        run_within(within, &words, "{\"type\":\"incident\"}", &AtomicBool::new(false))
    }

    const LONG: Duration = Duration::from_secs(20);

    fn lives(pid: &str) -> bool {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    }

    #[test]
    fn it_gets_the_line_and_a_clean_environment() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        sh(
            LONG,
            &format!("cat > {at}/in; env > {at}/env; ps -o pgid= -p $$ > {at}/group; echo $$ > {at}/pid"),
        )
        .unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("in"), "{\"type\":\"incident\"}\n");
        // The shell adds some of its own.
        let of_shell = ["PWD", "OLDPWD", "SHLVL", "_"];
        for line in read("env").lines() {
            let name = line.split('=').next().unwrap();
            assert!(KEPT.contains(&name) || of_shell.contains(&name), "{line}");
        }
        assert!(read("env").contains("PATH="));
        // CARGO_MANIFEST_DIR is in ours.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !read("env").contains("CARGO"));
        assert_eq!(sh(LONG, "exit 3").unwrap_err(), "--exec sh: it ended with exit status: 3");
        assert!(
            run(&["/nowhere".to_owned()], "", &AtomicBool::new(false)).unwrap_err().contains("starting it")
        );
    }

    #[test]
    fn one_that_hangs_is_ended_with_its_children_and_reaped() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let began = Instant::now();
        let script = format!(
            "trap '' TERM; sleep 1000 & echo $! > {at}/child; echo $$ > {at}/self; while :; do sleep 1000; done"
        );
        let said = sh(Duration::from_millis(500), &script).unwrap_err();
        assert!(said.contains("it ran too long"), "{said}");
        assert!(began.elapsed() < LONG);
        for who in ["child", "self"] {
            let pid = fs::read_to_string(folder.path().join(who)).unwrap();
            let until = Instant::now() + LONG;
            while lives(&pid) {
                assert!(Instant::now() < until, "{who} goes on");
            }
            assert!(
                who == "child" || !std::path::Path::new(&format!("/proc/{}", pid.trim())).exists(),
                "a zombie"
            );
        }
    }

    #[test]
    fn what_it_leaves_behind_holds_nothing_up_and_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let began = Instant::now();
        sh(LONG, &format!("sleep 1000 & echo $! > {at}/child")).unwrap();
        assert!(began.elapsed() < LONG, "the child still has its stdout");
        let pid = fs::read_to_string(folder.path().join("child")).unwrap();
        let until = Instant::now() + LONG;
        while lives(&pid) {
            assert!(Instant::now() < until, "it goes on");
        }
    }

    #[test]
    fn output_without_an_end_is_cut() {
        let mut printed = Printed::new(|_| {});
        for _ in 0..100_000 {
            printed.take(b"0123456789\n");
        }
        assert!(printed.passed_on <= OUTPUT + 1, "{}", printed.passed_on);
        assert!(printed.left_out > 900_000, "{}", printed.left_out);
    }
}
