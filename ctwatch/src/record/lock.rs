//! One recorder per file: a lock file of our own next to it, FILE-lock, released when the process that holds it ends.
//! Not SQLite's locks: readers must not be shut out, and those are lost when any descriptor of the file is closed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::files::sidecar_path;
use super::full::DiskFull;
use crate::error::Failure;
use crate::foreign::Shown as _;

/// Bytes reserved in the lock file, so that the end of the run can be written to a full disk.
const RESERVED: usize = 256 << 10;

/// The exclusive right to write a recording. Released on drop.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// Another recorder holds it, or nothing can be written there.
    pub fn take(recording: &Path) -> Result<Self> {
        let path = sidecar_path(recording, "-lock");
        loop {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.with_context(|| {
                format!("creating {}: the recording's directory must exist and be writable", path.shown())
            })?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::usage(format!(
                        "recording to {}: another ctwatch is recording to this file; choose another one with -o",
                        recording.shown()
                    ))
                    .into());
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("locking {}", path.shown()));
                }
            }
            // Its previous holder may have removed the file between our opening and our locking it.
            if file.metadata().ok().map(|ours| ours.ino())
                == std::fs::metadata(&path).ok().map(|there| there.ino())
            {
                return Ok(Self { file, path });
            }
        }
    }

    /// Fills the lock file, so that there is space to release when the disk is full.
    ///
    /// # Errors
    /// The disk is full already ([`DiskFull`]), or broken.
    pub fn reserve_space(&mut self, recording: &Path) -> Result<()> {
        let loaded = self.file.write_all(&vec![0; RESERVED]).and_then(|()| self.file.sync_data());
        loaded.map_err(|error| match error.kind() {
            ErrorKind::StorageFull => DiskFull::at_the_start(recording).into(),
            _ => anyhow::Error::from(error).context(format!("reserving space next to {}", recording.shown())),
        })
    }

    /// Releases the reserved space.
    pub fn release_space(&self) {
        let _ = self.file.set_len(0);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ctw");
        let first = Lock::take(&path).unwrap();
        let refused = Lock::take(&path).unwrap_err().to_string();
        assert!(refused.contains("another ctwatch is recording"), "{refused}");
        drop(first);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
        drop(Lock::take(&path).unwrap());
    }
}
