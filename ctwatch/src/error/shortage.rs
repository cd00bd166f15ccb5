//! What a process is allowed too few of: open files and threads. It is looked for before a command begins, as what can't be
//! opened later may pass for what isn't there. An error that comes of it all the same is known by its number, wherever in the
//! program it came up.

use std::fs::File;
use std::io;
use std::sync::Mutex;
use std::thread;

use nix::errno::Errno;

use super::Failure;

/// Files that must be free where something begins: event loops, sockets, pipes to tools, and what is read in passing.
const FILES: usize = 32;
/// Threads that must be possible at once: those that write, wait for signals, visit a netns.
const THREADS: usize = 8;

const TOO_FEW_FILES: &str =
    "too few open files are allowed: raise the limit (`ulimit -n 1024`; systemd: LimitNOFILE=1024)";
const NO_FILE_HANDLES: &str = "the host has no file handles left: raise fs.file-max";
const TOO_FEW_THREADS: &str = "too few threads are allowed: raise the limit (`ulimit -u 1024`; systemd: LimitNPROC=1024, \
                               TasksMax=1024; docker: --pids-limit)";

/// What would help, if an error says that there are too few open files.
#[must_use]
pub fn remedy(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let code = match cause.downcast_ref::<io::Error>() {
            Some(error) => error.raw_os_error()?,
            None => *cause.downcast_ref::<Errno>()? as i32,
        };
        of_files(code)
    })
}

const fn of_files(code: i32) -> Option<&'static str> {
    match code {
        libc::EMFILE => Some(TOO_FEW_FILES),
        libc::ENFILE => Some(NO_FILE_HANDLES),
        _ => None,
    }
}

/// Whether there is room for what a command opens and starts besides what it is there for.
///
/// # Errors
/// There isn't; the text says what to raise.
pub fn ensure_room() -> Result<(), Failure> {
    open_files().map_err(|error| {
        let code = error.raw_os_error().unwrap_or_default();
        Failure::cannot_watch(format!("{}: {error}", of_files(code).unwrap_or("no file can be opened")))
    })?;
    start_threads().map_err(|error| Failure::cannot_watch(format!("{TOO_FEW_THREADS}: {error}")))
}

fn open_files() -> io::Result<()> {
    let first = File::open("/")?;
    (1..FILES).map(|_| first.try_clone()).collect::<io::Result<Vec<_>>>().map(drop)
}

/// All there at the same time, and gone before this returns.
fn start_threads() -> io::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let closed = gate.lock();
        let started = (0..THREADS).try_for_each(|_| {
            let thread = thread::Builder::new().stack_size(64 << 10);
            thread.spawn_scoped(scope, || drop(gate.lock())).map(drop)
        });
        drop(closed);
        started
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Exit, exit, message};
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn too_few_open_files_are_known_wherever_they_come_up() {
        let errors = [
            anyhow::Error::from(io::Error::from_raw_os_error(libc::EMFILE))
                .context("starting the event loop"),
            anyhow::Error::from(Errno::EMFILE).context(Failure::usage("--netns a")),
            Err::<(), _>(io::Error::from_raw_os_error(libc::ENFILE)).context("a pipe").unwrap_err(),
        ];
        for error in &errors {
            assert_eq!(exit(error), Exit::CannotWatch, "{error:#}");
            let said = message(error).unwrap();
            assert!(said.contains("ulimit -n") || said.contains("fs.file-max"), "{said}");
        }
        assert_eq!(remedy(&anyhow!("Too many open files")), None);
        assert_eq!(remedy(&io::Error::from_raw_os_error(libc::ENOENT).into()), None);
    }

    #[test]
    fn there_is_room_here() {
        ensure_room().unwrap();
    }
}
