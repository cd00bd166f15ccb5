//! How SQLite opens files: regular ones and folders, and no link in the place of one. A look at a name beforehand says nothing
//! of what has it a moment later; here what was looked at is what is opened, the -wal and -shm beside a recording too.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Once;

use libc::{c_char, c_int, mode_t};
use nix::errno::Errno;
use rusqlite::{Connection, OpenFlags, ffi};

use crate::files;

/// What SQLite opens that isn't a file of ours: random bytes, and something in the place of closed descriptors below 3.
const DEVICES: [&CStr; 2] = [c"/dev/urandom", c"/dev/null"];

/// How often a name may come and go before that is an error.
const ATTEMPTS: u32 = 8;

/// Opens a database. `path` may be a URI if the flags say so.
pub(super) fn connect(path: &Path, flags: OpenFlags, vfs: Option<&CStr>) -> rusqlite::Result<Connection> {
    guard();
    match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs),
        None => Connection::open_with_flags(path, flags),
    }
}

/// From here on all that SQLite opens in this process is opened by [`open`]: its variants for Unix share one table of calls.
fn guard() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        type Open = extern "C" fn(*const c_char, c_int, c_int) -> c_int;
        // SAFETY: the pointer to a function goes where SQLite keeps it as such, and calls it with what its own has
        // (posixOpen, os_unix.c); `open` is one of that type.
        unsafe {
            let vfs = ffi::sqlite3_vfs_find(c"unix".as_ptr());
            let set = vfs.as_ref().and_then(|vfs| vfs.xSetSystemCall);
            let open = std::mem::transmute::<Open, unsafe extern "C" fn()>(open);
            let done = set.map(|set| set(vfs, c"open".as_ptr(), Some(open)));
            assert_eq!(done, Some(ffi::SQLITE_OK), "SQLite has a table of calls on Unix");
        }
    });
}

/// As open(2).
extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: SQLite's paths end with a NUL and live as long as the call.
    let path = unsafe { CStr::from_ptr(path) };
    match open_checked(path, flags, mode as mode_t) {
        Ok(file) => file.into_raw_fd(),
        Err(error) => {
            // That there is no /proc was said when the file was looked at.
            Errno::set_raw(error.raw_os_error().unwrap_or(libc::EINVAL));
            -1
        }
    }
}

fn open_checked(path: &CStr, flags: c_int, mode: mode_t) -> io::Result<OwnedFd> {
    if DEVICES.contains(&path) {
        return open_as_it_is(path, flags, mode);
    }
    let is = |error: &io::Error, code: i32| error.raw_os_error() == Some(code);
    let (makes, anew) = (flags & libc::O_CREAT != 0, flags & libc::O_EXCL != 0);
    // Others may make and remove a -shm at the same time.
    for _ in 0..ATTEMPTS {
        // The name and not what it stands for: a device may act on being opened, and a FIFO waits for its other end.
        match open_as_it_is(path, libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC, 0) {
            Ok(_) if makes && anew => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
            Ok(name) => return reopen(&name.into(), flags),
            Err(error) if is(&error, libc::ENOENT) && makes => {
                // What came there meanwhile is looked at first.
                match open_as_it_is(path, flags | libc::O_EXCL | libc::O_NOFOLLOW, mode) {
                    Err(error) if is(&error, libc::EEXIST) && !anew => {}
                    made => return made,
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EEXIST))
}

/// What was looked at, by another descriptor.
fn reopen(name: &File, flags: c_int) -> io::Result<OwnedFd> {
    let kind = name.metadata()?.file_type();
    if kind.is_symlink() {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    let is_folder = kind.is_dir() && flags & libc::O_ACCMODE == libc::O_RDONLY;
    if !kind.is_file() && !is_folder {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    files::reopen(name, flags).map(OwnedFd::from)
}

fn open_as_it_is(path: &CStr, flags: c_int, mode: mode_t) -> io::Result<OwnedFd> {
    // SAFETY: the path lives until the call returns.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), flags, libc::c_uint::from(mode)) })?;
    // SAFETY: it is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    fn opened(path: &Path, flags: c_int) -> Result<OwnedFd, i32> {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        open_checked(&path, flags, 0o600).map_err(|error| error.raw_os_error().unwrap())
    }

    #[test]
    fn only_what_is_a_file_itself_is_opened_and_nobody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        fs::write(at("file"), "words").unwrap();
        symlink(at("file"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        let all = [libc::O_RDONLY, libc::O_RDWR, libc::O_RDWR | libc::O_CREAT];
        for flags in all {
            assert_eq!(opened(&at("fifo"), flags).unwrap_err(), libc::EINVAL, "{flags:x}");
            assert_eq!(opened(&at("link"), flags).unwrap_err(), libc::ELOOP, "{flags:x}");
            assert_eq!(opened(&at("dangling"), flags).unwrap_err(), libc::ELOOP, "{flags:x}");
            assert_eq!(opened(Path::new("/dev/zero"), flags).unwrap_err(), libc::EINVAL, "{flags:x}");
            assert!(opened(&at("file"), flags).is_ok(), "{flags:x}");
        }
        assert!(!at("nowhere").exists() && fs::read(at("file")).unwrap() == b"words");
        assert_eq!(opened(&at("new"), libc::O_RDWR).unwrap_err(), libc::ENOENT);
        opened(&at("new"), libc::O_RDWR | libc::O_CREAT).unwrap();
        assert_eq!(
            opened(&at("new"), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).unwrap_err(),
            libc::EEXIST
        );
        // To bring its entries to the disk.
        assert!(opened(folder.path(), libc::O_RDONLY).is_ok());
        assert!(opened(Path::new("/dev/urandom"), libc::O_RDONLY).is_ok());
    }

    /// What was put there after everybody had looked: what a connection makes later is a link by then.
    #[test]
    fn a_link_that_comes_later_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("precious"), "words").unwrap();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let connection = connect(&at("a.ctw"), flags, None).unwrap();
        connection.execute_batch("CREATE TABLE t (a)").unwrap();
        symlink(at("precious"), at("a.ctw-journal")).unwrap();
        assert!(connection.execute_batch("INSERT INTO t VALUES (1)").is_err(), "it wrote somewhere");
        fs::remove_file(at("a.ctw-journal")).unwrap();
        symlink(at("precious"), at("a.ctw-wal")).unwrap();
        assert!(connection.execute_batch("PRAGMA journal_mode = WAL").is_err(), "it wrote somewhere");
        assert_eq!(fs::read(at("precious")).unwrap(), b"words");
    }
}
