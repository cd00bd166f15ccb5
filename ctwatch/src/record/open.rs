//! Opening a file that may not be a recording, may have another schema, or may be damaged.
//! Nothing here trusts the file, and nothing here writes to it.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Result;
use nix::unistd::geteuid;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use super::fault::{Fault, fault};
use super::files::{self, wal};
use super::regular;
use super::{APPLICATION_ID, SCHEMA, layout, limits};
use crate::files::open_regular;
use crate::foreign::Shown as _;

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
