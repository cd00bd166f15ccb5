//! Files that root alone may have put where they are: each folder on the way, and the file, is root's and nobody else's to
//! write. What others could exchange is neither run nor believed.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use super::walk::{Doubt, End, Extent, Standing, Stop, Trust, Why, walk};
use crate::foreign::Shown as _;

/// Root alone, all the way.
fn root_alone() -> Trust {
    Trust { users: vec![0], extent: Extent::All }
}

/// Whether it is root's, and nobody else may write to it.
#[must_use]
pub fn is_roots_alone(about: &Metadata) -> bool {
    root_alone().standing(about) == Standing::Trusted
}

/// Opens what this path leads to below `root`, as a name only (O_PATH), if root alone may have put it there. Every link on
/// the way is followed by hand, and what it leads to must be root's, too.
///
/// # Errors
/// It can't be found, or somebody else may have put it there; the error says which part of the path is whose.
pub fn root_owned(root: impl AsFd, path: &Path) -> io::Result<File> {
    let root = File::from(root.as_fd().try_clone_to_owned()?);
    match walk(root, path, &root_alone()) {
        Ok(End::Folder(folder)) => Ok(folder.fd),
        Ok(End::Other { file, .. }) => Ok(file),
        Ok(End::Missing { .. }) => Err(Errno::ENOENT.into()),
        Err(Stop::Io(error)) => Err(error),
        Err(Stop::Doubt(doubt)) => Err(io::Error::new(io::ErrorKind::PermissionDenied, in_words(&doubt))),
    }
}

/// By the name of the part alone: the caller knows the path.
fn in_words(Doubt { path, why }: &Doubt) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).shown();
    match why {
        Why::Owner(user) | Why::Link(user) => format!("{name} belongs to uid {user}"),
        Why::Writable(_) => format!("{name} may be written to by others than root"),
        Why::AmongOthers => format!("{name} is in a folder that others than root may write to"),
        Why::Special => format!("{name} is neither a file nor a folder"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_program_of_the_system_is_root_s_and_one_in_a_shared_folder_is_not() {
        let root = File::open("/").unwrap();
        let shell = root_owned(&root, Path::new("/bin/sh")).unwrap();
        assert!(shell.metadata().unwrap().is_file(), "links were followed");
        let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        std::fs::write(folder.path().join("nft"), "").unwrap();
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("link")).unwrap();
        // Not even a link to what is root's: its maker can replace it.
        if folder.path().metadata().unwrap().uid() == 0 {
            let mode = |mode| {
                std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(mode))
            };
            mode(0o755).unwrap();
            assert!(root_owned(&root, &folder.path().join("nft")).is_ok(), "a folder of root's in /tmp");
            assert!(root_owned(&root, &folder.path().join("link")).is_ok());
            for shared in [0o777, 0o1777] {
                mode(shared).unwrap();
                for name in ["nft", "link"] {
                    let error = root_owned(&root, &folder.path().join(name)).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{shared:o} {name}: {error}");
                }
            }
            mode(0o755).unwrap();
            std::os::unix::fs::chown(folder.path().join("nft"), Some(65_534), None).unwrap();
        }
        let error = root_owned(&root, &folder.path().join("nft")).unwrap_err();
        assert!(error.to_string().contains("belongs to uid"), "{error}");
    }

    #[test]
    fn links_in_circles_and_ways_above_the_root_end() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path();
        std::os::unix::fs::symlink("b", below.join("a")).unwrap();
        std::os::unix::fs::symlink("a", below.join("b")).unwrap();
        std::fs::create_dir(below.join("etc")).unwrap();
        std::fs::write(below.join("etc/x"), "").unwrap();
        std::os::unix::fs::symlink("../../../../etc/x", below.join("up")).unwrap();
        let root = File::open(below).unwrap();
        assert!(root_owned(&root, Path::new("/a")).is_err());
        // Made by anybody else than root it is refused at once.
        let is_root = below.metadata().unwrap().uid() == 0;
        let inode = |path: &str| Some(root_owned(&root, Path::new(path)).ok()?.metadata().unwrap().ino());
        assert_eq!(inode("/up"), inode("etc/x"), "above the root there is nothing");
        assert_eq!(inode("/up").is_some(), is_root);
    }
}
