//! Attaches a program to a kernel function by its address, which /proc/kallsyms gave. By name, kernels before 6.2 unpack their
//! whole symbol table for each probe (`kallsyms_lookup_name`, kernel/kallsyms.c), and a name can stand for several functions.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::foreign::Shown as _;
use anyhow::{Context, Result};
use aya::programs::KProbe;

/// The event source of kprobes (kernel/events/core.c, `perf_kprobe`).
const SOURCE: &str = "/sys/bus/event_source/devices/kprobe";
/// PERF_FLAG_FD_CLOEXEC, include/uapi/linux/perf_event.h
const FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// PERF_EVENT_IOC_ENABLE and PERF_EVENT_IOC_SET_BPF, the same.
const ENABLE: libc::c_ulong = 0x2400;
const SET_BPF: libc::c_ulong = 0x4004_2408;

/// `struct perf_event_attr` up to `config2` (PERF_ATTR_SIZE_VER1, include/uapi/linux/perf_event.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    /// `kprobe_func`: 0, the address counts.
    config1: u64,
    /// `kprobe_addr`.
    config2: u64,
}

/// What the kernel says of its kprobe events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kprobes {
    kind: u32,
    /// The bit of `config` that asks for a return probe.
    at_return: u64,
}

impl Kprobes {
    /// Reads it from sysfs.
    pub fn read() -> Result<Self> {
        let source = Path::new(SOURCE);
        let kind = read(&source.join("type"))?;
        let format = read(&source.join("format/retprobe"))?;
        Self::parse(&kind, &format).with_context(|| {
            format!("{SOURCE}: type is {:?}, format/retprobe {:?}", kind.trim(), format.trim())
        })
    }

    /// `kind` is a number, `format` is "config:" and the number of a bit.
    fn parse(kind: &str, format: &str) -> Option<Self> {
        let bit = format.trim().strip_prefix("config:")?.parse::<u32>().ok().filter(|bit| *bit < 64)?;
        Some(Self { kind: kind.trim().parse().ok()?, at_return: 1 << bit })
    }

    /// Attaches a loaded program to a function's entry, or to its return. It stays until the descriptor is closed.
    pub fn attach(self, program: &KProbe, address: u64, at_return: bool) -> Result<OwnedFd> {
        let attributes = Attributes {
            kind: self.kind,
            size: size_of::<Attributes>() as u32,
            config: if at_return { self.at_return } else { 0 },
            config2: address,
            ..Attributes::default()
        };
        // Any process (-1) on CPU 0: a kprobe fires on all of them.
        // SAFETY: the pointer is to a live struct of the size that it says.
        let fd =
            unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1, 0, -1, FD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("perf_event_open");
        }
        // SAFETY: a new descriptor, nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        control(&event, SET_BPF, program.fd()?.as_fd().as_raw_fd().into())
            .context("PERF_EVENT_IOC_SET_BPF")?;
        control(&event, ENABLE, 0).context("PERF_EVENT_IOC_ENABLE")?;
        Ok(event)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.shown()))
}

fn control(event: &OwnedFd, request: libc::c_ulong, argument: libc::c_long) -> io::Result<()> {
    // SAFETY: both requests take a number.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_tells_type_and_bit() {
        assert_eq!(Kprobes::parse("6\n", "config:0\n"), Some(Kprobes { kind: 6, at_return: 1 }));
        assert_eq!(Kprobes::parse("6\n", "config:63\n").map(|probes| probes.at_return), Some(1 << 63));
        for (kind, format) in [("", "config:0"), ("6", "config:64"), ("6", "config1:0"), ("six", "config:0")]
        {
            assert_eq!(Kprobes::parse(kind, format), None, "{kind} {format}");
        }
    }

    #[test]
    fn the_kernel_takes_attributes_of_this_size() {
        assert_eq!(size_of::<Attributes>(), 72);
    }
}
