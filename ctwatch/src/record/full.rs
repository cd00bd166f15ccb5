//! A disk without room: how it shows, and what is said of it. Nothing else may be taken for it.

use std::path::{Path, PathBuf};
use std::{fmt, io};

/// The shared memory beside a database can't grow; SQLite counts that among the I/O errors.
const SHM_CAN_NOT_GROW: i32 = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;

/// There is no room on the disk.
#[derive(Debug)]
pub struct DiskFull {
    path: PathBuf,
    /// Whether anything was recorded before.
    begun: bool,
}

impl DiskFull {
    pub(super) fn later(path: &Path) -> Self {
        Self { path: path.to_owned(), begun: true }
    }

    /// When a run was to begin.
    #[must_use]
    pub fn at_the_start(path: &Path) -> Self {
        Self { path: path.to_owned(), begun: false }
    }
}

impl fmt::Display for DiskFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        if self.begun {
            write!(
                f,
                "writing {path}: the disk is full, so the recording ended; the file holds everything until then. Make \
                 room, or give a smaller --max-size"
            )
        } else {
            write!(
                f,
                "beginning {path}: the disk is full, so nothing is recorded. Make room, or give another place with -o"
            )
        }
    }
}

impl std::error::Error for DiskFull {}

/// Whether an error says that there is no room.
#[must_use]
pub fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|error| error.extended_code == SHM_CAN_NOT_GROW)
}

/// Whether one of the causes of an error does.
pub(super) fn lacks_room(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(is_full)
            || cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
    })
}
