//! Files by the names that a process gives: in that process's own root, whatever links or pid it has by then.
//! Regular files only, and only their beginning is read unless they are small.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{read_at_most, reopen_regular};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::Mode;

/// Names of a folder that are looked at.
const NAMES: usize = 4096;

/// A process's folder of /proc. It leads to that process or to nobody, never to another one with its number.
#[derive(Debug)]
pub struct ProcessFolder(File);

impl ProcessFolder {
    /// Opens `/proc/PID`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn open(folder: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        Ok(Self(File::options().read(true).custom_flags(flags).open(folder)?))
    }

    /// One of the kernel's own files there, such as `status`: its first `most` bytes.
    ///
    /// # Errors
    /// The process is gone, or may not be looked at.
    pub fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.0, name, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Where one of its links leads, in words: `exe`, `ns/user`.
    ///
    /// # Errors
    /// As [`ProcessFolder::read`].
    pub fn link(&self, name: &str) -> io::Result<PathBuf> {
        Ok(PathBuf::from(readlinkat(&self.0, name)?))
    }

    /// What one of its links leads to, as a name only (O_PATH). May hang as long as the file system pleases.
    ///
    /// # Errors
    /// As [`ProcessFolder::read`].
    pub fn follow(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// The first bytes of the regular file that one of its links leads to. May hang as [`ProcessFolder::follow`].
    ///
    /// # Errors
    /// As [`ProcessFolder::read`]; if it is no regular file.
    pub fn beginning(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        reopen_regular(&self.follow(name)?)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Where its open files lead, in words, those with the lowest numbers first.
    ///
    /// # Errors
    /// As [`ProcessFolder::read`].
    pub fn open_files(&self) -> io::Result<impl Iterator<Item = PathBuf> + use<>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = File::from(openat(&self.0, "fd", flags, Mode::empty())?);
        let files = std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
        Ok(files.map_while(Result::ok).filter_map(move |file| {
            readlinkat(&folder, file.file_name().as_os_str()).ok().map(PathBuf::from)
        }))
    }

    /// Its root, and where in it it works.
    ///
    /// # Errors
    /// As [`ProcessFolder::read`].
    pub fn root(&self) -> io::Result<ProcessRoot> {
        let root = self.follow("root")?;
        let at = |link: io::Result<PathBuf>| link.unwrap_or_default();
        let (root_is_at, works_in) = (at(self.link("root")), at(self.link("cwd")));
        Ok(ProcessRoot { root, works_in: inside(&root_is_at, &works_in) })
    }
}

/// A folder as processes with this root see it; `None` if it is outside.
fn inside(root: &Path, folder: &Path) -> Option<PathBuf> {
    let below = if root == Path::new("/") { folder } else { folder.strip_prefix(root).ok()? };
    folder.is_absolute().then(|| Path::new("/").join(below))
}

/// The root of a process. Whatever is opened here lies below it: no link, no ".." and no magic link leads out.
#[derive(Debug)]
pub struct ProcessRoot {
    root: File,
    works_in: Option<PathBuf>,
}

impl AsFd for ProcessRoot {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl ProcessRoot {
    /// The bytes of a regular file. May hang as long as the file system pleases.
    ///
    /// # Errors
    /// There is none, or it is something else, or has more than `most` bytes.
    pub fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        read_at_most(reopen_regular(&self.open(path)?)?, most)
    }

    /// The names in a folder, sorted. May hang as [`ProcessRoot::read`].
    ///
    /// # Errors
    /// There is no such folder.
    pub fn names(&self, folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        let name = self.open(folder)?;
        if !name.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", name.as_raw_fd()))?;
        let mut names: Vec<_> = entries.take(NAMES).flatten().map(|entry| entry.file_name()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What a path leads to, as a name only (O_PATH).
    fn open(&self, path: &Path) -> io::Result<File> {
        let absolute = if path.is_absolute() {
            path.to_owned()
        } else {
            let Some(works_in) = &self.works_in else {
                let why = "its path is relative to a folder outside of its process's root";
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            };
            works_in.join(path)
        };
        // An empty path would be the root itself.
        let below = absolute.as_os_str().as_bytes();
        let below = OsStr::from_bytes(if below.is_empty() { b"/" } else { below });
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let name: OwnedFd = openat2(&self.root, below, how)?;
        Ok(File::from(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder of /proc with a root that holds files, and a secret beside that root.
    fn process() -> (tempfile::TempDir, ProcessRoot) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("1/root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("etc/config"), "inside").unwrap();
        symlink("/etc/config", root.join("absolute")).unwrap();
        symlink("../../../secret", root.join("up")).unwrap();
        symlink("../../secret", root.join("etc/up")).unwrap();
        symlink("/proc/self/root/etc/passwd", root.join("magic")).unwrap();
        symlink("/dev/zero", root.join("zero")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
        File::create(root.join("huge")).unwrap().set_len(3 << 30).unwrap();
        symlink(&root, folder.path().join("1/cwd")).unwrap();
        let opened = ProcessFolder::open(&folder.path().join("1")).unwrap().root().unwrap();
        (folder, opened)
    }

    #[test]
    fn what_a_process_names_is_found_in_its_own_root_and_nowhere_else() {
        let (_folder, root) = process();
        for path in ["/etc/config", "//etc/../etc/config", "/absolute", "/../../../etc/config"] {
            assert_eq!(root.read(Path::new(path), 100).unwrap(), b"inside", "{path}");
        }
        for path in ["/up", "/etc/up", "/../secret", "/magic", "/zero", "/fifo", "/huge", "/etc", "/", ""] {
            assert!(root.read(Path::new(path), 1 << 20).is_err(), "{path}");
        }
        assert_eq!(root.names(Path::new("/etc")).unwrap(), ["config", "up"]);
    }

    #[test]
    fn a_relative_name_counts_only_if_its_folder_is_known_to_be_inside() {
        let at = |root: &str, folder: &str| inside(Path::new(root), Path::new(folder));
        assert_eq!(at("/", "/etc/k"), Some(PathBuf::from("/etc/k")));
        assert_eq!(at("/srv/jail", "/srv/jail/etc"), Some(PathBuf::from("/etc")));
        assert_eq!(at("/srv/jail", "/home"), None);
        assert_eq!(at("/", ""), None);
    }
}
