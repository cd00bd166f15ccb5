//! New files that get their names when all of them are complete, so that half a file never looks like a whole one.
//! Nothing that is there is written over. A draft is `NAME.partial`; one that was begun and not published is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::event_loop;
use super::live::Shutdown;
use crate::error::Failure;
use crate::foreign::Shown as _;

/// Those of one command.
#[derive(Debug, Default)]
pub(super) struct AtomicOutputs {
    files: Vec<Draft>,
    /// Made for them, and to be removed with them.
    folder: Option<PathBuf>,
}

#[derive(Debug)]
struct Draft {
    at: PathBuf,
    name: PathBuf,
}

impl AtomicOutputs {
    /// Makes a folder for files to come, where there is none.
    pub fn folder(&mut self, path: &Path) -> Result<()> {
        match fs::create_dir(path) {
            Ok(()) => self.folder = Some(path.to_owned()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("creating the folder {}", path.shown()));
            }
        }
        Ok(())
    }

    /// Begins a file that will have this name; only its owner may read it, as a recording.
    pub fn file(&mut self, name: &Path) -> Result<File> {
        // Also where it leads nowhere: a link that is there is the user's.
        if name.symlink_metadata().is_ok() {
            return Err(in_the_way(name).into());
        }
        let mut at = name.as_os_str().to_owned();
        at.push(".partial");
        let at = PathBuf::from(at);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&at) {
            Ok(file) => {
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
            File::open(at)
                .and_then(|file| file.sync_all())
                .with_context(|| format!("writing {}", at.shown()))?;
        }
        for Draft { at, name } in self.files.drain(..) {
            rename(&at, &name).inspect_err(|_| drop(fs::remove_file(&at)))?;
        }
        self.folder = None;
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

/// Unless something else has got the name meanwhile.
fn rename(from: &Path, to: &Path) -> Result<()> {
    let renamed = match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system can do this in one step.
        Err(Errno::EINVAL) if !to.exists() => fs::rename(from, to),
        Err(Errno::EEXIST | Errno::EINVAL) => return Err(in_the_way(to).into()),
        renamed => renamed.map_err(io::Error::from),
    };
    renamed.with_context(|| format!("renaming {} to {}", from.shown(), to.shown()))
}

fn in_the_way(path: &Path) -> Failure {
    let path = path.shown();
    Failure::usage(format!(
        "-o: {path} is there already, and nothing is written over: remove it, or give another name"
    ))
}

/// Whether SIGINT or SIGTERM came: from here on they don't end the process, which has drafts to remove.
pub(super) fn interrupted() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    let events = event_loop()?;
    let mut shutdown = events.block_on(async { Shutdown::new() })?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            events.block_on(shutdown.wait());
            raised.store(true, Ordering::Relaxed);
        })
        .context("starting a thread that waits for signals")?;
    Ok(flag)
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
