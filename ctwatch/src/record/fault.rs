//! What can be wrong with a recording: with the file ([`Fault`]), or with a row of it ([`ReadError`]).
//! Each says what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use super::SCHEMA;
use super::stop::is_stopped;
use super::unfit::is_about_sharing;
use crate::files::file_system::FileSystem;
use crate::foreign::Shown as _;

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not exist.
    Missing(PathBuf),
    /// It can't be read.
    Unreadable(PathBuf, String),
    /// It is some other kind of file.
    NotARecording(PathBuf),
    /// A newer ctwatch made it, with this schema.
    Newer(PathBuf, i64),
    /// Its end is missing: actual size and expected size in bytes.
    Truncated(PathBuf, u64, u64),
    /// Its content is not what was written.
    Damaged(PathBuf, String),
    /// It asks for more than a file of its size may: memory, time, rows of a kind.
    TooMuch(PathBuf, String),
    /// Reading it was to end ([`super::stop_reading`]).
    Stopped(PathBuf),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "opening {}: no such file", path.shown()),
            Self::Unreadable(path, why) => write!(f, "opening {}: {why}", path.shown()),
            Self::NotARecording(path) => write!(
                f,
                "opening {}: not a ctwatch recording; `ctwatch record -o FILE` makes one",
                path.shown()
            ),
            Self::Newer(path, schema) => write!(
                f,
                "opening {}: it has schema {schema}, but this ctwatch reads schemas up to {SCHEMA}: use the version \
                 that recorded it, or a newer one",
                path.shown()
            ),
            Self::Truncated(path, is, should) => write!(
                f,
                "opening {}: the file is truncated, {is} of {should} bytes: copy it again, together with {}-wal if \
                 there is one, or salvage the rest with `sqlite3 {} .recover`",
                path.shown(),
                path.shown(),
                path.shown()
            ),
            Self::Damaged(path, what) => write!(
                f,
                "reading {}: the file is damaged ({what}): copy it again from where it was recorded, or salvage the \
                 rest with `sqlite3 {} .recover`",
                path.shown(),
                path.shown()
            ),
            Self::TooMuch(path, what) => write!(
                f,
                "reading {}: it takes more than ctwatch allows a file of its size ({what}): if nobody but ctwatch wrote to \
                 it, please report that; `sqlite3 -readonly {}` reads it without limits",
                path.shown(),
                path.shown()
            ),
            Self::Stopped(path) => write!(f, "reading {}: interrupted", path.shown()),
        }
    }
}

impl std::error::Error for Fault {}

/// Why a row can't be read: SQLite failed, or the row is not what was written.
#[derive(Debug)]
pub(super) enum ReadError {
    Sql(rusqlite::Error),
    Corrupt(String),
    TooMuch(String),
    Stopped,
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl ReadError {
    /// As a fault of this file.
    pub fn into_fault(self, path: &Path) -> Fault {
        match self {
            Self::Sql(error) => fault(path, &error),
            Self::Corrupt(what) => Fault::Damaged(path.to_owned(), what),
            Self::TooMuch(what) => Fault::TooMuch(path.to_owned(), what),
            Self::Stopped => Fault::Stopped(path.to_owned()),
        }
    }

    /// What ran into a limit for readers, if that was it: the file may be as it was written.
    pub fn limit(&self) -> Option<String> {
        match self {
            Self::TooMuch(what) => Some(what.clone()),
            Self::Sql(error) if error.sqlite_error_code() == Some(ErrorCode::OutOfMemory) => {
                Some(OUT_OF_MEMORY.to_owned())
            }
            Self::Sql(_) | Self::Corrupt(_) | Self::Stopped => None,
        }
    }
}

const OUT_OF_MEMORY: &str = "more memory than SQLite may take for a recording";

/// The error for a row whose checksum doesn't match.
pub(super) fn corrupt_row<T>(table: &str, id: i64) -> Result<T, ReadError> {
    Err(ReadError::Corrupt(format!("{table} {id}: checksum mismatch")))
}

/// The error for more rows, or larger ones, than a recorder writes.
pub(super) fn too_much<T>(what: &str, most: usize) -> Result<T, ReadError> {
    Err(ReadError::TooMuch(format!("more than {most} {what}")))
}

/// What a SQLite error says about the file.
pub(super) fn fault(path: &Path, error: &rusqlite::Error) -> Fault {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Fault::NotARecording(path.to_owned()),
        Some(ErrorCode::DatabaseCorrupt) | None => Fault::Damaged(path.to_owned(), error.to_string()),
        Some(ErrorCode::SystemIoFailure) if is_about_sharing(error) => {
            let place = FileSystem::of(path).map_or_else(String::new, |place| format!(" ({place})"));
            Fault::Unreadable(
                path.to_owned(),
                format!(
                    "{error}: its file system{place} has no locks or no shared memory: copy the file to a local one, together \
                         with its -wal if there is one, and read the copy"
                ),
            )
        }
        Some(ErrorCode::SystemIoFailure) => Fault::Damaged(path.to_owned(), error.to_string()),
        Some(ErrorCode::OperationInterrupted) if is_stopped() => Fault::Stopped(path.to_owned()),
        Some(ErrorCode::OperationInterrupted) => {
            Fault::TooMuch(path.to_owned(), "more steps or pages than reading it can need".to_owned())
        }
        Some(ErrorCode::OutOfMemory) => Fault::TooMuch(path.to_owned(), OUT_OF_MEMORY.to_owned()),
        Some(ErrorCode::TooBig) => {
            Fault::TooMuch(path.to_owned(), "a value is longer than any that a recorder writes".to_owned())
        }
        Some(_) => Fault::Unreadable(path.to_owned(), error.to_string()),
    }
}
