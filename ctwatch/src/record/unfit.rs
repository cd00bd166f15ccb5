//! A file system that can't hold a recording while it is written: what it lacks, which one it is, and what to do.
//! SQLite needs locks, and memory that the recorder and its readers share through a file (the -shm of its WAL mode).

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::ffi;

use crate::files::file_system::{FileSystem, Lack};
use crate::foreign::Shown as _;

/// A recording can't be made there.
#[derive(Debug)]
pub struct Unfit {
    path: PathBuf,
    lacks: String,
}

impl Unfit {
    /// Of what was tried.
    pub(super) fn lacking(path: &Path, lack: &Lack) -> Self {
        let lacks = match lack {
            Lack::Locks(error) => format!("has no locks (fcntl: {error})"),
            Lack::SharedMemory(error) => {
                format!("has no memory that is shared through a file (mmap: {error})")
            }
        };
        Self { path: path.to_owned(), lacks }
    }

    /// Of `flock`.
    pub(super) fn without_flock(path: &Path, error: &std::io::Error) -> Self {
        Self { path: path.to_owned(), lacks: format!("has no locks (flock: {error})") }
    }

    /// Files belong to somebody else there from the beginning.
    pub(super) fn of_others(path: &Path, why: &str) -> Self {
        Self { path: path.to_owned(), lacks: format!("gives away what is made there ({why})") }
    }

    /// Of what SQLite met, if it is such a thing.
    pub(super) fn met(path: &Path, error: &anyhow::Error) -> Option<Self> {
        let met =
            error.chain().find_map(|cause| cause.downcast_ref().filter(|error| is_about_sharing(error)))?;
        Some(Self {
            path: path.to_owned(),
            lacks: format!("has no locks, or no shared memory, that SQLite can use ({met})"),
        })
    }
}

/// Whether an error is about locks or the memory that is shared, and not about the file's content.
pub(super) fn is_about_sharing(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code.is_some_and(|code| {
        matches!(
            code,
            ffi::SQLITE_IOERR_LOCK
                | ffi::SQLITE_IOERR_UNLOCK
                | ffi::SQLITE_IOERR_RDLOCK
                | ffi::SQLITE_IOERR_CHECKRESERVEDLOCK
                | ffi::SQLITE_IOERR_SHMOPEN
                | ffi::SQLITE_IOERR_SHMLOCK
                | ffi::SQLITE_IOERR_SHMMAP
                | ffi::SQLITE_PROTOCOL
        )
    })
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = FileSystem::of(&self.path);
        write!(f, "recording to {}: ", self.path.shown())?;
        match &place {
            Some(place) => write!(f, "the file system {place} {}", self.lacks)?,
            None => write!(f, "the file system there {}", self.lacks)?,
        }
        f.write_str(
            ", which a recording needs while it is written: record on a local one (ext4, xfs, btrfs, tmpfs) and copy the file \
             there once it is closed",
        )?;
        if place.is_some_and(|place| place.is_nfs()) {
            f.write_str("; or mount it with local_lock=all")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unfit {}
