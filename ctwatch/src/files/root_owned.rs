//! Files that root alone may have put where they are: each folder on the way, and the file, is root's and nobody else's to
//! write. What others could exchange is neither run nor believed.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path};

use super::others_may_write;
use crate::foreign::Shown as _;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;

/// Links followed, as the kernel's own limit (MAXSYMLINKS, include/linux/namei.h).
const LINKS: usize = 40;
/// Parts of a path looked at, those of links with it.
const PARTS: usize = 512;

/// What a part of a path is, as far as its owner matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Root's, and nobody else may write it.
    Roots,
    /// Root's, and others may put things into it, but not exchange what is another's (`/nix/store`, `/tmp`).
    Shared,
    Others,
}

fn standing(mode: u32, uid: u32, gid: u32) -> Standing {
    const STICKY: u32 = 0o1000;
    match (uid, others_may_write(mode, gid, |group| group == 0), mode & STICKY != 0) {
        (0, false, _) => Standing::Roots,
        (0, true, true) => Standing::Shared,
        _ => Standing::Others,
    }
}

/// Whether it is root's, and nobody else may write to it.
#[must_use]
pub fn is_roots_alone(about: &Metadata) -> bool {
    standing(about.mode(), about.uid(), about.gid()) == Standing::Roots
}

/// Opens what this path leads to below `root`, as a name only (O_PATH), if root alone may have put it there. Every link on
/// the way is followed by hand, and what it leads to must be root's, too.
///
/// # Errors
/// It can't be found, or somebody else may have put it there; the error says which part of the path is whose.
pub fn root_owned(root: impl AsFd, path: &Path) -> io::Result<File> {
    let mut todo: VecDeque<OsString> = parts(path);
    let first = File::from(root.as_fd().try_clone_to_owned()?);
    let mut before = check(&first, OsStr::new("/"), Standing::Roots)?;
    // The folders that lead here: ".." goes one back, and never above the root.
    let mut way: Vec<(File, Standing)> = vec![(first, before)];
    let (mut links, mut seen) = (0, 0);
    while let Some(part) = todo.pop_front() {
        seen += 1;
        if seen > PARTS {
            return Err(invalid("its path has too many parts".to_owned()));
        }
        if part == ".." {
            if way.len() > 1 {
                way.pop();
            }
            before = way.last().map_or(Standing::Others, |(_, standing)| *standing);
            continue;
        }
        let Some((folder, _)) = way.last() else { return Err(invalid("it has no path".to_owned())) };
        let name = open_name(folder, &part)?;
        let now = check(&name, &part, before)?;
        if name.metadata()?.file_type().is_symlink() {
            links += 1;
            if links > LINKS {
                return Err(io::Error::from(nix::errno::Errno::ELOOP));
            }
            let target = readlinkat(&name, "")?;
            let target = Path::new(&target);
            for part in parts(target).into_iter().rev() {
                todo.push_front(part);
            }
            if target.is_absolute() {
                way.truncate(1);
            }
            before = way.last().map_or(Standing::Others, |(_, standing)| *standing);
            continue;
        }
        before = now;
        way.push((name, now));
    }
    way.pop().map(|(name, _)| name).ok_or_else(|| invalid("it has no path".to_owned()))
}

/// Whether a part of the path is root's. In a folder that others may write to, too, only a folder counts: a file or a link of
/// root's may be another name that somebody gave it there.
fn check(name: &File, part: &OsStr, before: Standing) -> io::Result<Standing> {
    let metadata = name.metadata()?;
    let kind = metadata.file_type();
    let refused = |why: &str| Err(invalid(format!("{} {why}", part.shown())));
    if before == Standing::Shared && !kind.is_dir() {
        return refused("is in a folder that others than root may write to");
    }
    if metadata.uid() != 0 {
        return refused(&format!("belongs to uid {}", metadata.uid()));
    }
    // The mode of a link says nothing.
    if kind.is_symlink() {
        return Ok(Standing::Roots);
    }
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        return refused("is neither a file nor a folder");
    }
    match standing(metadata.mode(), metadata.uid(), metadata.gid()) {
        Standing::Shared if kind.is_dir() => Ok(Standing::Shared),
        Standing::Roots => Ok(Standing::Roots),
        _ => refused("may be written to by others than root"),
    }
}

fn open_name(folder: &File, part: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let name: OwnedFd = openat(folder, part, flags, Mode::empty())?;
    Ok(File::from(name))
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_folder_is_follows_from_its_owner_and_its_mode() {
        for (mode, uid, gid, expected) in [
            (0o755, 0, 0, Standing::Roots),
            (0o775, 0, 0, Standing::Roots),
            (0o2775, 0, 50, Standing::Others),
            (0o777, 0, 0, Standing::Others),
            (0o1777, 0, 0, Standing::Shared),
            // NixOS: /nix/store is the build users' group's to write to.
            (0o1775, 0, 30_000, Standing::Shared),
            (0o700, 1000, 1000, Standing::Others),
            (0o1777, 1000, 0, Standing::Others),
        ] {
            assert_eq!(standing(mode, uid, gid), expected, "{mode:o} {uid} {gid}");
        }
    }

    #[test]
    fn a_program_of_the_system_is_root_s_and_one_in_a_shared_folder_is_not() {
        let root = File::open("/").unwrap();
        let shell = root_owned(&root, Path::new("/bin/sh")).unwrap();
        assert!(shell.metadata().unwrap().is_file(), "links were followed");
        let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        std::fs::write(folder.path().join("nft"), "").unwrap();
        std::os::unix::fs::symlink("/bin/sh", folder.path().join("link")).unwrap();
        // Not even a link to what is root's: whoever made it can exchange it.
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
