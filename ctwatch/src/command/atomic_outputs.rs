//! New files that get their names when all of them are complete, so that half a file never looks like a whole one.
//! Nothing that is there is written over. A draft is `NAME.partial`; one that was begun and not published is removed.
//! As root, only where nobody else could put another file in a draft's place.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::geteuid;

use crate::error::Failure;
use crate::files::open_regular;
use crate::files::place::{self, Sharing};
use crate::foreign::Shown as _;

/// Those of one command.
#[derive(Debug, Default)]
pub(super) struct AtomicOutputs {
    files: Vec<Draft>,
    /// Made for them, and to be removed with them.
    folder: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct Draft {
    at: PathBuf,
    name: PathBuf,
}

/// What there is to be removed by one who can't wait for its owner: drafts, and the folder made for them.
static BEGUN: Mutex<(Vec<PathBuf>, Option<PathBuf>)> = Mutex::new((Vec::new(), None));

fn begun() -> MutexGuard<'static, (Vec<PathBuf>, Option<PathBuf>)> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all drafts of the process, whose owner is stuck, and tells whether there were any. Files that are getting their
/// names get all of them first.
pub(super) fn remove_drafts() -> bool {
    let (files, folder) = &mut *begun();
    let some = !files.is_empty() || folder.is_some();
    for at in files.drain(..) {
        let _ = fs::remove_file(at);
    }
    if let Some(folder) = folder.take() {
        let _ = fs::remove_dir(folder);
    }
    some
}

impl AtomicOutputs {
    /// Makes a folder for files to come, where there is none; only its owner may look into it.
    pub fn folder(&mut self, path: &Path) -> Result<()> {
        let path = &place_of(path)?;
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                self.folder = Some(path.to_owned());
                begun().1 = self.folder.clone();
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("creating the folder {}", path.shown()));
            }
        }
        Ok(())
    }

    /// Begins a file that will have this name; only its owner may read it, as a recording.
    pub fn file(&mut self, name: &Path) -> Result<File> {
        let name = &place_of(name)?;
        // Also where it leads nowhere: a link that is there is the user's.
        if name.symlink_metadata().is_ok() {
            return Err(in_the_way(name).into());
        }
        let mut at = name.as_os_str().to_owned();
        at.push(".partial");
        let at = PathBuf::from(at);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at) {
            Ok(file) => {
                begun().0.push(at.clone());
                self.files.push(Draft { at, name: name.to_owned() });
                Ok(file)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(in_the_way(&at).into()),
            Err(error) => Err(error).with_context(|| format!("creating {}", at.shown())),
        }
    }

    /// Gives them their names: what was written is on the disk by then.
    pub fn publish(mut self) -> Result<()> {
        for Draft { at, .. } in &self.files {
            // Any descriptor of a file brings all that was written to the disk.
            open_regular(at)
                .and_then(|file| file.sync_all())
                .with_context(|| format!("writing {}", at.shown()))?;
        }
        let mut begun = begun();
        for Draft { at, name } in self.files.drain(..) {
            begun.0.retain(|known| *known != at);
            rename(&at, &name).inspect_err(|_| drop(fs::remove_file(&at)))?;
        }
        self.folder = None;
        begun.1 = None;
        Ok(())
    }
}

impl Drop for AtomicOutputs {
    fn drop(&mut self) {
        for Draft { at, .. } in &self.files {
            let _ = fs::remove_file(at);
        }
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The path of something new. Root's must not be made where another user could replace it before it gets its name; a user's
/// own files are his to put where he likes.
fn place_of(path: &Path) -> Result<PathBuf> {
    if !geteuid().is_root() {
        return Ok(path.to_owned());
    }
    let place = place::new_file(path, Sharing::Allowed);
    place.map_err(|error| Failure::usage(format!("-o {}: {error}", path.shown())).into())
}

/// Unless something else has got the name meanwhile.
fn rename(from: &Path, to: &Path) -> Result<()> {
    let renamed = match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system can do this in one step.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) if to.symlink_metadata().is_err() => {
            fs::rename(from, to)
        }
        Err(Errno::EEXIST | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            return Err(in_the_way(to).into());
        }
        renamed => renamed.map_err(io::Error::from),
    };
    renamed.with_context(|| format!("renaming {} to {}", from.shown(), to.shown()))
}

fn in_the_way(path: &Path) -> Failure {
    let is_stream = fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir());
    let path = path.shown();
    if is_stream {
        return Failure::usage(format!("-o: {path} is no regular file: `-o -` writes to standard output"));
    }
    Failure::usage(format!(
        "-o: {path} is there already, and nothing is written over: remove it, or give another name"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_get_their_names_together_or_are_gone() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("out");
        let begin = || {
            let mut drafts = AtomicOutputs::default();
            drafts.folder(&folder).unwrap();
            for name in ["a.csv", "b.csv"] {
                drafts.file(&folder.join(name)).unwrap().write_all(name.as_bytes()).unwrap();
            }
            drafts
        };
        let drafts = begin();
        assert_eq!(names(&folder), ["a.csv.partial", "b.csv.partial"]);
        drop(drafts);
        assert!(!folder.exists(), "the folder was made for them");
        begin().publish().unwrap();
        assert_eq!(names(&folder), ["a.csv", "b.csv"]);
        assert_eq!(fs::read_to_string(folder.join("b.csv")).unwrap(), "b.csv");
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("a");
        let mut drafts = AtomicOutputs::default();
        drop(drafts.file(&name).unwrap());
        fs::write(&name, "mine").unwrap();
        assert!(drafts.publish().unwrap_err().to_string().contains("nothing is written over"));
        assert_eq!(
            (names(folder.path()), fs::read_to_string(&name).unwrap()),
            (vec!["a".into()], "mine".into())
        );
    }
}
