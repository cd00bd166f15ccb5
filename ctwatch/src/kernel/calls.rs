//! Which system calls are refused to this process before the kernel looks at what they ask for: by a seccomp profile, mostly.
//! Each is made with arguments that no kernel takes, so that nothing happens, and the error tells who answered.

use std::fmt;
use std::io;

/// What lets these calls pass.
pub const LET_CALLS_PASS: &str = "docker, podman: --security-opt seccomp=unconfined, or a profile that allows them (that of the engine does with \
                                  --cap-add SYS_ADMIN); Kubernetes: securityContext: seccompProfile: type: Unconfined; systemd: \
                                  SystemCallFilter= with them";

/// A system call that watching takes and container engines refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Programs and maps.
    Bpf,
    /// kprobes, and tracepoints through perf.
    PerfEventOpen,
    /// Other netns.
    Setns,
}

/// A call that doesn't get through, and its error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub call: Call,
    /// What it got.
    pub code: i32,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bpf, Self::PerfEventOpen, Self::Setns];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::PerfEventOpen => "perf_event_open",
            Self::Setns => "setns",
        }
    }

    /// The error of this call with arguments that mean nothing.
    fn made_in_vain(self) -> io::Error {
        let nothing = std::ptr::null::<u8>();
        match self {
            // __sys_bpf, kernel/bpf/syscall.c: no such command, EINVAL. Before that, EPERM without CAP_BPF until 5.18 or so, if
            // kernel.unprivileged_bpf_disabled is set.
            // SAFETY: 0 bytes are read of the null pointer.
            Self::Bpf => unsafe { libc::syscall(libc::SYS_bpf, 0x7FFF, nothing, 0) },
            // kernel/events/core.c: no such flag, EINVAL, before anything else.
            // SAFETY: nothing is read of the null pointer before flags are looked at.
            Self::PerfEventOpen => unsafe {
                libc::syscall(libc::SYS_perf_event_open, nothing, 0, -1, -1, 1_u64 << 31)
            },
            // kernel/nsproxy.c: no such descriptor, EBADF, before anything else.
            // SAFETY: numbers only.
            Self::Setns => unsafe { libc::syscall(libc::SYS_setns, -1, libc::CLONE_NEWNET) },
        };
        io::Error::last_os_error()
    }

    /// Whether it gets as far as the kernel's own look at its arguments.
    #[must_use]
    pub fn refused(self) -> Option<Refused> {
        let code = self.made_in_vain().raw_os_error()?;
        is_refusal(code).then_some(Refused { call: self, code })
    }
}

/// What filters answer with: EPERM, or ENOSYS as if the kernel were older; a security module says EACCES.
const fn is_refusal(code: i32) -> bool {
    matches!(code, libc::EPERM | libc::EACCES | libc::ENOSYS)
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match self.code {
            libc::EPERM => "EPERM",
            libc::EACCES => "EACCES",
            _ => "ENOSYS",
        };
        write!(f, "{}() ({code})", self.call.name())
    }
}

/// Those that don't get through.
#[must_use]
pub fn refused() -> Vec<Refused> {
    Call::ALL.into_iter().filter_map(Call::refused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn calls_made_in_vain_are_told_from_those_that_are_refused() {
        for (code, refused) in [
            (libc::EINVAL, false),
            (libc::EBADF, false),
            (libc::EFAULT, false),
            (libc::EPERM, true),
            (libc::ENOSYS, true),
        ] {
            assert_eq!(is_refusal(code), refused, "{code}");
        }
        let shown = Refused { call: Call::PerfEventOpen, code: libc::EPERM }.to_string();
        assert_eq!(shown, "perf_event_open() (EPERM)");
    }

    #[test]
    fn nothing_is_refused_where_no_filter_is() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        if is_root && status.contains("Seccomp:\t0") {
            assert_eq!(Call::Setns.refused(), None);
            assert_eq!(Call::PerfEventOpen.refused(), None);
        }
    }
}
