//! Waits until no program that runs now runs any more: what it saw of the shared memory is history then.
//! Programs run inside RCU's read side, so that is a grace period of RCU; two system calls wait for one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::kernel::cpus;

/// MEMBARRIER_CMD_GLOBAL: synchronize_rcu(), if more than one CPU is online (kernel/sched/membarrier.c).
const GLOBAL: libc::c_int = 1;
/// BPF_MAP_CREATE, BPF_MAP_UPDATE_ELEM, BPF_MAP_TYPE_ARRAY_OF_MAPS
const CREATE: libc::c_int = 0;
const UPDATE: libc::c_int = 2;
const ARRAY_OF_MAPS: u32 = 12;
/// Where neither call is allowed. The kernel itself takes a reader of RCU for stuck after 21 s.
const LONG_ENOUGH: Duration = Duration::from_secs(30);

/// The start of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
struct CreateMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// The same for BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct UpdateElement {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Those that were told to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped;

/// How to wait.
pub(super) struct Grace(Option<Unused>);

/// An array of maps that no program uses, and what is put into it: an update returns once all programs that may have seen
/// the old element have ended (maybe_wait_bpf_programs, kernel/bpf/syscall.c). Switches programs off on its CPU for an
/// instant, which membarrier does not.
struct Unused {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    /// `map` is any array.
    pub fn new(map: impl AsFd) -> Self {
        Self(Unused::create(map).ok())
    }

    /// Waits, mostly a few hundredths of a second. Gives up if the other end of `stop` is dropped.
    pub fn wait(&self, stop: &Receiver<()>) -> Result<(), Stopped> {
        if has_several_cpus() && membarrier() && has_several_cpus() {
            return Ok(());
        }
        if self.0.as_ref().is_some_and(|unused| unused.update().is_ok()) {
            return Ok(());
        }
        match stop.recv_timeout(LONG_ENOUGH) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Stopped),
        }
    }
}

impl Unused {
    fn create(map: impl AsFd) -> io::Result<Self> {
        let inner = map.as_fd().try_clone_to_owned()?;
        let attributes = CreateMap {
            map_type: ARRAY_OF_MAPS,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            map_flags: 0,
            inner_map_fd: inner.as_raw_fd().cast_unsigned(),
        };
        let outer = bpf(CREATE, &attributes)?;
        // SAFETY: a fresh fd that nobody else has.
        Ok(Self { outer: unsafe { OwnedFd::from_raw_fd(outer) }, inner })
    }

    fn update(&self) -> io::Result<()> {
        let (key, value) = (0_u32, self.inner.as_raw_fd());
        let attributes = UpdateElement {
            map_fd: self.outer.as_raw_fd().cast_unsigned(),
            reserved: 0,
            key: (&raw const key).addr() as u64,
            value: (&raw const value).addr() as u64,
            flags: 0,
        };
        bpf(UPDATE, &attributes).map(drop)
    }
}

/// With a single one, membarrier waits for nothing; but a program may have been preempted there.
fn has_several_cpus() -> bool {
    cpus::online(Path::new("/sys")).is_ok_and(|cpus| cpus.len() > 1)
}

/// Refused where CPUs run without ticks (nohz_full).
fn membarrier() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) == 0 }
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are as long as said, and what they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
