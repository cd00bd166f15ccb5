//! Runs one of the host's tools to its end: with an environment of our own, within limits of time and of what it may print.
//! Whatever it started itself and left behind is not waited for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::children::Family;
use crate::files::lists::Limit;

/// The longest text of a tool's errors.
const LONGEST_ERRORS: usize = 64 << 10;

/// What all tools that one question needs may take together, in time and in what they print: the owner of a netns decides how many
/// rules it has. What comes when nothing is left is stopped, and its rules are unknown.
#[derive(Debug)]
pub struct Budget {
    patience: Duration,
    until: Instant,
    longest: usize,
    left: usize,
    lists: Limit,
}

impl Budget {
    /// For the netns that was asked about, from now on. 250,000 rules are 250 MB of JSON and 60 MB of text, for which nft takes
    /// a dozen seconds.
    #[must_use]
    pub fn whole() -> Self {
        Self::new(Duration::from_secs(30), 320 << 20, Duration::from_secs(3))
    }

    /// For a netns that is looked at because it lost packets. A recording keeps no longer rules than 48 MB.
    #[must_use]
    pub fn of_others() -> Self {
        Self::new(Duration::from_secs(5), 96 << 20, Duration::from_secs(1))
    }

    fn new(patience: Duration, longest: usize, lists: Duration) -> Self {
        let until = Instant::now() + patience;
        Self { patience, until, longest, left: longest, lists: Limit::new(lists, u64::MAX) }
    }

    /// What the kernel's own lists may take.
    pub(super) fn lists(&mut self) -> &mut Limit {
        &mut self.lists
    }
}

/// Runs it to its end. `path` is the PATH it gets.
pub(super) fn output(
    program: &Path,
    arguments: &[&str],
    path: &OsStr,
    budget: &mut Budget,
) -> Result<Output> {
    let mut command = Command::new(program);
    // Nothing of our environment: it may name libraries, locales or other programs. Nor our folder.
    command.args(arguments).env_clear().env("PATH", path).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let until = budget.until;
    let together = if budget.left < budget.longest { " with those before it" } else { "" };
    let too_long = || anyhow::anyhow!("it took longer{together} than {:?} and was stopped", budget.patience);
    if Instant::now() >= until {
        return Err(too_long());
    }
    let mut running = Family::start(&mut command).context("starting it")?;
    let most = format!("{} MB{together}", budget.longest >> 20);
    let mut streams = [
        Stream::new(running.stdout().map(OwnedFd::from), budget.left, most),
        Stream::new(
            running.stderr().map(OwnedFd::from),
            LONGEST_ERRORS,
            format!("{} kB of errors", LONGEST_ERRORS >> 10),
        ),
    ];
    let read = read_all(&mut streams, until, too_long);
    let [stdout, stderr] = streams.map(|stream| stream.text);
    let status = read.and_then(|()| {
        while !running.has_ended().context("waiting for it")? {
            if Instant::now() > until {
                return Err(too_long());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        running.reap().context("waiting for it")
    });
    budget.left = budget.left.saturating_sub(stdout.len());
    Ok(Output { status: status?, stdout, stderr })
}

/// Until both are at their end.
fn read_all(streams: &mut [Stream; 2], until: Instant, too_long: impl Fn() -> anyhow::Error) -> Result<()> {
    while streams.iter().any(|stream| stream.from.is_some()) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_long());
        }
        read_some(streams, left)?;
    }
    Ok(())
}

/// What it prints to one of its pipes; `None` once that is at its end.
struct Stream {
    from: Option<File>,
    text: Vec<u8>,
    longest: usize,
    /// The same in words.
    most: String,
}

impl Stream {
    fn new(from: Option<OwnedFd>, longest: usize, most: String) -> Self {
        Self { from: from.map(File::from), text: Vec::new(), longest, most }
    }

