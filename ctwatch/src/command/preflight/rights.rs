//! What this process may do here: by its standing, and where that is asked for, by doing it.
//! What can't be told is neither yes nor no, and what a capability would give is said of no other.

use super::{Entered, MissingHook, OUTSIDE, Preflight, Roots, Standing, Symbols, Trials};
use crate::conntrack::module;
use crate::error::shortage;
use crate::kernel::calls::{Call, LET_CALLS_PASS, Refused};
use crate::kernel::capabilities::Capability;
use crate::kernel::standing::UserNamespace;
use crate::netns;
use anyhow::Result;

const IN_A_USER_NAMESPACE: &str =
    "in a user namespace: capabilities of the initial one are needed, and those here count only inside it";
const NO_KPROBES: &str = "boot a kernel with CONFIG_KPROBES and CONFIG_KPROBE_EVENTS; until then ctwatch uses the tracepoint backend";

impl Preflight {
    /// What programs take. `hidden`: addresses in /proc/kallsyms are, so that more may be needed.
    pub(super) fn capabilities(&mut self, standing: &Standing, hidden: bool) {
        use Capability::{Bpf, NetAdmin, Perfmon, SysAdmin, Syslog};
        if standing.effective.is_none() {
            self.note("capabilities", None, "/proc/self/status has no CapEff line".to_owned(), None);
            return;
        }
        if standing.user_namespace == UserNamespace::Other {
            self.need("capabilities", false, IN_A_USER_NAMESPACE.to_owned(), OUTSIDE);
            return;
        }
        // Other netns can only be entered with CAP_SYS_ADMIN, and whoever has it needs neither CAP_BPF nor CAP_PERFMON.
        let lacks_admin = standing.has(SysAdmin) == Some(false);
        let wanted =
            if lacks_admin { &[Bpf, Perfmon, SysAdmin, NetAdmin][..] } else { &[SysAdmin, NetAdmin] };
        let missing = standing.missing(wanted);
        if !missing.is_empty() {
            let mut to_get = standing.missing(&[SysAdmin, NetAdmin]);
            if hidden {
                to_get.extend(standing.missing(&[Syslog]));
            }
            let names: Vec<&str> = missing.iter().map(|one| one.name()).collect();
            let text = format!("missing {}", names.join(", "));
            self.need("capabilities", false, text, &standing.how_to_get(&to_get));
        } else if standing.has(SysAdmin).is_none() {
            let text = "CAP_SYS_ADMIN and CAP_NET_ADMIN are present, but whether in the initial user namespace can't be told";
            self.note("capabilities", None, text.to_owned(), None);
        } else {
            let text = "CAP_SYS_ADMIN (with it all that CAP_BPF and CAP_PERFMON allow) and CAP_NET_ADMIN are present";
            self.need("capabilities", true, text.to_owned(), "");
        }
    }

    /// Whether anything refuses system calls, whatever capabilities there are.
    pub(super) fn calls(&mut self, roots: &Roots, standing: &Standing, refused: &[Refused]) {
        // Without CAP_BPF this may be the kernel's own answer to all of bpf() (__sys_bpf, kernel/bpf/syscall.c, 5.10).
        let by_sysctl = standing.missing(&[Capability::Bpf, Capability::SysAdmin]).len() == 2
            && setting(roots, "unprivileged_bpf_disabled").is_none_or(|value| value != 0);
        let refused: Vec<&Refused> =
            refused.iter().filter(|one| one.call != Call::Bpf || !by_sysctl).collect();
        if refused.is_empty() {
            let names: Vec<&str> = Call::ALL.iter().map(|call| call.name()).collect();
            self.note("system calls", Some(true), format!("{} get through", names.join(", ")), None);
            return;
        }
        let names: Vec<String> = refused.iter().map(ToString::to_string).collect();
        let text = format!(
            "{} {} refused before the kernel looks at what is asked: by a seccomp profile or a security module",
            names.join(", "),
            if refused.len() == 1 { "is" } else { "are" },
        );
        if refused.iter().any(|one| one.call == Call::PerfEventOpen) {
            self.kprobes =
                Err("perf_event_open() is refused by a seccomp profile or a security module".to_owned());
        }
        if refused.iter().any(|one| one.call == Call::Bpf) {
            self.need("system calls", false, text, LET_CALLS_PASS);
        } else {
            self.note("system calls", Some(false), text, Some(LET_CALLS_PASS));
        }
    }

