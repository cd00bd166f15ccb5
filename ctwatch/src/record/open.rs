//! Opening a file that may not be a recording, may have another schema, or may be damaged.
//! Nothing here trusts the file, and nothing here writes to it.

use std::fmt;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::unistd::geteuid;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use super::files::{self, wal};
use super::regular;
use super::unfit::is_about_sharing;
use super::{APPLICATION_ID, SCHEMA, layout, limits};
use crate::files::file_system::FileSystem;
use crate::files::open_regular;
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
    /// Reading it was to end ([`limits::stop_reading`]).
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

/// Opens a file for reading, even if its directory is read-only.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    examine_head(path)?;
    refuse_journal(path)?;
    examine_size(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |about| limits::bytes_of(&about));
    let size = bytes(path) + wal(path).map_or(0, |wal| bytes(&wal));
    let probed = |connection| probed(connection, size);
    let connection = if wal(path).is_some() {
        // A recorder is running or was killed: what is only in the -wal counts.
        let alone = |vfs| {
            regular::connect(path, flags, Some(vfs)).and_then(|connection| {
                connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
                probed(connection)
            })
        };
        if files::are_trusted(path) {
            match regular::connect(path, flags, None).and_then(probed) {
                // In a read-only directory the index that readers of a -wal share can't be created.
                Err(error) if is_about_the_index(&error) => alone(c"unix-none"),
                opened => opened,
            }
        } else {
            // An index that somebody else made, or could change meanwhile, is not used, and none is made next to it.
            alone(c"unix-none")
        }
    } else {
        // Nobody writes: the file can be read without creating others, and none are left behind.
        let flags = flags | OpenFlags::SQLITE_OPEN_URI;
        regular::connect(Path::new(&immutable(path)), flags, None).and_then(probed)
    };
    let connection = connection.map_err(|error| fault(path, &error))?;
    examine_marks(path, &connection)?;
    layout::examine(&connection).map_err(|error| error.into_fault(path))?;
    Ok(connection)
}

/// Whether the index of a -wal may have been what failed.
fn is_about_the_index(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::NotADatabase
                | ErrorCode::OperationInterrupted
                | ErrorCode::OutOfMemory
                | ErrorCode::TooBig
        )
    )
}

/// Whether a file is a recording that this ctwatch can continue.
pub(super) fn examine(path: &Path) -> Result<()> {
    connect(path).map(drop)
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
        Some(ErrorCode::OperationInterrupted) if limits::is_stopped() => Fault::Stopped(path.to_owned()),
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

fn probed(mut connection: Connection, size: u64) -> rusqlite::Result<Connection> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    limits::distrust(&connection)?;
    limits::shorten_values(&connection)?;
    limits::watch(&mut connection, size)?;
    // Whether anything can be read of it. One row: a count may take longer than all the rest.
    connection.query_row("SELECT 1 FROM sqlite_master LIMIT 1", [], |_| Ok(())).optional()?;
    Ok(connection)
}

/// SQLite's first 16 bytes (file format, section 1.3).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEAD: usize = 100;

fn head(path: &Path) -> Result<[u8; HEAD], Fault> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Fault::Missing(path.to_owned()),
        std::io::ErrorKind::UnexpectedEof => Fault::NotARecording(path.to_owned()),
        std::io::ErrorKind::PermissionDenied => {
            Fault::Unreadable(path.to_owned(), format!("{error}; {}", how_to_read(geteuid().is_root())))
        }
        _ => Fault::Unreadable(path.to_owned(), error.to_string()),
    };
    let mut head = [0; HEAD];
    open_regular(path).and_then(|mut file| file.read_exact(&mut head)).map_err(unreadable)?;
    Ok(head)
}

/// What lets a recording be read that is another user's.
const fn how_to_read(is_root: bool) -> &'static str {
    if is_root {
        "it is another user's, and root reads it with CAP_DAC_OVERRIDE alone, in a user namespace that maps its owner: docker, podman: \
         --cap-add DAC_OVERRIDE"
    } else {
        "recordings are readable by root only: use sudo, in a container docker, podman: --user 0"
    }
}

fn examine_head(path: &Path) -> Result<(), Fault> {
    match head(path)?.starts_with(MAGIC) {
        true => Ok(()),
        false => Err(Fault::NotARecording(path.to_owned())),
    }
}

/// A journal says what SQLite is to undo first, and in it anything may stand for what was there before.
fn refuse_journal(path: &Path) -> Result<(), Fault> {
    match files::journal(path) {
        Some(journal) => {
            let text =
                format!("{} is next to it, and no recorder makes such a file: remove it", journal.shown());
            Err(Fault::Unreadable(path.to_owned(), text))
        }
        None => Ok(()),
    }
}

fn examine_marks(path: &Path, connection: &Connection) -> Result<(), Fault> {
    let number = |name: &str| {
        let value = connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        value.map_err(|error| fault(path, &error))
    };
    if number("application_id")? != APPLICATION_ID {
        return Err(Fault::NotARecording(path.to_owned()));
    }
    match number("user_version")? {
        newer if newer > SCHEMA => Err(Fault::Newer(path.to_owned(), newer)),
        SCHEMA => Ok(()),
        _ => Err(Fault::NotARecording(path.to_owned())),
    }
}

/// Whether the file has all the pages its header promises. With a -wal, some of them may be there.
fn examine_size(path: &Path) -> Result<(), Fault> {
    if wal(path).is_some() {
        return Ok(());
    }
    let head = head(path)?;
    let page = match u16::from_be_bytes([head[16], head[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = u32::from_be_bytes([head[28], head[29], head[30], head[31]]);
    let is = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let should = page * u64::from(pages);
    if is < should { Err(Fault::Truncated(path.to_owned(), is, should)) } else { Ok(()) }
}

/// The URI that tells SQLite nobody changes the file.
fn immutable(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri + "?immutable=1"
}
