//! Where a path leads, part by part: each folder on the way is opened and asked whose it is, each link is followed by hand.
//! What somebody who isn't trusted could exchange is not passed. Who is trusted, and how far, is the caller's to say.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;

use super::others_may_write;
use crate::foreign::Shown as _;

/// Links followed, as the kernel's own limit (MAXSYMLINKS, include/linux/namei.h).
const LINKS: usize = 40;
/// Parts of a path looked at, those of links with it.
const PARTS: usize = 512;
/// Others may write, but only the owner of a file may rename or remove it (the sticky bit, inode(7)).
const STICKY: u32 = 0o1000;

/// Who may have made what is on the way, and may write to it.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    /// By number. A group of such a number is that user's own, by the custom of all distributions that have such groups.
    pub users: Vec<u32>,
    /// How much has to be theirs.
    pub extent: Extent,
}

/// What has to belong to those who are trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Folders and links. What isn't a folder at the end is the caller's to look at.
    Way,
    /// The end, too, which is a file or a folder. In a folder that others may write to, only folders count: a file or a link
    /// there may be another name that somebody gave it.
    All,
}

/// What something is, as far as its owner matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Theirs who are trusted, and nobody else may write to it.
    Trusted,
    /// Theirs, and others may put things into it, but not exchange what is another's (`/nix/store`, `/tmp`).
    Shared,
    Others,
}

impl Trust {
    pub fn owns(&self, about: &Metadata) -> bool {
        self.users.contains(&about.uid())
    }

    /// Whether somebody else may write to it.
    pub fn leaves_to_others(&self, about: &Metadata) -> bool {
        others_may_write(about.mode(), about.gid(), |group| self.users.contains(&group))
    }

    pub fn standing(&self, about: &Metadata) -> Standing {
        self.standing_of(about.mode(), about.uid(), about.gid())
    }

    fn standing_of(&self, mode: u32, uid: u32, gid: u32) -> Standing {
        let open = others_may_write(mode, gid, |group| self.users.contains(&group));
        match (self.users.contains(&uid), open, mode & STICKY != 0) {
            (true, false, _) => Standing::Trusted,
            (true, true, true) => Standing::Shared,
            _ => Standing::Others,
        }
    }
}

/// Somebody else could exchange a part of the path.
#[derive(Debug)]
pub(super) struct Doubt {
    /// Which; its folders are without links.
    pub path: PathBuf,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It belongs to this user.
    Owner(u32),
    /// It is a link, and this user's.
    Link(u32),
    /// Others may write to it; its mode.
    Writable(u32),
    /// It is no folder, in a folder that others may write to.
    AmongOthers,
    /// It is a FIFO, a socket or a device.
    Special,
}

/// Why a path leads nowhere.
#[derive(Debug)]
pub(super) enum Stop {
    Io(io::Error),
    Doubt(Doubt),
}

impl<E: Into<io::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Io(error.into())
    }
}

/// A folder that was looked at, and all above it.
pub(super) struct Folder {
    /// Its name only (O_PATH).
    pub fd: File,
    /// Without links.
    pub path: PathBuf,
    /// Others may make files in it, and touch nobody else's.
    pub is_shared: bool,
}

/// Where a path leads.
pub(super) enum End {
    Folder(Folder),
    /// What isn't a folder, as a name only (O_PATH).
    Other {
        folder: Folder,
        name: OsString,
        file: File,
    },
    /// There is nothing of this name in it.
    Missing {
        folder: Folder,
        name: OsString,
    },
}

