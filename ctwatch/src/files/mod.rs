//! Files that somebody else may have put where ctwatch looks, as root: links, FIFOs, devices, files without an end.
//! Nothing outside this room opens one by its name alone.

pub mod file_system;
pub mod lists;
pub mod patience;
pub mod place;
pub mod process_root;
pub mod programs;
pub mod root_owned;
mod walk;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Opens a regular file for reading. Anything else is refused without having been opened: a FIFO would wait for a
/// writer, and a device may act on being opened.
///
/// # Errors
/// If it can't be opened, or is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // O_PATH opens the name and not what it stands for.
    reopen_regular(&File::options().read(true).custom_flags(libc::O_PATH).open(path)?)
}

/// What a name (O_PATH) stands for, if it is a regular file.
fn reopen_regular(name: &File) -> io::Result<File> {
    if !name.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    reopen(name, libc::O_RDONLY)
}

/// What a name (O_PATH) stands for; the caller has looked at its kind. It exists, so nothing is created.
///
/// # Errors
/// If it can't be opened, or there is no /proc to do so by.
pub fn reopen(name: &File, flags: libc::c_int) -> io::Result<File> {
    reopen_in(Path::new("/proc/self/fd"), name, flags)
}

fn reopen_in(descriptors: &Path, name: &File, flags: libc::c_int) -> io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    let others = flags & !(libc::O_ACCMODE | libc::O_CREAT | libc::O_NOFOLLOW);
    File::options()
        .read(access != libc::O_WRONLY)
        .write(access != libc::O_RDONLY)
        .custom_flags(others | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(descriptors.join(name.as_raw_fd().to_string()))
        .map_err(|error| match error.kind() {
            // An open descriptor is always there.
            io::ErrorKind::NotFound => {
                let why = "/proc isn't mounted, and files are opened by it: mount -t proc proc /proc";
                io::Error::new(io::ErrorKind::Unsupported, why)
            }
            _ => error,
        })
}

/// A regular file's bytes.
///
/// # Errors
/// As [`open_regular`]; if there are more than `most` bytes.
pub fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_at_most(open_regular(path)?, most)
}

fn read_at_most(mut file: File, most: u64) -> io::Result<Vec<u8>> {
    /// A list of the kernel's in /proc/sys is told at the first read alone, as far as that reaches (proc_do_large_bitmap,
    /// kernel/sysctl.c): no list of ports is longer.
    const AT_ONCE: u64 = 512 << 10;
    let mut some = vec![0; (most + 1).min(AT_ONCE) as usize];
    let mut bytes = Vec::new();
    loop {
        match file.read(&mut some) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend_from_slice(&some[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes.len() as u64 > most {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is larger than {most} bytes"),
            ));
        }
    }
}

/// Whether a mode lets others write than the owner and the groups that are ours.
fn others_may_write(mode: u32, group: u32, is_ours: impl Fn(u32) -> bool) -> bool {
    mode & 0o002 != 0 || (mode & 0o020 != 0 && !is_ours(group))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_fifo_a_device_and_a_folder_are_refused_and_nobody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let link = folder.path().join("link");
        symlink("/dev/zero", &link).unwrap();
        for path in [fifo.as_path(), &link, folder.path(), Path::new("/dev/null")] {
            let error = open_regular(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}: {error}");
        }
    }

    #[test]
    fn without_proc_a_file_that_is_there_is_not_called_missing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let name = File::options().read(true).custom_flags(libc::O_PATH).open(file.path()).unwrap();
        assert!(reopen(&name, libc::O_RDWR).unwrap().metadata().unwrap().is_file());
        let error = reopen_in(Path::new("/nonexistent"), &name, libc::O_RDONLY).unwrap_err();
        assert!(error.to_string().contains("/proc isn't mounted"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_file_is_read_up_to_its_bound_and_not_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "four").unwrap();
        assert_eq!(read_regular(&file, 4).unwrap(), b"four");
        let error = read_regular(&file, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
