//! The files of a recording: the database, and the -wal and -shm that SQLite keeps next to it. A new recording gets its name
//! only once it is complete, and the files move together: a -wal next to the wrong database destroys that database.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::files::place::{self, Sharing};
use crate::foreign::Shown as _;

/// What SQLite creates next to a database.
const ENDINGS: [&str; 2] = ["-wal", "-shm"];
/// What SQLite would undo changes from before it reads anything. We never make one.
const JOURNAL: &str = "-journal";

/// The path of a file next to this one: the same name with something appended.
pub(super) fn sidecar_path(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The -wal of a recording, if part of the recording is in it: the two have to be copied together.
#[must_use]
pub fn wal(path: &Path) -> Option<PathBuf> {
    let wal = sidecar_path(&itself(path), "-wal");
    fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > 0).then_some(wal)
}

/// Something next to a recording that SQLite would take for its journal.
pub(super) fn journal(path: &Path) -> Option<PathBuf> {
    let journal = sidecar_path(&itself(path), JOURNAL);
    fs::symlink_metadata(&journal).is_ok().then_some(journal)
}

/// Where SQLite looks: beside the file that a link leads to.
fn itself(path: &Path) -> PathBuf {
    let is_link = fs::symlink_metadata(path).is_ok_and(|about| about.is_symlink());
    if is_link { fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) } else { path.to_owned() }
}

/// Whether a recording has yet to be created there: there is nothing, or an empty file. What has the name of one of its
/// files has to be ours. Its folder has been looked at ([`place::file`]), so it stays so.
pub(super) fn is_new(path: &Path) -> Result<bool> {
    for ending in ENDINGS {
        looked_at(&sidecar_path(path, ending))?;
    }
    for name in [path, &sidecar_path(path, "-new")] {
        if looked_at(&sidecar_path(name, JOURNAL))?.is_some() {
            let text = format!("{}{JOURNAL} is in the way: no recorder makes such a file", name.shown());
            return Err(Error::new(ErrorKind::InvalidInput, text));
        }
    }
    Ok(looked_at(path)?.is_none_or(|metadata| metadata.len() == 0 && wal(path).is_none()))
}

/// Whether a recording and what is next to it are our own or root's, in a folder where nobody else can change that.
pub(super) fn are_trusted(path: &Path) -> bool {
    place::file(path, Sharing::Refused).is_ok_and(|path| is_new(&path).is_ok())
}

/// What has this name, if it is a file of our own; nothing if nothing has it.
fn looked_at(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(about) => match place::own(&about) {
            Ok(()) => Ok(Some(about)),
            Err(error) => Err(Error::new(error.kind(), format!("{}: {error}", path.shown()))),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates the file in which a new recording is laid out before it gets its name. The caller holds the lock of that name.
pub(super) fn draft(path: &Path) -> Result<PathBuf> {
    let draft = sidecar_path(path, "-new");
    // A killed recorder may have left one behind.
    remove(&draft)?;
    // Only its owner may read it: it holds addresses.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    Ok(draft)
}

/// Gives a draft its name. A -wal or -shm already there belongs to a file that is gone.
pub(super) fn publish(draft: &Path, path: &Path) -> Result<()> {
    for ending in ENDINGS {
        remove_one(&sidecar_path(path, ending))?;
    }
    fs::rename(draft, path)?;
    sync_folder(path)
}

/// Renames a recording that has ended. Somebody may still be reading it.
///
/// # Errors
/// One of its files couldn't be renamed.
pub fn set_aside(path: &Path, aside: &Path) -> Result<()> {
    let whole = wal(path).is_none();
    fs::rename(path, aside)?;
    for ending in ENDINGS {
        let file = sidecar_path(path, ending);
        let moved = if whole { remove_one(&file) } else { fs::rename(&file, sidecar_path(aside, ending)) };
        match moved {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            moved => moved?,
        }
    }
    sync_folder(path)
}

/// Whether files can be made next to a recording, and so be renamed there. The caller holds its lock.
///
/// # Errors
/// They can't.
pub fn try_folder(path: &Path) -> Result<()> {
    remove(&draft(path)?)
}

/// Removes a database with everything SQLite created next to it.
pub(super) fn remove(path: &Path) -> Result<()> {
    for ending in ENDINGS {
        remove_one(&sidecar_path(path, ending))?;
    }
    remove_one(path)
}

fn remove_one(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes renames in the directory of this file durable.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder)?.sync_all() {
        // Not every file system does this for folders (FUSE, CIFS, 9p).
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EBADF)
            ) =>
        {
            Ok(())
        }
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_can_become_a_recording() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_new(&folder.path().join("a.ctw")).unwrap());
        assert!(is_new(Path::new("/dev/null")).is_err());
        assert!(is_new(folder.path()).is_err());
    }

    #[test]
    fn what_has_the_name_of_one_of_its_files_has_to_be_ours() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("mine"), "words").unwrap();
        for name in ["a.ctw", "a.ctw-wal", "a.ctw-shm", "a.ctw-journal", "a.ctw-new-journal"] {
            for target in ["mine", "nowhere"] {
                std::os::unix::fs::symlink(at(target), at(name)).unwrap();
                assert!(is_new(&at("a.ctw")).is_err(), "{name}");
                fs::remove_file(at(name)).unwrap();
            }
            fs::hard_link(at("mine"), at(name)).unwrap();
            assert!(is_new(&at("a.ctw")).is_err(), "{name}");
            fs::remove_file(at(name)).unwrap();
        }
        assert!(is_new(&at("a.ctw")).unwrap());
    }
}
