//! What /proc says of processes: names, and which of them holds a socket.
//! Looking through all their files is dear: only the listeners' thread does it, for many sockets at once.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use crate::kernel::roots::Roots;

/// A name as the kernel keeps it (TASK_COMM_LEN, include/linux/sched.h).
pub type Name = [u8; 16];

/// The name of a process.
#[must_use]
pub fn name(roots: &Roots, pid: u32) -> Option<Name> {
    Some(fixed(std::fs::read(roots.proc(format!("{pid}/comm"))).ok()?.trim_ascii_end()))
}

/// Whether a process has this name, or a thread of it: what sends may be a thread with a name of its own.
#[must_use]
pub fn is_called(roots: &Roots, pid: u32, wanted: &Name) -> bool {
    /// Threads looked at.
    const THREADS: usize = 256;
    if name(roots, pid).as_ref() == Some(wanted) {
        return true;
    }
    let Ok(threads) = std::fs::read_dir(roots.proc(format!("{pid}/task"))) else { return false };
    threads.flatten().take(THREADS).any(|thread| {
        std::fs::read(thread.path().join("comm")).is_ok_and(|text| fixed(text.trim_ascii_end()) == *wanted)
    })
}

/// Cut and padded to the kernel's size.
fn fixed(text: &[u8]) -> Name {
    let mut name = [0; 16];
    let length = text.len().min(15);
    name[..length].copy_from_slice(&text[..length]);
    name
}

/// Which process holds each of these sockets, by inode number. `netns`: where their owners most likely live.
///
/// A socket that several processes hold is the first one's, and process 1's last of all: it holds the sockets it
/// activates services by.
#[must_use]
pub fn holders(roots: &Roots, sockets: &[u64], netns: &[u64]) -> HashMap<u64, u32> {
    let mut found = HashMap::new();
    let mut processes = processes(roots);
    processes.sort_unstable_by_key(|pid| {
        let lives_in =
            std::fs::metadata(roots.proc(format!("{pid}/ns/net"))).map_or(0, |metadata| metadata.ino());
        (*pid == 1, !netns.contains(&lives_in), *pid)
    });
    for pid in processes {
        if sockets.iter().all(|socket| found.contains_key(socket)) {
            break;
        }
        let Ok(files) = std::fs::read_dir(roots.proc(format!("{pid}/fd"))) else { continue };
        for file in files.flatten() {
            if let Some(socket) = socket_of(&file.path()).filter(|socket| sockets.contains(socket)) {
                found.entry(socket).or_insert(pid);
            }
        }
    }
    found
}

/// The numbers of all processes, in no order; of as many as a host is not likely to have.
#[must_use]
pub fn processes(roots: &Roots) -> Vec<u32> {
    const MOST: usize = 1 << 18;
    let Ok(entries) = std::fs::read_dir(&roots.proc) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(MOST).collect()
}

/// The sockets a process holds, among its first files: those it listens on came before its connections.
pub fn sockets_of(roots: &Roots, pid: u32) -> impl Iterator<Item = u64> + use<> {
    const MOST: usize = 1 << 16;
    let files = std::fs::read_dir(roots.proc(format!("{pid}/fd"))).into_iter().flatten().flatten().take(MOST);
    files.filter_map(|file| socket_of(&file.path()))
}

/// "socket:[12345]"
fn socket_of(link: &std::path::Path) -> Option<u64> {
    let target = std::fs::read_link(link).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn process(roots: &Roots, pid: u32, name: &str, sockets: &[u64]) {
        let folder = roots.proc(pid.to_string());
        fs::create_dir_all(folder.join("fd")).unwrap();
        fs::create_dir_all(folder.join("ns")).unwrap();
        fs::create_dir_all(folder.join(format!("task/{}", pid + 1))).unwrap();
        fs::write(folder.join("ns/net"), "").unwrap();
        fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
        fs::write(folder.join(format!("task/{}/comm", pid + 1)), "worker\n").unwrap();
        symlink("/dev/null", folder.join("fd/0")).unwrap();
        for (number, socket) in sockets.iter().enumerate() {
            symlink(format!("socket:[{socket}]"), folder.join(format!("fd/{}", number + 3))).unwrap();
        }
    }

    #[test]
    fn a_socket_leads_to_the_process_that_holds_it() {
        let temporary = tempfile::tempdir().unwrap();
        let roots = Roots { proc: temporary.path().to_owned(), sys: temporary.path().to_owned() };
        fs::create_dir(roots.proc("self")).unwrap();
        process(&roots, 1, "systemd", &[700, 701]);
        process(&roots, 812, "nginx", &[800, 701]);
        process(&roots, 815, "nginx", &[800]);
        let found = holders(&roots, &[700, 701, 800, 900], &[]);
        assert_eq!(found, HashMap::from([(700, 1), (701, 812), (800, 812)]));
    }

    #[test]
    fn a_process_of_that_netns_comes_first() {
        let temporary = tempfile::tempdir().unwrap();
        let roots = Roots { proc: temporary.path().to_owned(), sys: temporary.path().to_owned() };
        process(&roots, 10, "dockerd", &[5]);
        process(&roots, 20, "redis", &[5]);
        let netns = fs::metadata(roots.proc("20/ns/net")).unwrap().ino();
        assert_eq!(holders(&roots, &[5], &[netns]), HashMap::from([(5, 20)]));
    }

    #[test]
    fn names_are_the_kernel_s() {
        let temporary = tempfile::tempdir().unwrap();
        let roots = Roots { proc: temporary.path().to_owned(), sys: temporary.path().to_owned() };
        process(&roots, 7, "a-name-that-is-too-long", &[]);
        assert_eq!(&name(&roots, 7).unwrap(), b"a-name-that-is-\0");
        assert!(is_called(&roots, 7, b"worker\0\0\0\0\0\0\0\0\0\0"));
        assert!(!is_called(&roots, 7, b"redis\0\0\0\0\0\0\0\0\0\0\0"));
        assert_eq!(name(&roots, 8), None);
    }
}
