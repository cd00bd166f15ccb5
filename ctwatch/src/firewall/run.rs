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

/// A tool that takes longer is stopped: 40,000 rules take nft a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// A tool that prints more is stopped: 40,000 rules are 40 MB of JSON.
const LONGEST: usize = 256 << 20;
/// The same for its errors.
const LONGEST_ERRORS: usize = 64 << 10;

/// Runs it to its end. `path` is the PATH it gets.
pub(super) fn output(program: &Path, arguments: &[&str], path: &OsStr) -> Result<Output> {
    limited(program, arguments, path, PATIENCE, LONGEST)
}

fn limited(
    program: &Path,
    arguments: &[&str],
    path: &OsStr,
    patience: Duration,
    longest: usize,
) -> Result<Output> {
    let mut command = Command::new(program);
    // Nothing of our environment: it may name libraries, locales or other programs. Nor our folder.
    command.args(arguments).env_clear().env("PATH", path).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Family::start(&mut command).context("starting it")?;
    let until = Instant::now() + patience;
    let mut streams = [
        Stream::new(running.stdout().map(OwnedFd::from), longest),
        Stream::new(running.stderr().map(OwnedFd::from), LONGEST_ERRORS),
    ];
    let too_long = || anyhow::anyhow!("it took longer than {patience:?} and was stopped");
    while streams.iter().any(|stream| stream.from.is_some()) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_long());
        }
        read_some(&mut streams, left)?;
    }
    while !running.has_ended().context("waiting for it")? {
        if Instant::now() > until {
            return Err(too_long());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let status = running.reap().context("waiting for it")?;
    let [stdout, stderr] = streams.map(|stream| stream.text);
    Ok(Output { status, stdout, stderr })
}

/// What it prints to one of its pipes; `None` once that is at its end.
struct Stream {
    from: Option<File>,
    text: Vec<u8>,
    longest: usize,
}

impl Stream {
    fn new(from: Option<OwnedFd>, longest: usize) -> Self {
        Self { from: from.map(File::from), text: Vec::new(), longest }
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
            let most = self.longest >> 10;
            let most =
                if most >= 1024 { format!("{} MB", most >> 10) } else { format!("{most} kB of errors") };
            bail!("it printed more than {most} and was stopped");
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
        let path = std::env::var_os("PATH").unwrap_or_default();
        limited(Path::new("/bin/sh"), &["-c", script], &path, time, longest)
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
