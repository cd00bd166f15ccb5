//! Programs and threads that ctwatch starts. A program gets a process group of its own, which ends with it, and the program
//! ends with ctwatch, however that ends. What it says, and how long it may take, is for whoever starts it.

pub mod threads;

use std::io;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// How long a program that was killed is waited for: one that waits for a disk in the kernel ends when that answers.
const DYING: Duration = Duration::from_secs(2);

/// Programs that were killed and had not ended in time: they are reaped when another one starts.
static LEFT: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// A program that was started, and all that it starts unless it leaves the group. Dropped, it is killed and reaped.
///
/// The thread that starts it has to last as long as it: when that ends, so does the program (prctl(2), PR_SET_PDEATHSIG).
#[derive(Debug)]
pub struct Family {
    child: Child,
    group: Pid,
    is_reaped: bool,
}

impl Family {
    /// Starts a program.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let is_there = |left: &Pid| waitpid(*left, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive);
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).retain(is_there);
        let own = std::process::id();
        let with_us = move || {
            set_pdeathsig(Signal::SIGKILL)?;
            // A parent that ended before the kernel was told sends no signal.
            if parent_id() == own { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        };
        // SAFETY: between fork and exec this makes two system calls and takes neither memory nor locks.
        unsafe { command.pre_exec(with_us) };
        let child = command.process_group(0).spawn()?;
        let group = Pid::from_raw(child.id().cast_signed());
        Ok(Self { child, group, is_reaped: false })
    }

    /// Its stdin, if it is a pipe; once.
    pub const fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its stdout, if it is a pipe; once.
    pub const fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its stderr, if it is a pipe; once.
    pub const fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Whether it has ended. It is not reaped yet: until then its number, and so its group's, is nobody else's.
    ///
    /// # Errors
    /// The kernel doesn't say.
    pub fn has_ended(&self) -> io::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(self.group), flags)? != WaitStatus::StillAlive)
    }

    /// Sends all of its group a signal.
    pub fn send(&self, signal: Signal) {
        // There may be nobody left.
        let _ = killpg(self.group, signal);
    }

    /// How it ended. What it left behind in its group is ended now, and so is it if it hasn't ended.
    ///
    /// # Errors
    /// The kernel doesn't say, or the program doesn't end although it was killed.
    pub fn reap(mut self) -> io::Result<ExitStatus> {
        self.end(DYING)
    }

    fn end(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        self.send(Signal::SIGKILL);
        self.is_reaped = true;
        let until = Instant::now() + patience;
        while !self.has_ended()? {
            if Instant::now() >= until {
                LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(self.group);
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it was killed and doesn't end"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.child.wait()
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _ = self.end(DYING);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn ends(what: &str, mut has_ended: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !has_ended() {
            assert!(Instant::now() < until, "{what} goes on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it is there and no zombie.
    fn lives(process: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }

    fn written(path: &Path) -> String {
        ends("nothing is written, and it", || path.metadata().is_ok_and(|about| about.len() > 1));
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    #[test]
    fn what_it_leaves_behind_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("left");
        let family = Family::start(&mut sh(&format!("sleep 1000 & echo $! > {}", left.display()))).unwrap();
        ends("it", || family.has_ended().unwrap());
        let left = written(&left);
        assert!(lives(&left));
        assert!(family.reap().unwrap().success());
        ends("what it left", || !lives(&left));
    }

    #[test]
    fn dropped_it_is_killed_and_reaped() {
        let family = Family::start(&mut sh("trap '' TERM; sleep 1000")).unwrap();
        let process = family.group.to_string();
        drop(family);
        assert!(!Path::new(&format!("/proc/{process}")).exists(), "a zombie at least");
    }

    #[test]
    fn one_that_does_not_end_in_time_is_waited_for_no_longer_and_reaped_when_another_starts() {
        let mut family = Family::start(&mut sh("exec sleep 1000")).unwrap();
        let process = format!("/proc/{}", family.group);
        // No process ends in no time, but for chance.
        if let Err(error) = family.end(Duration::ZERO) {
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        drop(family);
        ends("a zombie", || {
            drop(Family::start(&mut sh("exit")).unwrap());
            !Path::new(&process).exists()
        });
    }

    /// The kernel goes by the thread that started it.
    #[test]
    fn it_ends_with_who_started_it() {
        let started = thread::spawn(|| {
            let family = Family::start(&mut sh("exec sleep 1000")).unwrap();
            let process = family.group.to_string();
            // As if this were killed: nothing is dropped.
            std::mem::forget(family);
            process
        });
        let process = started.join().unwrap();
        ends("it", || !lives(&process));
        waitpid(Pid::from_raw(process.parse().unwrap()), None).unwrap();
    }
}
