//! Which exit code an error means. Any [`anyhow::Error`] is "failed while running" unless one of these is in it, or too few
//! files may be open. Nothing here prints or exits.

pub mod shortage;

use std::{fmt, io};

/// The exit codes, a contract with scripts.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; also Ctrl-C, SIGTERM and a closed pipe.
    Done = 0,
    /// Failed while running.
    Failed = 1,
    /// Wrong usage, an unknown network namespace included.
    Usage = 2,
    /// Cannot watch on this host, or do anything for want of open files or threads.
    CannotWatch = 3,
    /// `record --once` saw no incident.
    NoIncident = 4,
}

/// An error with an exit code of its own. It works as a root error and as context around another one.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// Wrong usage that only shows once the arguments meet the host.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, text: text.into() }
    }

    /// ctwatch can't watch here; the text says why and what would help.
    pub fn cannot_watch(text: impl Into<String>) -> Self {
        Self { exit: Exit::CannotWatch, text: text.into() }
    }
}

/// Marks the error of an operation with an exit code.
pub trait ExitContext<T> {
    /// This failing means that ctwatch can't watch here (exit code 3).
    fn or_cannot_watch(self, text: impl FnOnce() -> String) -> anyhow::Result<T>;
    /// This failing means that the arguments were wrong (exit code 2).
    fn or_usage(self, text: impl FnOnce() -> String) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> ExitContext<T> for Result<T, E> {
    fn or_cannot_watch(self, text: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Failure::cannot_watch(text())))
    }

    fn or_usage(self, text: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Failure::usage(text())))
    }
}

/// The exit code of a run that ended in this error.
#[must_use]
pub fn exit(error: &anyhow::Error) -> Exit {
    if is_closed_pipe(error) {
        // `ctwatch drops | head -1` got what it wanted.
        return Exit::Done;
    }
    if shortage::remedy(error).is_some() {
        return Exit::CannotWatch;
    }
    error.downcast_ref::<Failure>().map_or(Exit::Failed, |failure| failure.exit)
}

/// What to say on stderr about this error: nothing for a closed pipe.
#[must_use]
pub fn message(error: &anyhow::Error) -> Option<String> {
    (!is_closed_pipe(error)).then(|| match shortage::remedy(error) {
        Some(remedy) => format!("error: {error:#}; {remedy}"),
        None => format!("error: {error:#}"),
    })
}

/// Whether the reader of the output has gone.
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn an_unmarked_error_failed_while_running() {
        assert_eq!(exit(&anyhow!("the ring buffer broke")), Exit::Failed);
    }

    #[test]
    fn a_mark_survives_context_on_either_side() {
        let inner: anyhow::Result<()> = Err(anyhow!("EPERM"));
        let error = inner
            .or_cannot_watch(|| "loading the programs: run as root".to_owned())
            .context("starting the kprobe backend")
            .unwrap_err();
        assert_eq!(exit(&error), Exit::CannotWatch);
        assert_eq!(
            message(&error).unwrap(),
            "error: starting the kprobe backend: loading the programs: run as root: EPERM"
        );
        assert_eq!(exit(&anyhow::Error::new(Failure::usage("no netns web7"))), Exit::Usage);
    }

    #[test]
    fn a_closed_pipe_is_success_and_silent() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing the tick");
        assert_eq!(exit(&error), Exit::Done);
        assert_eq!(message(&error), None);
    }
}
