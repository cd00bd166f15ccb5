//! The kernel says no: to one hook, which costs what the hook stands for, or to everything, which has a remedy of its own.
//! Errors are looked at here, and nothing is retried.

use std::fmt;
use std::io;

use anyhow::Result;

use super::plan::{HookKind, ProbeOptions, RawTpReentrancy};
use crate::kernel::calls::LET_CALLS_PASS;
use crate::kernel::release::release_number;
use crate::kernel::roots::Roots;
use crate::kernel::symbols::Symbols;

/// One function can't be hooked: it is notrace, blacklisted, inlined or gone.
#[derive(Clone, Debug)]
pub struct HookRefused {
    /// The kernel function, or the tracepoint.
    pub function: String,
    /// How it was to be hooked.
    pub kind: HookKind,
    /// The kernel's word for it.
    pub why: String,
}

impl fmt::Display for HookRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel refuses a {} on {}: {}", self.kind.name(), self.function, self.why)
    }
}

impl std::error::Error for HookRefused {}

/// What register_kprobe and perf_event_open say of a function, not of us (kernel/kprobes.c, kernel/trace/trace_kprobe.c).
const OF_THE_FUNCTION: [i32; 6] =
    [libc::ENOENT, libc::EINVAL, libc::EADDRNOTAVAIL, libc::EOPNOTSUPP, libc::EILSEQ, libc::ENODEV];

impl HookRefused {
    /// What an error of attaching says, if it concerns this function alone.
    pub(super) fn of(error: &anyhow::Error, function: &str, kind: HookKind) -> Option<Self> {
        let code = errno(error)?;
        OF_THE_FUNCTION.contains(&code).then(|| Self {
            function: function.to_owned(),
            kind,
            why: in_words(code),
        })
    }

    /// What a plan has to do without from here on. Without early_drop a full table can't be told from a lack of memory, and
    /// without a twin for interrupted programs losses go unseen: then it is for others to decide.
    pub fn do_without(self, symbols: &mut Symbols, options: &mut ProbeOptions) -> Result<()> {
        match (self.kind, self.function.as_str()) {
            (HookKind::Kprobe | HookKind::Kretprobe, "early_drop") => return Err(self.into()),
            (HookKind::Kprobe | HookKind::Kretprobe, function) => symbols.refuse(function, self.why),
            (HookKind::Tracepoint(_), _) => {
                options.raw_tracepoints = RawTpReentrancy::Preempted { perf: false };
            }
            (HookKind::RawTracepoint, _) if options.kprobes && symbols.get("nf_hook_slow").is_some() => {
                symbols.refuse("nf_hook_slow", format!("no raw tracepoint kfree_skb ({})", self.why));
            }
            (HookKind::RawTracepoint, _) => return Err(self.into()),
        }
        Ok(())
    }
}

/// What an error number means of a function.
fn in_words(code: i32) -> String {
    match code {
        // arch/x86/kernel/kprobes/core.c, can_probe()
        libc::EILSEQ => "no instruction begins at its address (EILSEQ)".to_owned(),
        libc::EINVAL => "it may not be probed (EINVAL)".to_owned(),
        libc::ENOENT => "it is not there (ENOENT)".to_owned(),
        _ => io::Error::from_raw_os_error(code).to_string(),
    }
}

/// What would help against an error that concerns all programs. Of too few open files the end of the program speaks, whatever
/// there were too few for.
pub(super) fn remedy(error: &anyhow::Error) -> Option<&'static str> {
    Some(match errno(error) {
        Some(libc::EMFILE | libc::ENFILE) => return None,
        Some(libc::ENOMEM) => "the kernel has no memory left for maps and programs",
        Some(libc::EPERM) if may_be_for_locked_memory() => {
            "before Linux 5.11 maps count against RLIMIT_MEMLOCK: `ulimit -l unlimited`; systemd: LimitMEMLOCK=infinity; \
             docker: --ulimit memlock=-1"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "not permitted: it takes CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON, in the initial user namespace, and no seccomp \
             profile, LSM or lockdown that forbids bpf() and perf_event_open()"
        }
        _ => "`ctwatch check` shows what this kernel allows",
    })
}

/// What would let programs pass, if it may be a filter or a security module that refuses them.
#[must_use]
pub fn may_be_a_filter(error: &anyhow::Error) -> Option<&'static str> {
    match errno(error)? {
        libc::EPERM if may_be_for_locked_memory() => None,
        libc::EPERM | libc::EACCES | libc::ENOSYS => Some(LET_CALLS_PASS),
        _ => None,
    }
}

fn may_be_for_locked_memory() -> bool {
    locks_memory(&Roots::default().release()) && !memlock_is_unlimited()
}

/// Whether this kernel counts maps against RLIMIT_MEMLOCK: bpf_map_charge_init (kernel/bpf/syscall.c) went with 5.11. What is
/// not known to be later may.
fn locks_memory(release: &str) -> bool {
    release_number(release).is_none_or(|number| number < (5, 11))
}

fn memlock_is_unlimited() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live struct.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } == 0;
    known && limit.rlim_cur == libc::RLIM_INFINITY
}

/// The error number at the bottom of it.
fn errno(error: &anyhow::Error) -> Option<i32> {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error()).last()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::model::Backend;

    fn failed(code: i32) -> anyhow::Error {
        Err::<(), _>(io::Error::from_raw_os_error(code)).context("perf_event_open failed").unwrap_err()
    }

    #[test]
    fn only_what_is_said_of_a_function_costs_a_hook() {
        assert!(HookRefused::of(&failed(libc::EINVAL), "gc_worker", HookKind::Kprobe).is_some());
        for code in [libc::EMFILE, libc::EPERM, libc::ENOMEM] {
            assert!(HookRefused::of(&failed(code), "gc_worker", HookKind::Kprobe).is_none());
        }
    }

    #[test]
    fn each_refusal_of_everything_has_its_own_remedy() {
        assert_eq!(remedy(&failed(libc::EMFILE)), None);
        let permitted = remedy(&failed(libc::EPERM)).unwrap();
        assert!(permitted.contains("CAP_BPF") || permitted.contains("LimitMEMLOCK"), "{permitted}");
        assert_ne!(remedy(&failed(libc::ENOENT)), remedy(&failed(libc::ENOMEM)));
        let locks = ["5.10.0-43-cloud-amd64", "5.11.0", "6.12.117", "7.3.4", "unnamed"].map(locks_memory);
        assert_eq!(locks, [true, false, false, false, true]);
    }

    #[test]
    fn a_refused_function_is_left_out_and_early_drop_is_for_others_to_decide() {
        let text = "0000000000000010 t gc_worker\n0000000000000020 t early_drop\n";
        let mut symbols = Symbols::parse(text.as_bytes()).expect("readable kallsyms");
        let mut options =
            ProbeOptions::for_backend(Backend::Kprobe, RawTpReentrancy::Skipped).expect("programs");
        let refused = |function: &str| HookRefused {
            function: function.to_owned(),
            kind: HookKind::Kprobe,
            why: "Invalid argument".to_owned(),
        };
        refused("gc_worker").do_without(&mut symbols, &mut options).expect("it can do without");
        assert!(symbols.function("gc_worker").is_none());
        assert_eq!(symbols.refusal("gc_worker"), Some("Invalid argument"));
        assert!(refused("early_drop").do_without(&mut symbols, &mut options).is_err());
    }
}
