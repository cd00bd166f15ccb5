//! What /proc says of processes: names, and which of them holds a socket.
//! Looking through all their files is dear: it is done for many sockets at once, beside the watch, and ends in time.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use super::cgroup;
use super::handle::Process;
use crate::foreign::Foreign;
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

/// Who holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// The kernel's name for it.
    pub name: Name,
    /// The cgroup that says most about it.
    pub cgroup: Option<Foreign>,
}

/// Who holds which socket, as far as that was found out.
#[derive(Debug, Default)]
pub struct Held {
    /// By the socket's inode number.
    pub by: HashMap<u64, Holder>,
    /// Not all processes were looked at: who isn't found may still be there.
    pub is_cut: bool,
}

/// Files of a process between two looks at the clock.
const FILES_AT_ONCE: usize = 256;

/// Which process holds each of these sockets, by inode number. `netns`: where their owners most likely live. Anybody may have
/// any number of processes and files, so it ends in time.
///
/// A socket that several processes hold is the first one's, and process 1's last of all: it holds the sockets it
/// activates services by.
#[must_use]
pub fn holders(roots: &Roots, sockets: &HashSet<u64>, netns: &[u64], until: Instant) -> Held {
    let mut held = Held::default();
    let mut processes = Vec::new();
    for pid in self::processes(roots) {
        if Instant::now() >= until {
            return Held { is_cut: true, ..held };
        }
        let lives_in =
            std::fs::metadata(roots.proc(format!("{pid}/ns/net"))).map_or(0, |metadata| metadata.ino());
        processes.push((pid == 1, !netns.contains(&lives_in), pid));
    }
    processes.sort_unstable();
    for (_, _, pid) in processes {
        if held.by.len() == sockets.len() {
            break;
        }
        // All of it through its folder, so that it is one process's, whoever has the number next.
        let Ok(process) = Process::open(roots, pid) else { continue };
        let mut holder = None;
        for (number, socket) in process.files().enumerate() {
            if number % FILES_AT_ONCE == 0 && Instant::now() >= until {
                return Held { is_cut: true, ..held };
            }
            let Some(socket) = socket.filter(|socket| sockets.contains(socket)) else { continue };
            let known = holder.get_or_insert_with(|| holder_of(&process));
            if let Some(known) = known {
                held.by.entry(socket).or_insert_with(|| known.clone());
            }
        }
    }
    held
}

fn holder_of(process: &Process) -> Option<Holder> {
    let name = fixed(&process.comm()?);
    Some(Holder { pid: process.pid, name, cgroup: cgroup::of(process) })
}

/// The numbers of all processes, in no order; of as many as a host is not likely to have.
#[must_use]
pub fn processes(roots: &Roots) -> Vec<u32> {
    const MOST: usize = 1 << 18;
    let Ok(entries) = std::fs::read_dir(&roots.proc) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

    fn held(roots: &Roots, sockets: &[u64], netns: &[u64]) -> Vec<(u64, u32)> {
        let found = holders(roots, &sockets.iter().copied().collect(), netns, Instant::now() + MINUTE);
        assert!(!found.is_cut);
        let mut by: Vec<_> = found.by.iter().map(|(socket, holder)| (*socket, holder.pid)).collect();
        by.sort_unstable();
        by
    }

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
        assert_eq!(held(&roots, &[700, 701, 800, 900], &[]), [(700, 1), (701, 812), (800, 812)]);
    }

    #[test]
    fn a_process_of_that_netns_comes_first() {
        let temporary = tempfile::tempdir().unwrap();
        let roots = Roots { proc: temporary.path().to_owned(), sys: temporary.path().to_owned() };
        process(&roots, 10, "dockerd", &[5]);
        process(&roots, 20, "redis", &[5]);
        let netns = fs::metadata(roots.proc("20/ns/net")).unwrap().ino();
        assert_eq!(held(&roots, &[5], &[netns]), [(5, 20)]);
    }

    #[test]
    fn a_look_at_too_many_processes_or_files_is_cut_and_says_so() {
        let temporary = tempfile::tempdir().unwrap();
        let roots = Roots { proc: temporary.path().to_owned(), sys: temporary.path().to_owned() };
        process(&roots, 10, "flood", &(1000..3000).collect::<Vec<u64>>());
        process(&roots, 20, "redis", &[5]);
        let found = holders(&roots, &HashSet::from([5]), &[], Instant::now());
        assert!(found.is_cut && found.by.is_empty(), "{found:?}");
        let whole = holders(&roots, &HashSet::from([5]), &[], Instant::now() + MINUTE);
        assert!(!whole.is_cut);
        assert_eq!((whole.by[&5].pid, &whole.by[&5].name), (20, b"redis\0\0\0\0\0\0\0\0\0\0\0"));
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