    pub(super) fn symbols(&mut self, symbols: &Result<Symbols>, roots: &Roots, standing: &Standing) {
        let (ok, text, remedy) = match symbols {
            Err(error) => (false, format!("{error:#}"), "mount /proc".to_owned()),
            Ok(symbols) if symbols.hidden => {
                let (why, remedy) = hidden_because(roots, standing);
                (false, format!("/proc/kallsyms shows only zeroes: {why}"), remedy)
            }
            Ok(symbols)
                if symbols.get("nf_hook_slow").is_none() && symbols.function("init_conntrack").is_none() =>
            {
                let remedy = "boot a kernel built with CONFIG_NETFILTER and CONFIG_KALLSYMS; `ctwatch drops --backend counters` \
                              shows totals meanwhile";
                let text = "neither nf_hook_slow nor init_conntrack is in /proc/kallsyms";
                (false, text.to_owned(), remedy.to_owned())
            }
            Ok(_) => (true, "nf_hook_slow is in /proc/kallsyms".to_owned(), String::new()),
        };
        self.need("symbols", ok, text, &remedy);
    }

    /// Programs load, and so do their maps.
    pub(super) fn program(&mut self, trials: &Trials<'_>) {
        if let Some(obstacle) = &self.obstacle {
            self.note("bpf", None, format!("not tried, for what `{}` says", obstacle.name), None);
            return;
        }
        let result = (trials.program)();
        let text = match &result {
            Ok(()) => "programs load, and so do their maps (ring buffer, mmapable arrays)".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let remedy = result.as_ref().err().and_then(shortage::remedy).unwrap_or(LET_CALLS_PASS);
        self.need("bpf", result.is_ok(), text, remedy);
    }

    /// Whether there are kprobes, and whether one may be attached.
    pub(super) fn kprobes(&mut self, roots: &Roots, symbols: Option<&Symbols>, trials: Option<&Trials<'_>>) {
        let there = roots.sys("bus/event_source/devices/kprobe/type").exists()
            || roots.sys("kernel/tracing/kprobe_events").exists()
            || roots.sys("kernel/debug/tracing/kprobe_events").exists();
        let loaded = module::loaded(roots).is_some();
        let is_hidden = symbols.is_none_or(|symbols| symbols.hidden);
        let refuse = |found: &mut Self, text: String, remedy: &str| {
            found.note("kprobes", Some(false), text.clone(), Some(remedy));
            found.kprobes = Err(text);
        };
        if !there {
            refuse(self, "this kernel has no kprobes".to_owned(), NO_KPROBES);
        } else if loaded
            && !is_hidden
            && symbols.is_some_and(|symbols| symbols.function("early_drop").is_none())
        {
            let remedy =
                "a kernel that keeps early_drop out of line; until then ctwatch uses the tracepoint backend";
            refuse(self, "early_drop is not in /proc/kallsyms, so it can't be probed".to_owned(), remedy);
        } else if let Err(text) = self.kprobes.clone() {
            refuse(self, text, LET_CALLS_PASS);
        } else if let Some(trials) = trials {
            if let Some(obstacle) = &self.obstacle {
                let text = format!("this kernel has them; not tried, for what `{}` says", obstacle.name);
                self.note("kprobes", None, text, None);
                return;
            }
            match (trials.kprobe)() {
                Ok(true) => {
                    let text = "one was attached to early_drop, and taken away again";
                    self.note("kprobes", Some(true), text.to_owned(), None);
                }
                Ok(false) => {
                    let text =
                        "this kernel has them; not tried: conntrack's functions come with nf_conntrack";
                    self.note("kprobes", None, text.to_owned(), None);
                }
                Err(error) => {
                    let remedy = shortage::remedy(&error).unwrap_or(
                        "none needed: until one can be attached ctwatch uses the tracepoint backend",
                    );
                    refuse(self, format!("{error:#}"), remedy);
                }
            }
        }
    }

    /// What a start would do without.
    pub(super) fn hooks(&mut self, roots: &Roots, trials: Option<&Trials<'_>>) {
        let Some(trials) = trials
            .filter(|_| self.obstacle.is_none() && self.kprobes.is_ok() && module::loaded(roots).is_some())
        else {
            return;
        };
        match (trials.hooks)() {
            Ok(missing) if missing.is_empty() => {
                self.note("hooks", Some(true), "all attach, and were taken away again".to_owned(), None);
            }
            Ok(missing) => {
                let costs =
                    |hook: &MissingHook| format!("{}: {} ({})", hook.function, hook.costs, hook.reason);
                let text = missing.iter().map(costs).collect::<Vec<_>>().join("; ");
                let remedy = "none: ctwatch does without these functions, and its start line says so, too";
                self.note("hooks", Some(false), text, Some(remedy));
            }
            Err(error) => self.note("hooks", None, format!("unknown: {error:#}"), None),
        }
    }

    /// What `ctwatch table` needs, which is less than watching does.
    pub(super) fn census(&mut self, roots: &Roots, standing: &Standing, trials: Option<&Trials<'_>>) {
        // A first question loads ctnetlink, and that loads nf_conntrack.
        let is_loaded = module::loaded(roots).is_some();
        let tried = trials.filter(|_| is_loaded).map(|trials| (trials.listing)());
        let (ok, text) = match (&tried, standing.has_here(Capability::NetAdmin)) {
            (Some(Ok(())), _) => {
                (Some(true), "`ctwatch table` can list this netns's table: tried".to_owned())
            }
            // What is missing is said with what gives it, below.
            (Some(Err(_)) | None, Some(false)) => {
                let text = "`ctwatch table` can't list this netns's table: CAP_NET_ADMIN is missing";
                (Some(false), text.to_owned())
            }
            (Some(Err(error)), _) => {
                (Some(false), format!("`ctwatch table` can't list this netns's table: {error:#}"))
            }
            (None, _) if !is_loaded => {
                let text = "whether `ctwatch table` can list this netns's table was not tried: nf_conntrack isn't loaded";
                (None, text.to_owned())
            }
            (None, _) => (None, "whether this netns's table can be listed was not tried".to_owned()),
        };
        let remedy = (ok == Some(false)).then(|| {
            format!(
                "{}; or `setcap cap_net_admin+ep` the binary: listing needs nothing else",
                standing.how_to_list_here()
            )
        });
        self.note("census", ok, text, remedy.as_deref());
    }

    /// Whether others can be entered, and found: by a name, or by a process that lives there.
    pub(super) fn other_netns(&mut self, roots: &Roots, standing: &Standing, trials: Option<&Trials<'_>>) {
        use Capability::{NetAdmin, SysAdmin, SysPtrace};
        const NAME: &str = "other netns";
        if standing.user_namespace == UserNamespace::Other {
            let text = "those outside of this user namespace can't be entered";
            self.note(NAME, Some(false), text.to_owned(), Some(OUTSIDE));
            return;
        }
        if !standing.missing(&[SysAdmin, NetAdmin]).is_empty() {
            let missing = standing.missing(&[SysAdmin, SysPtrace, NetAdmin]);
            let what_for = |one: &Capability| match one {
                SysAdmin => "CAP_SYS_ADMIN (to enter them)",
                SysPtrace => "CAP_SYS_PTRACE (to find them)",
                other => other.name(),
            };
            let names: Vec<&str> = missing.iter().map(what_for).collect();
            let text = format!("tables of other netns can't be listed: missing {}", names.join(", "));
            self.note(NAME, Some(false), text, Some(&standing.how_to_get(&missing)));
            return;
        }
        let unseen = Unseen::look(roots, standing);
        let (ok, text) = match (trials.map(|trials| (trials.netns)()), &unseen) {
            (Some(Ok(Entered::Another)), None) => {
                (Some(true), "tables of other netns can be listed, too: one was entered".to_owned())
            }
            (Some(Ok(Entered::Another)), Some(Unseen { what, .. })) => {
                (Some(true), format!("tables of other netns can be listed, too: one was entered; {what}"))
            }
            (Some(Ok(Entered::OnlyOwn)), None) => {
                let text = "tables of other netns can be listed, too: none is to be seen now, but setns() is allowed";
                (Some(true), text.to_owned())
            }
            (Some(Ok(Entered::OnlyOwn)), Some(Unseen { what, is_known: true, .. })) => (
                Some(false),
                format!("tables of other netns can't be listed: none is to be seen, and {what}"),
            ),
            (Some(Ok(Entered::OnlyOwn)), Some(Unseen { what, is_known: false, .. })) => {
                (None, format!("no other netns is to be seen, and {what}"))
            }
            (Some(Err(error)), _) => {
                let text = format!("tables of other netns can't be listed: {error:#}");
                self.note(NAME, Some(false), text, Some(LET_CALLS_PASS));
                return;
            }
            (None, _) => (None, "whether they can be entered was not tried".to_owned()),
        };
        let remedy = unseen.filter(|_| trials.is_some()).map(|unseen| unseen.remedy);
        self.note(NAME, ok, text, remedy.as_deref());
    }
}

/// Which netns can't be found from here.
struct Unseen {
    /// In words.
    what: &'static str,
    /// What would show them.
    remedy: String,
    /// Else it may be so.
    is_known: bool,
}

impl Unseen {
    fn look(roots: &Roots, standing: &Standing) -> Option<Self> {
        const PTRACE: Capability = Capability::SysPtrace;
        if standing.has(PTRACE) == Some(false) {
            let what = "those of processes that may not be looked at aren't found: CAP_SYS_PTRACE is missing";
            return Some(Self { what, remedy: standing.how_to_get(&[PTRACE]), is_known: true });
        }
        let all = netns::sees_all_processes(roots);
        let (what, remedy) = match all {
            Some(true) => return None,
            Some(false) => (
                "namespaces of other processes can't be seen from this pid namespace",
                "docker, podman: --pid=host; Kubernetes: hostPID: true",
            ),
            None => (
                "whether all processes can be seen can't be told: process 1 may not be looked at",
                "a /proc that shows process 1 (not mounted with hidepid)",
            ),
        };
        Some(Self { what, remedy: remedy.to_owned(), is_known: all.is_some() })
    }
}

/// Why addresses are hidden (kallsyms_show_value, kernel/kallsyms.c, 5.10 to 7.3), and what would show them.
fn hidden_because(roots: &Roots, standing: &Standing) -> (String, String) {
    const LOWER: &str = "set kernel.kptr_restrict to 0 or 1 while ctwatch starts";
    match setting(roots, "kptr_restrict") {
        Some(restrict) if restrict >= 2 => (format!("kernel.kptr_restrict is {restrict}"), LOWER.to_owned()),
        _ if standing.user_namespace == UserNamespace::Other => {
            ("CAP_SYSLOG of the initial user namespace is missing".to_owned(), OUTSIDE.to_owned())
        }
        _ if standing.has(Capability::Syslog) == Some(false) => {
            ("CAP_SYSLOG is missing".to_owned(), standing.how_to_get(&[Capability::Syslog]))
        }
        _ => (
            "CAP_SYSLOG is missing, or kernel.kptr_restrict is 2".to_owned(),
            format!("{}; and {LOWER}", standing.how_to_get(&[Capability::Syslog])),
        ),
    }
}

/// A number of /proc/sys/kernel.
fn setting(roots: &Roots, name: &str) -> Option<u32> {
    std::fs::read_to_string(roots.proc("sys/kernel").join(name)).ok()?.trim().parse().ok()
}
