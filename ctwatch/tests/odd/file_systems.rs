//! File systems without locks, without memory that is shared through a file, or whose files are somebody else's; and one of two
//! layers. Needs root. Each is mounted in a mount namespace of one thread, and goes with it.

use std::ffi::CString;
use std::path::Path;

use crate::fuse::{Lacking, Server};
use crate::{ctwatch, folder, said};

fn enter_mount_namespace() {
    let check = |result: i32| assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: only constants, and strings that end with a NUL.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS));
        check(libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ));
    }
}

fn mount(kind: &str, at: &Path, options: &str) {
    let text = |text: &str| CString::new(text).unwrap();
    let (kind, at, options) = (text(kind), text(at.to_str().unwrap()), text(options));
    // SAFETY: strings that end with a NUL.
    let mounted =
        unsafe { libc::mount(c"none".as_ptr(), at.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
    assert_eq!(mounted, 0, "{kind:?}: {}", std::io::Error::last_os_error());
}

/// Runs this in a thread with a mount namespace of its own.
fn apart<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        enter_mount_namespace();
        run()
    });
    thread.join().unwrap()
}

const RECORD: [&str; 5] = ["record", "--backend", "counters", "--duration", "1s"];

#[test]
fn a_file_system_that_lacks_something_is_named_and_nothing_is_left_there() {
    for (lacking, says) in [
        (Lacking::Flock, "has no locks (flock: No locks available"),
        (Lacking::PosixLocks, "has no locks (fcntl: No locks available"),
        (Lacking::SharedMemory, "has no memory that is shared through a file (mmap: "),
        (Lacking::Ownership, "gives away what is made there (it belongs to user 65534"),
    ] {
        let (folder, server) = (folder(), Server::new(lacking));
        let (at, mounted) = (folder.path().to_owned(), server.clone());
        let (code, stdout, stderr) = apart(move || {
            mounted.mount(&at);
            let path = at.join("a.ctw");
            said(ctwatch(&[&RECORD[..], &["-o", path.to_str().unwrap()]].concat()))
        });
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{lacking:?}: {stderr}");
        let place = format!("the file system fuse mounted at {}", folder.path().to_str().unwrap());
        for word in [place.as_str(), says, "record on a local one", "copy the file there once it is closed"] {
            assert!(stderr.contains(word), "{lacking:?}: {word}: {stderr}");
        }
        assert_eq!(server.names(), [""; 0], "{lacking:?}");
    }
}

#[test]
fn a_file_system_that_lacks_nothing_is_recorded_to_whatever_it_is() {
    let (folder, server) = (folder(), Server::new(Lacking::Nothing));
    let (at, mounted) = (folder.path().to_owned(), server.clone());
    apart(move || {
        mounted.mount(&at);
        let path = at.join("a.ctw").to_str().unwrap().to_owned();
        let (code, _, stderr) = said(ctwatch(&[&RECORD[..], &["-o", &path]].concat()));
        assert_eq!(code, Some(0), "{stderr}");
        let (code, report, stderr) = said(ctwatch(&["report", &path]));
        assert!(code == Some(0) && report.contains("counters backend"), "{stderr}");
        let page = at.join("a.html").to_str().unwrap().to_owned();
        let (code, _, stderr) = said(ctwatch(&["report", &path, "-o", &page]));
        assert_eq!(code, Some(0), "{stderr}");
    });
    assert_eq!(server.names(), ["a.ctw", "a.html"]);
}

#[test]
fn a_recording_is_read_where_there_are_neither_locks_nor_shared_memory() {
    for lacking in [Lacking::PosixLocks, Lacking::SharedMemory] {
        let (folder, server, elsewhere) = (folder(), Server::new(lacking), folder());
        let whole = std::fs::read(crate::any_recording(elsewhere.path())).unwrap();
        server.put("a.ctw", &whole);
        let (at, mounted) = (folder.path().to_owned(), server.clone());
        apart(move || {
            mounted.mount(&at);
            let path = at.join("a.ctw").to_str().unwrap().to_owned();
            for arguments in [&["report", &path][..], &["export", &path, "--to", "ndjson"]] {
                let (code, stdout, stderr) = said(ctwatch(arguments));
                assert!(code == Some(0) && !stdout.is_empty(), "{lacking:?}: {stderr}");
            }
            // What would be made there is a file like any other.
            let page = at.join("a.md").to_str().unwrap().to_owned();
            let (code, _, stderr) = said(ctwatch(&["report", &path, "-o", &page]));
            assert_eq!(code, Some(0), "{lacking:?}: {stderr}");
        });
        assert_eq!(server.names(), ["a.ctw", "a.md"], "{lacking:?}");
    }
}

#[test]
fn a_recording_of_a_lower_layer_is_continued_in_the_upper_one() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for name in ["layers", "mnt"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let (layers, mnt) = (at("layers"), at("mnt"));
    apart(move || {
        // A layer must not be on an overlay itself.
        mount("tmpfs", &layers, "mode=0755");
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(layers.join(name)).unwrap();
        }
        let recording = crate::any_recording(&layers.join("lower"));
        let before = std::fs::read(&recording).unwrap();
        let layer = |name: &str| layers.join(name).to_str().unwrap().to_owned();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", layer("lower"), layer("upper"), layer("work"));
        mount("overlay", &mnt, &options);
        let path = mnt.join("a.ctw").to_str().unwrap().to_owned();
        let (code, _, stderr) = said(ctwatch(&[&RECORD[..], &["-o", &path]].concat()));
        assert_eq!(code, Some(0), "{stderr}");
        let (_, runs, stderr) = said(ctwatch(&["export", &path, "--to", "csv", "--table", "runs"]));
        assert_eq!(runs.lines().count(), 3, "{runs}{stderr}");
        assert_eq!(std::fs::read(&recording).unwrap(), before, "the lower layer is as it was");
        let names = std::fs::read_dir(&mnt).unwrap().count();
        assert_eq!(names, 1, "nothing is left but the recording");
    });
}