/// Walks a path from `root`, which nothing leads out of.
pub(super) fn walk(root: File, path: &Path, trust: &Trust) -> Result<End, Stop> {
    // The folders that lead here: ".." goes one back, and never above the root.
    let mut way = vec![Folder::checked(root, PathBuf::from("/"), trust)?];
    let mut rest: VecDeque<OsString> = parts(path).collect();
    let (mut links, mut seen) = (0, 0);
    while let Some(name) = rest.pop_front() {
        seen += 1;
        if seen > PARTS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "its path has too many parts").into());
        }
        if name == ".." {
            way.truncate((way.len() - 1).max(1));
            continue;
        }
        let Some(folder) = way.last() else { return Err(Errno::ENOENT.into()) };
        let at = folder.path.join(&name);
        let Some(found) = folder.look(&name)? else {
            if rest.is_empty() {
                return way.pop().map(|folder| End::Missing { folder, name }).ok_or(Errno::ENOENT.into());
            }
            let text = format!("there is no folder {}", at.shown());
            return Err(io::Error::new(io::ErrorKind::NotFound, text).into());
        };
        let about = found.metadata()?;
        if about.is_dir() {
            way.push(Folder::checked(found, at, trust)?);
            continue;
        }
        folder.check(&at, &about, trust)?;
        if about.is_symlink() {
            links += 1;
            if links > LINKS {
                return Err(Errno::ELOOP.into());
            }
            let target = PathBuf::from(readlinkat(found.as_fd(), "")?);
            if target.is_absolute() {
                way.truncate(1);
            }
            for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part);
            }
        } else if rest.is_empty() {
            let other = |folder| End::Other { folder, name, file: found };
            return way.pop().map(other).ok_or(Errno::ENOENT.into());
        } else {
            return Err(Errno::ENOTDIR.into());
        }
    }
    way.pop().map(End::Folder).ok_or(Errno::ENOENT.into())
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

impl Folder {
    fn checked(fd: File, path: PathBuf, trust: &Trust) -> Result<Self, Stop> {
        let about = fd.metadata()?;
        let standing = trust.standing(&about);
        if standing != Standing::Others {
            return Ok(Self { fd, path, is_shared: standing == Standing::Shared });
        }
        let why = if trust.owns(&about) { Why::Writable(about.mode()) } else { Why::Owner(about.uid()) };
        Err(Stop::Doubt(Doubt { path, why }))
    }

    /// Whether what isn't a folder may be gone on with: a link, or the end.
    fn check(&self, at: &Path, about: &Metadata, trust: &Trust) -> Result<(), Stop> {
        let kind = about.file_type();
        let is_link = kind.is_symlink();
        if !is_link && trust.extent == Extent::Way {
            return Ok(());
        }
        let doubt = |why| Err(Stop::Doubt(Doubt { path: at.to_owned(), why }));
        if self.is_shared && trust.extent == Extent::All {
            return doubt(Why::AmongOthers);
        }
        if !trust.owns(about) {
            return doubt(if is_link { Why::Link(about.uid()) } else { Why::Owner(about.uid()) });
        }
        // The mode of a link says nothing.
        if is_link {
            return Ok(());
        }
        if !kind.is_file() {
            return doubt(Why::Special);
        }
        if trust.leaves_to_others(about) { doubt(Why::Writable(about.mode())) } else { Ok(()) }
    }

    /// What has this name in it, without following it.
    fn look(&self, name: &OsStr) -> io::Result<Option<File>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(self.fd.as_fd(), name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_folder_is_follows_from_its_owner_and_its_mode() {
        let root = Trust { users: vec![0], extent: Extent::All };
        let both = Trust { users: vec![0, 1000], extent: Extent::Way };
        for (mode, uid, gid, roots, boths) in [
            (0o755, 0, 0, Standing::Trusted, Standing::Trusted),
            (0o775, 0, 0, Standing::Trusted, Standing::Trusted),
            (0o2775, 0, 50, Standing::Others, Standing::Others),
            (0o777, 0, 0, Standing::Others, Standing::Others),
            (0o1777, 0, 0, Standing::Shared, Standing::Shared),
            // NixOS: /nix/store is the build users' group's to write to.
            (0o1775, 0, 30_000, Standing::Shared, Standing::Shared),
            (0o700, 1000, 1000, Standing::Others, Standing::Trusted),
            (0o770, 1000, 1000, Standing::Others, Standing::Trusted),
            (0o1777, 1000, 0, Standing::Others, Standing::Shared),
            (0o700, 1001, 0, Standing::Others, Standing::Others),
        ] {
            assert_eq!(root.standing_of(mode, uid, gid), roots, "{mode:o} {uid} {gid}");
            assert_eq!(both.standing_of(mode, uid, gid), boths, "{mode:o} {uid} {gid}");
        }
    }
}