    /// Reads once; it is known that something is there.
    fn read(&mut self) -> Result<()> {
        let Some(from) = &mut self.from else { return Ok(()) };
        let mut some = [0; 1 << 16];
        match from.read(&mut some) {
            Ok(0) => self.from = None,
            Ok(length) => self.text.extend_from_slice(&some[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading what it prints"),
        }
        if self.text.len() > self.longest {
            bail!("it printed more than {} and was stopped", self.most);
        }
        Ok(())
    }
}

/// Reads from those that have something, after waiting for so long at most.
fn read_some(streams: &mut [Stream; 2], left: Duration) -> Result<()> {
    let open: Vec<usize> = (0..streams.len()).filter(|index| streams[*index].from.is_some()).collect();
    let mut fds: Vec<PollFd<'_>> = open
        .iter()
        .filter_map(|index| streams[*index].from.as_ref())
        .map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN))
        .collect();
    // A millisecond more, so that what is left isn't waited for in circles.
    let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, wait) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("waiting for what it prints"),
    }
    let ready: Vec<usize> = open
        .iter()
        .zip(&fds)
        .filter(|(_, fd)| fd.revents().is_some_and(|events| !events.is_empty()))
        .map(|(index, _)| *index)
        .collect();
    ready.into_iter().try_for_each(|index| streams[index].read())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(time: Duration, script: &str, longest: usize) -> Result<Output> {
        told(script, &mut Budget::new(time, longest, time))
    }

    fn told(script: &str, budget: &mut Budget) -> Result<Output> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        output(Path::new("/bin/sh"), &["-c", script], &path, budget)
    }

    #[test]
    fn all_tools_of_a_question_share_what_they_may_take() {
        let mut budget = Budget::new(Duration::from_secs(30), 1 << 20, Duration::ZERO);
        let half = "seq 100000";
        assert_eq!(told(half, &mut budget).expect("there is room").stdout.len(), 588_895);
        let second = told(half, &mut budget).expect_err("both are too much");
        assert!(format!("{second:#}").contains("more than 1 MB with those before it"), "{second:#}");
        assert!(told("echo one more", &mut budget).is_err(), "nothing is left");
        let mut budget = Budget::new(Duration::from_millis(600), 1 << 20, Duration::ZERO);
        assert!(told("echo; sleep 0.4", &mut budget).is_ok());
        let started = Instant::now();
        let late = told("sleep 60", &mut budget).expect_err("no time is left");
        assert!(format!("{late:#}").contains("longer with those before it than 600ms"), "{late:#}");
        assert!(told("sleep 60", &mut budget).is_err());
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    /// For what ends by itself, or is ended for what it prints, on a busy host, too.
    fn sh(script: &str, longest: usize) -> Result<Output> {
        within(Duration::from_secs(30), script, longest)
    }

    /// For what never ends.
    fn hanging(script: &str) -> Result<Output> {
        within(Duration::from_millis(600), script, 1 << 20)
    }

    #[test]
    fn a_tool_that_hangs_or_prints_without_end_is_cut_off() {
        let started = Instant::now();
        let hangs = hanging("sleep 60").expect_err("it hangs");
        assert!(format!("{hangs:#}").contains("took longer"), "{hangs:#}");
        let child_hangs = hanging("sleep 60 & exit 0").expect_err("its child holds the pipe");
        assert!(format!("{child_hangs:#}").contains("took longer"), "{child_hangs:#}");
        let silent = hanging("exec > /dev/null 2>&1; sleep 60").expect_err("it hangs without pipes");
        assert!(format!("{silent:#}").contains("took longer"), "{silent:#}");
        assert!(started.elapsed() < Duration::from_secs(20));
        let endless = sh("while :; do echo rule; done", 1 << 20).expect_err("it never ends");
        assert!(format!("{endless:#}").contains("more than 1 MB"), "{endless:#}");
        let complains = sh("while :; do echo no >&2; done", 1 << 20).expect_err("it never ends");
        assert!(format!("{complains:#}").contains("more than 64 kB of errors"), "{complains:#}");
    }

    #[test]
    fn a_grandchild_that_left_its_group_holds_nothing_up() {
        let started = Instant::now();
        let away = hanging("setsid sleep 30 & sleep 0.2; echo done").expect_err("it holds the pipe");
        assert!(format!("{away:#}").contains("took longer"), "{away:#}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_a_tool_prints_is_read_to_the_end() {
        let output = sh("seq 100000; echo no >&2; exit 3", 1 << 20).expect("it ends");
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 100_000);
        assert_eq!(output.stderr, b"no\n");
    }

    #[test]
    fn nothing_of_the_environment_or_of_the_folder_is_handed_on() {
        let output = sh("pwd; env", 1 << 20).expect("it ends");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut names: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_once('=').map(|(name, _)| name)).collect();
        names.sort_unstable();
        // What a shell sets itself.
        names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
        assert!(text.starts_with("/\n"), "{text}");
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }
}
