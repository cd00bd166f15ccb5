//! What file system a file is on, for messages, and whether it has what a database needs.
//! Says what is so; what follows from it is said elsewhere.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::foreign::{Foreign, Shown as _};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    kind: Foreign,
    at: PathBuf,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mounted at {}", self.kind, self.at.shown())
    }
}

impl FileSystem {
    /// The one that this file is on, or that it would be on; `None` if the kernel doesn't tell.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.canonicalize().ok()?;
        Self::among(&std::fs::read("/proc/self/mountinfo").ok()?, &folder)
    }

    /// The one of these mounts (proc_pid_mountinfo(5)) that a folder is on.
    fn among(mounts: &[u8], folder: &Path) -> Option<Self> {
        let mount = |line: &[u8]| {
            let mut words = line.split(|byte| *byte == b' ');
            let at = PathBuf::from(OsString::from_vec(unescaped(words.nth(4)?)));
            // Some fields there may be more or fewer of end here.
            words.find(|word| *word == b"-")?;
            Some(Self { kind: Foreign::from_bytes(&unescaped(words.next()?)), at })
        };
        let over =
            mounts.split(|byte| *byte == b'\n').filter_map(mount).filter(|one| folder.starts_with(&one.at));
        // Of several mounts at one place the last one is seen.
        over.max_by_key(|one| one.at.components().count())
    }

    /// Whether it is NFS, which has options for locks.
    #[must_use]
    pub fn is_nfs(&self) -> bool {
        self.kind.raw().starts_with("nfs")
    }
}

/// `\040` for a space, and the like.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &more[3..] } else { more };
    }
    bytes
}

/// What a file system lacks, and what the kernel said.
#[derive(Debug)]
pub enum Lack {
    /// Locks of parts of a file: `fcntl`.
    Locks(io::Error),
    /// Memory that is shared through a file: `mmap`.
    SharedMemory(io::Error),
}

/// Tries both on a file that is open for reading and writing, which nobody else uses.
///
/// # Errors
/// What is missing.
pub fn try_for_database(file: &File) -> Result<(), Lack> {
    let lock = |kind: i32| libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    for kind in [libc::F_WRLCK, libc::F_UNLCK] {
        fcntl(file, FcntlArg::F_SETLK(&lock(kind))).map_err(|error| Lack::Locks(error.into()))?;
    }
    const SIZE: NonZeroUsize = NonZeroUsize::new(32 << 10).unwrap();
    file.set_len(SIZE.get() as u64).map_err(Lack::SharedMemory)?;
    // SAFETY: the kernel chooses the place, nothing is read or written there, and it is unmapped before anything else.
    let tried = unsafe {
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        mmap(None, SIZE, flags, MapFlags::MAP_SHARED, file, 0).and_then(|place| munmap(place, SIZE.get()))
    };
    tried.map_err(|error| Lack::SharedMemory(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"22 1 252:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        23 22 0:21 / /proc rw - proc proc rw\n\
        40 22 0:44 / /mnt/a\\040b rw master:2 propagate_from:1 - nfs4 server:/x rw,vers=4.2\n\
        41 22 0:45 / /mnt rw - fuse.sshfs user@host: rw\n\
        42 41 0:46 / /mnt rw - tmpfs none rw\n\n";

    #[test]
    fn the_mount_that_is_nearest_and_last_is_it() {
        let of = |folder: &str| FileSystem::among(MOUNTS, Path::new(folder)).map(|found| found.to_string());
        assert_eq!(of("/var/lib").as_deref(), Some("ext4 mounted at /"));
        assert_eq!(of("/mnt/a b/deep").as_deref(), Some("nfs4 mounted at /mnt/a b"));
        assert_eq!(of("/mnt/a").as_deref(), Some("tmpfs mounted at /mnt"));
        assert_eq!(of("/mntx").as_deref(), Some("ext4 mounted at /"));
        assert_eq!(FileSystem::among(b"rubbish\n1 2\n", Path::new("/")), None);
        assert!(FileSystem::among(MOUNTS, Path::new("/mnt/a b")).unwrap().is_nfs());
    }

    #[test]
    fn escapes_are_undone_and_nothing_else_is() {
        for (word, meant) in
            [(&b"a\\040b\\134"[..], &b"a b\\"[..]), (b"\\", b"\\"), (b"\\04", b"\\04"), (b"\\999", b"\\999")]
        {
            assert_eq!(unescaped(word), meant);
        }
    }

    #[test]
    fn an_ordinary_file_system_has_both_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        try_for_database(&file).unwrap();
        assert!(FileSystem::of(&path).is_some_and(|found| found.to_string().contains("mounted at /")));
    }
}
