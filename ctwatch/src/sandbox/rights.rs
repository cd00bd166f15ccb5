//! Capabilities, and the promise never to get new ones.
//! Unsafe lives here: system calls that libc has no function for.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::kernel::capabilities::Capability;

/// _LINUX_CAPABILITY_VERSION_3 (include/uapi/linux/capability.h): two words for each set.
const VERSION: u32 = 0x2008_0522;
/// A number of capset's, no capability has a higher one.
const HIGHEST: u64 = 63;
/// CAP_SETPCAP: takes capabilities out of the bounding set.
const SETPCAP: u32 = 8;

/// `struct __user_cap_header_struct`; thread 0 is the one that asks.
#[repr(C)]
struct Header {
    version: u32,
    thread: i32,
}

/// `struct __user_cap_data_struct`, of which there are two: for the lower and the higher half.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

type Sets = [Half; 2];

fn get() -> io::Result<Sets> {
    let (mut header, mut sets) = (Header { version: VERSION, thread: 0 }, Sets::default());
    // SAFETY: both pointers are to live structs of the shapes that this version has.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
    if done == 0 { Ok(sets) } else { Err(io::Error::last_os_error()) }
}

fn set(sets: &Sets) -> io::Result<()> {
    let mut header = Header { version: VERSION, thread: 0 };
    // SAFETY: as above; nothing is written to the second.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const *sets) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One bit for each, in the halves that the kernel has.
fn bits(capabilities: &[Capability]) -> [u32; 2] {
    let all = capabilities.iter().fold(0_u64, |bits, one| bits | 1 << *one as u32);
    [all as u32, (all >> 32) as u32]
}

/// What is left of these sets when only those of `wanted` are kept. Nothing is gained.
fn reduced(sets: &Sets, wanted: [u32; 2]) -> Sets {
    let half = |half: &Half, wanted: u32| Half {
        effective: half.effective & wanted,
        permitted: half.permitted & wanted,
        inheritable: half.inheritable & wanted,
    };
    [half(&sets[0], wanted[0]), half(&sets[1], wanted[1])]
}

/// Gives up all others, in every set of this thread: the ambient set follows the permitted and the inheritable one.
pub(super) fn keep_only(wanted: &[Capability]) -> io::Result<()> {
    let sets = get()?;
    let wanted = bits(wanted);
    if sets[0].effective >> SETPCAP & 1 == 1 {
        for number in 0..=HIGHEST {
            if wanted[number as usize / 32] >> (number % 32) & 1 == 1 {
                continue;
            }
            // SAFETY: numbers only. EINVAL says that this kernel has no such capability.
            let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
            if done != 0 {
                break;
            }
        }
    }
    set(&reduced(&sets, wanted))
}

/// From here on no program that is run gets more rights than this thread has.
pub(super) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: numbers only.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The capabilities without which these files can't be read, those not be written, or new ones not be made in these
/// folders: root needs them where files are somebody else's.
pub(super) fn to_reach(read: &[PathBuf], written: &[PathBuf], folders: &[PathBuf]) -> Vec<Capability> {
    let Ok(sets) = get() else { return Vec::new() };
    // The question is what this thread may do without: the effective set is put back at once.
    let without = bits(&[Capability::DacOverride, Capability::DacReadSearch]);
    let lowered = [0, 1].map(|half| Half { effective: sets[half].effective & !without[half], ..sets[half] });
    if lowered == sets || set(&lowered).is_err() {
        return Vec::new();
    }
    let mut needed = Vec::new();
    if read.iter().any(|path| is_refused(path, libc::R_OK)) {
        needed.push(Capability::DacReadSearch);
    }
    if written.iter().any(|path| is_refused(path, libc::R_OK | libc::W_OK))
        || folders.iter().any(|path| is_refused(path, libc::W_OK | libc::X_OK))
    {
        needed.push(Capability::DacOverride);
    }
    // It only ever fails for rights that the permitted set lacks, and that has not changed.
    let _ = set(&sets);
    needed
}

/// Whether the effective rights don't suffice for this. What isn't there is not refused.
fn is_refused(path: &Path, mode: i32) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // libc's faccessat may ask for the real user, for whom the permitted set counts.
    // SAFETY: the pointer is to a live string with its end.
    let done =
        unsafe { libc::syscall(libc::SYS_faccessat2, libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) };
    done != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EACCES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_kept_in_the_sets_that_have_it_and_put_into_no_other() {
        let wanted = bits(&[Capability::NetAdmin, Capability::Syslog]);
        assert_eq!(wanted, [1 << 12, 1 << 2]);
        let sets = [Half { effective: u32::MAX, permitted: u32::MAX, inheritable: 0 }, Half::default()];
        let kept = reduced(&sets, wanted);
        assert_eq!(kept[0], Half { effective: 1 << 12, permitted: 1 << 12, inheritable: 0 });
        assert_eq!(kept[1], Half::default(), "what wasn't there isn't there now");
    }

    #[test]
    fn a_thread_that_gave_up_all_has_nothing_and_the_others_keep_theirs() {
        let before = get().unwrap();
        let inside = std::thread::spawn(|| {
            keep_only(&[]).unwrap();
            no_new_privileges().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            (get().unwrap(), status)
        });
        let (sets, status) = inside.join().unwrap();
        assert_eq!(sets, Sets::default());
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().to_owned()
        };
        assert_eq!(line("NoNewPrivs"), "1");
        assert_eq!(line("CapAmb"), "0000000000000000");
        if before[0].effective >> SETPCAP & 1 == 1 {
            assert_eq!(line("CapBnd"), "0000000000000000");
        }
        assert_eq!(get().unwrap(), before);
    }

    #[test]
    fn root_keeps_what_it_takes_to_reach_files_of_others_and_only_then() {
        let overrides = bits(&[Capability::DacOverride])[0];
        if get().unwrap()[0].effective & overrides == 0 {
            // A process that has none of them keeps none.
            assert!(to_reach(&["/proc/1/environ".into()], &[], &["/".into()]).is_empty());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.ctw");
        std::fs::write(&file, "").unwrap();
        let before = get().unwrap();
        let asked = || to_reach(std::slice::from_ref(&file), &[], &[folder.path().to_owned()]);
        assert_eq!(asked(), []);
        std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(asked(), [Capability::DacReadSearch]);
        assert_eq!(to_reach(&[], std::slice::from_ref(&file), &[]), [Capability::DacOverride]);
        std::os::unix::fs::chown(folder.path(), Some(65_534), Some(65_534)).unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(asked(), [Capability::DacReadSearch, Capability::DacOverride]);
        assert_eq!(to_reach(&[folder.path().join("none")], &[], &[]), []);
        assert_eq!(get().unwrap(), before);
    }
}
