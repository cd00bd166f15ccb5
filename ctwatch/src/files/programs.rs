//! Programs of the host that ctwatch runs: only those that root alone may have put where they are, whatever PATH says.
//! A folder of PATH that is relative, empty or others' to write to is passed over, for every user alike.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::root_owned::{is_roots_alone, root_owned};

/// Where administrators' tools live though a unit's PATH may lack it.
const ADMINISTRATORS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// Parts of PATH that are looked at.
const PARTS: usize = 128;

/// What looking for a program gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There; run by this path.
    Program(PathBuf),
    /// There, but somebody else may have put it there.
    NotTrusted {
        /// Where.
        path: PathBuf,
        /// Whose it may be.
        why: String,
    },
    /// Nowhere.
    Missing,
}

impl Found {
    /// The path, if it may be run.
    #[must_use]
    pub fn program(self) -> Option<PathBuf> {
        match self {
            Self::Program(path) => Some(path),
            Self::NotTrusted { .. } | Self::Missing => None,
        }
    }
}

/// Where programs may be run from.
#[derive(Debug)]
pub struct Programs {
    folders: Vec<PathBuf>,
    root: io::Result<File>,
}

impl Programs {
    /// The folders of PATH, and those of administrators' tools.
    #[must_use]
    pub fn of_path() -> Self {
        Self::of(&std::env::var_os("PATH").unwrap_or_default())
    }

    fn of(path: &OsString) -> Self {
        let folders = std::env::split_paths(path).take(PARTS).chain(ADMINISTRATORS.map(PathBuf::from));
        let mut found: Vec<PathBuf> = Vec::new();
        for folder in folders.filter(|folder| folder.is_absolute()) {
            if !found.contains(&folder) {
                found.push(folder);
            }
        }
        Self { folders: found, root: File::open("/") }
    }

    /// Where this program is. The first that may be run counts, whatever lies in front of it.
    #[must_use]
    pub fn find(&self, name: &str) -> Found {
        let mut doubtful = Found::Missing;
        for folder in &self.folders {
            let path = folder.join(name);
            match self.check(&path) {
                Ok(()) => return Found::Program(path),
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied && doubtful == Found::Missing =>
                {
                    // Whether there is something at all: what is behind a folder one can't look into isn't known.
                    if path.is_file() {
                        doubtful = Found::NotTrusted { path, why: error.to_string() };
                    }
                }
                Err(_) => {}
            }
        }
        doubtful
    }

    fn check(&self, path: &Path) -> io::Result<()> {
        let Ok(root) = &self.root else {
            return Err(io::Error::other("/ can't be opened"));
        };
        let metadata = root_owned(root, path)?.metadata()?;
        if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no program"));
        }
        Ok(())
    }

    /// PATH for what is run: the folders that root alone may write to.
    #[must_use]
    pub fn path(&self) -> OsString {
        let Ok(root) = &self.root else { return OsString::new() };
        let trusted = self.folders.iter().filter(|folder| {
            root_owned(root, folder).and_then(|name| name.metadata()).is_ok_and(|found| {
                // A folder such as /tmp is root's, but what is in it is anybody's.
                found.is_dir() && is_roots_alone(&found)
            })
        });
        std::env::join_paths(trusted).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place(folder: &Path, name: &str) {
        std::fs::write(folder.join(name), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_program_in_a_folder_that_others_may_write_to_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        place(folder.path(), "sh");
        place(folder.path(), "ctwatch-no-such-program");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let path = std::env::join_paths([folder.path(), Path::new("/bin")]).unwrap();
        let programs = Programs::of(&path);
        assert_eq!(programs.find("sh"), Found::Program(PathBuf::from("/bin/sh")));
        assert!(matches!(programs.find("ctwatch-no-such-program"), Found::NotTrusted { .. }));
        assert_eq!(programs.find("ctwatch-nor-such-a-program"), Found::Missing);
        let passed_on = programs.path();
        assert!(std::env::split_paths(&passed_on).all(|one| one != folder.path()), "{passed_on:?}");
        assert!(std::env::split_paths(&passed_on).any(|one| one == Path::new("/usr/sbin")), "{passed_on:?}");
    }

    #[test]
    fn the_working_directory_is_no_place_for_programs() {
        for path in ["", ":", ".", "bin:sbin", "::/nowhere", "../bin"] {
            let programs = Programs::of(&OsString::from(path));
            assert!(programs.folders.iter().all(|folder| folder.is_absolute()), "{path}: {programs:?}");
        }
    }

    #[test]
    fn a_file_that_nobody_may_run_is_no_program() {
        let programs = Programs::of(&OsString::from("/etc"));
        assert_eq!(programs.find("passwd"), Found::Missing);
    }
}
