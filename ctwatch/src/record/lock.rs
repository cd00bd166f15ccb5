//! One recorder per file: a lock file of our own next to it, FILE-lock, released when the process that holds it ends.
//! Not SQLite's locks: readers must not be shut out, and those are lost when any descriptor of the file is closed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::files::{self, sidecar_path};
use super::full::DiskFull;
use super::unfit::Unfit;
use crate::error::Failure;
use crate::files::file_system::{Lack, try_for_database};
use crate::files::place;
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
    /// Takes it. The recording's folder has been looked at ([`place::file`]).
    ///
    /// # Errors
    /// Another recorder holds it, nothing can be written there, or what has its name is no lock file.
    pub fn take(recording: &Path) -> Result<Self> {
        let path = sidecar_path(recording, "-lock");
        loop {
            let Some((file, is_new)) = open(&path)? else { continue };
            let taken = hold(&file, &path, recording, is_new);
            if is_new && taken.is_err() {
                // Nobody else can hold it: they fail of the same.
                let _ = std::fs::remove_file(&path);
            }
            taken?;
            // Its previous holder may have removed the file between our opening and our locking it.
            if file.metadata().ok().map(|ours| ours.ino())
                != std::fs::symlink_metadata(&path).ok().map(|there| there.ino())
            {
                continue;
            }
            if !is_reserve(&file)? {
                return Err(no_lock_file(&path, "something is written in it"));
            }
            let lock = Self { file, path };
            try_file_system(recording)?;
            return Ok(lock);
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

/// Opens the lock file, and tells whether it is new. `None`: it went, or came, meanwhile.
fn open(path: &Path) -> Result<Option<(File, bool)>> {
    // A link is not followed, and a FIFO doesn't wait for its other end.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(flags);
    match options.clone().create_new(true).open(path) {
        Ok(file) => return Ok(Some((file, true))),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(anyhow::Error::from(error).context(format!(
                "creating {}: the recording's directory must exist and be writable",
                path.shown()
            )));
        }
    }
    match options.open(path) {
        Ok(file) => Ok(Some((file, false))),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(None),
            Some(libc::ELOOP) => Err(no_lock_file(path, "it is a link")),
            Some(libc::ENXIO) => Err(no_lock_file(path, "it is not a regular file")),
            _ => Err(error).with_context(|| format!("opening {}", path.shown())),
        },
    }
}

/// Locks it, if it is ours.
fn hold(file: &File, path: &Path, recording: &Path, is_new: bool) -> Result<()> {
    let about = file.metadata().with_context(|| format!("looking at {}", path.shown()))?;
    if about.nlink() > 0 {
        place::own(&about).map_err(|error| match is_new {
            true => unfit(Unfit::of_others(recording, &error.to_string())),
            false => no_lock_file(path, &error.to_string()),
        })?;
    }
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Failure::usage(format!(
            "recording to {}: another ctwatch is recording to this file; choose another one with -o",
            recording.shown()
        ))
        .into()),
        Err(TryLockError::Error(error)) => Err(unfit(Unfit::without_flock(recording, &error))),
    }
}

/// Whether SQLite can write a recording there: tried before anything waits, in a file that goes at once.
fn try_file_system(recording: &Path) -> Result<()> {
    let doing = || format!("creating a file next to {}", recording.shown());
    let draft = match files::draft(recording) {
        Err(error) if error.kind() == ErrorKind::StorageFull => {
            return Err(DiskFull::at_the_start(recording).into());
        }
        draft => draft.with_context(doing)?,
    };
    let tried = OpenOptions::new().read(true).write(true).open(&draft).map(|file| try_for_database(&file));
    files::remove(&draft).with_context(doing)?;
    match tried.with_context(doing)? {
        Err(Lack::SharedMemory(error)) if error.kind() == ErrorKind::StorageFull => {
            Err(DiskFull::at_the_start(recording).into())
        }
        tried => tried.map_err(|lack| unfit(Unfit::lacking(recording, &lack))),
    }
}

/// Another place is to be chosen.
fn unfit(unfit: Unfit) -> anyhow::Error {
    Failure::usage(unfit.to_string()).into()
}

/// Whether there is nothing in it but what a recorder that was killed had reserved.
fn is_reserve(file: &File) -> Result<bool> {
    let mut bytes = Vec::new();
    file.take(RESERVED as u64 + 1).read_to_end(&mut bytes).context("reading a lock file")?;
    (&*file).rewind().context("reading a lock file")?;
    Ok(bytes.len() <= RESERVED && bytes.iter().all(|byte| *byte == 0))
}

fn no_lock_file(path: &Path, why: &str) -> anyhow::Error {
    let path = path.shown();
    Failure::usage(format!(
        "{path} is in the way of a recorder's lock file ({why}): look at it, and remove it or record elsewhere"
    ))
    .into()
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

    #[test]
    fn what_has_the_name_of_a_lock_file_and_is_none_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let refused = |lock: &str| {
            let error = Lock::take(&at("a.ctw")).unwrap_err().to_string();
            assert!(error.contains("is in the way"), "{lock}: {error}");
            std::fs::remove_file(at("a.ctw-lock")).unwrap();
        };
        std::fs::write(at("mine"), "words").unwrap();
        std::os::unix::fs::symlink(at("mine"), at("a.ctw-lock")).unwrap();
        refused("a link");
        std::os::unix::fs::symlink(at("nowhere"), at("a.ctw-lock")).unwrap();
        refused("a dangling link");
        std::fs::hard_link(at("mine"), at("a.ctw-lock")).unwrap();
        refused("a hard link");
        nix::unistd::mkfifo(&at("a.ctw-lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("a FIFO");
        std::fs::write(at("a.ctw-lock"), "words").unwrap();
        refused("a file with words");
        assert_eq!(std::fs::read(at("mine")).unwrap(), b"words");
        assert!(!at("nowhere").exists());
        // What a recorder that was killed leaves is no obstacle.
        std::fs::write(at("a.ctw-lock"), vec![0; RESERVED]).unwrap();
        drop(Lock::take(&at("a.ctw")).unwrap());
    }
}
