//! The files of a recording: the database, and the -wal and -shm that SQLite keeps next to it. A new recording gets its name
//! only once it is complete, and the files move together: a -wal next to the wrong database destroys that database.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What SQLite creates next to a database.
const ENDINGS: [&str; 2] = ["-wal", "-shm"];
/// How many symbolic links in a row are followed: as many as the kernel does.
const LINKS: usize = 40;

/// The path of a file next to this one: the same name with something appended.
pub(super) fn sidecar_path(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// The -wal of a recording, if part of the recording is in it: the two have to be copied together.
#[must_use]
pub fn wal(path: &Path) -> Option<PathBuf> {
    let wal = sidecar_path(path, "-wal");
    fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > 0).then_some(wal)
}

/// Follows symbolic links, so that a file has one lock whatever link it is reached by.
///
/// # Errors
/// The links form a loop, or can't be read.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                let target = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(target);
            }
            // A file, or the name of one yet to be created.
            _ => return Ok(path),
        }
    }
    Err(Error::from_raw_os_error(libc::ELOOP))
}

/// Whether a recording has yet to be created there: there is nothing, or an empty file.
pub(super) fn is_new(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len() == 0 && wal(path).is_none()),
        Ok(_) => Err(Error::new(ErrorKind::InvalidInput, "not a regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
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
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_a_file_or_to_the_name_of_one_yet_to_be_created() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("b.ctw", at("a.ctw")).unwrap();
        symlink(at("c.ctw"), at("b.ctw")).unwrap();
        assert_eq!(resolve(&at("a.ctw")).unwrap(), at("c.ctw"));
        fs::write(at("c.ctw"), "").unwrap();
        assert_eq!(resolve(&at("a.ctw")).unwrap(), at("c.ctw"));
        symlink("round.ctw", at("round.ctw")).unwrap();
        assert!(resolve(&at("round.ctw")).is_err());
    }

    #[test]
    fn only_a_regular_file_can_become_a_recording() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_new(&folder.path().join("a.ctw")).unwrap());
        assert!(is_new(Path::new("/dev/null")).is_err());
        assert!(is_new(folder.path()).is_err());
    }
}
