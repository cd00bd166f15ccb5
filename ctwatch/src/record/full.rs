//! A full disk: how to recognize it, and what to tell the user. No other error may be mistaken for it.

use crate::foreign::Shown as _;
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// The -shm of a database can't grow; SQLite reports that as an I/O error.
const SHM_CAN_NOT_GROW: i32 = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;

/// There is no space left on the disk.
#[derive(Debug)]
pub struct DiskFull {
    path: PathBuf,
    /// Whether anything had been recorded before.
    begun: bool,
}

impl DiskFull {
    pub(super) fn later(path: &Path) -> Self {
        Self { path: path.to_owned(), begun: true }
    }

    /// The disk was full when the run was to begin.
    #[must_use]
    pub fn at_the_start(path: &Path) -> Self {
        Self { path: path.to_owned(), begun: false }
    }
}

impl fmt::Display for DiskFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.shown();
        if self.begun {
            write!(
                f,
                "writing {path}: the disk is full, so recording ended; the file has everything up to then. Free some \
                 space, or set a smaller --max-size"
            )
        } else {
            write!(
                f,
                "creating {path}: the disk is full, so nothing is recorded. Free some space, or choose another place \
                 with -o"
            )
        }
    }
}

impl std::error::Error for DiskFull {}

/// Whether an error means that the disk is full.
#[must_use]
pub fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|error| error.extended_code == SHM_CAN_NOT_GROW)
}

/// Whether any cause of an error means that the disk is full.
pub(super) fn lacks_room(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(is_full)
            || cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
    })
}
