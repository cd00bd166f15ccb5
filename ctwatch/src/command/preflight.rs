//! Can ctwatch watch here, with which backend, and if not, what would change that?
//! It reads /proc and /sys only; trying the bpf() call itself is the caller's part, handed in as a finding.

use anyhow::Result;

use crate::conntrack::module;
use crate::contract::CheckItem;
use crate::error::shortage;
use crate::kernel::Kernel;
use crate::kernel::btf::Btf;
use crate::kernel::capabilities::{Capabilities, Capability};
use crate::kernel::cpus;
use crate::kernel::release::release_number;
use crate::kernel::roots::Roots;
use crate::kernel::symbols::Symbols;
use crate::model::THIS_NETNS;
use crate::netns::{self, InitialNetns};
use crate::probe::offsets;
use crate::probe::plan::RawTpReentrancy;
use crate::probe::room::NetnsRoom;
use crate::probe::shapes;
use crate::text::{mib, thousands};
use ctwatch_common::config::KFREE_SKB_ADDRESS;

/// What was found.
pub struct Preflight {
    /// Each thing looked at, in the order of the check.
    pub items: Vec<CheckItem>,
    /// The first thing that rules out every backend that uses programs.
    pub obstacle: Option<String>,
    /// kprobes can be used; else why not.
    pub kprobes: Result<(), String>,
    /// How the kernel runs raw tracepoint programs.
    pub raw_tracepoints: RawTpReentrancy,
}

/// Looks at everything. `try_bpf` loads a program and says how that went; who attaches anyway leaves it out.
pub fn look(roots: &Roots, kernel: &Kernel, try_bpf: Option<&dyn Fn() -> Result<()>>) -> Preflight {
    let release = roots.release();
    let mut found = Preflight {
        items: Vec::new(),
        obstacle: None,
        kprobes: Ok(()),
        raw_tracepoints: kernel
            .btf
            .as_ref()
            .map_or(RawTpReentrancy::Nested, |btf| raw_tracepoints(btf, roots)),
    };
    let new_enough = release_number(&release).is_none_or(|number| number >= (5, 10));
    found.need(
        "kernel",
        new_enough,
        format!("Linux {release}"),
        "ctwatch needs Linux 5.10 or later (ring buffer, raw tracepoint test runs): boot a newer kernel",
    );
    found.capabilities(roots);
    found.types(&kernel.btf, kernel.symbols.as_ref().ok());
    found.symbols(&kernel.symbols);
    found.functions(kernel);
    found.kprobes(roots, kernel.symbols.as_ref().ok());
    found.lockdown(roots);
    found.conntrack(roots);
    found.census(roots);
    found.host(roots);
    if try_bpf.is_some() {
        // All processes are asked for their netns: whoever is about to attach does so anyway.
        found.cpus(roots);
    }
    if let Some(try_bpf) = try_bpf
        && found.obstacle.is_none()
    {
        let result = try_bpf();
        let is_ok = result.is_ok();
        let text = match &result {
            Ok(()) => "programs load, and so do their maps (ring buffer, mmapable arrays)".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let remedy = result.err().as_ref().and_then(shortage::remedy);
        let remedy = remedy.unwrap_or("run as root, outside seccomp and user namespaces that forbid bpf()");
        found.need("bpf", is_ok, text, remedy);
    }
    found
}

impl Preflight {
    fn note(&mut self, name: &str, ok: Option<bool>, text: String, remedy: Option<&str>) {
        self.items.push(CheckItem {
            name: name.to_owned(),
            ok,
            found: text,
            remedy: remedy.map(str::to_owned),
        });
    }

    /// Something no backend with programs can do without.
    fn need(&mut self, name: &str, ok: bool, text: String, remedy: &str) {
        if !ok && self.obstacle.is_none() {
            self.obstacle = Some(format!("{name}: {text}; {remedy}"));
        }
        self.note(name, Some(ok), text, (!ok).then_some(remedy));
    }

    fn capabilities(&mut self, roots: &Roots) {
        let Some(these) = Capabilities::effective(roots) else {
            self.note("capabilities", None, "/proc/self/status has no CapEff line".to_owned(), None);
            return;
        };
        let has = |capability| these.has(capability);
        let missing: Vec<&str> = [
            ("CAP_BPF", has(Capability::Bpf) || has(Capability::SysAdmin)),
            ("CAP_PERFMON", has(Capability::Perfmon) || has(Capability::SysAdmin)),
            // Other netns can only be entered with it, and 5.10 to 6.x attach kprobes with it.
            ("CAP_SYS_ADMIN", has(Capability::SysAdmin)),
            ("CAP_NET_ADMIN", has(Capability::NetAdmin)),
        ]
        .into_iter()
        .filter_map(|(name, ok)| (!ok).then_some(name))
        .collect();
        let text = if missing.is_empty() {
            "CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN and CAP_NET_ADMIN are present".to_owned()
        } else {
            format!("missing {}", missing.join(", "))
        };
        self.need("capabilities", missing.is_empty(), text, "run as root: sudo ctwatch …");
    }

    fn types(&mut self, btf: &Result<Btf>, symbols: Option<&Symbols>) {
        let none = Symbols::default();
        let result = match btf {
            Ok(btf) => offsets::resolve(btf, symbols.unwrap_or(&none)).map(drop),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        let text = match &result {
            Ok(()) => "/sys/kernel/btf/vmlinux has every field that ctwatch reads".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        self.need(
            "btf",
            result.is_ok(),
            text,
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y and CONFIG_NF_CONNTRACK (distribution kernels are)",
        );
    }

    /// What programs take from the functions they hook, and whether the limit is still what it was.
    fn functions(&mut self, kernel: &Kernel) {
        let Some(functions) = kernel.functions() else { return };
        let shapes = shapes::compare(&functions);
        if !shapes.others.is_empty() {
            let others: Vec<String> =
                shapes.others.iter().map(|other| format!("{}: {}", other.function, other.why)).collect();
            let remedy = "none: ctwatch leaves these hooks out (the start line says what that costs); please report this kernel";
            self.note("functions", Some(false), others.join("; "), Some(remedy));
        } else if shapes.as_known.len() > 1 {
            let text =
                format!("{} of those that programs hook take the arguments they read", shapes.as_known.len());
            self.note("functions", Some(true), text, None);
        } else {
            let text =
                "unknown: this kernel has no BTF of nf_conntrack (before 5.11, or the module isn't loaded)";
            self.note("functions", None, text.to_owned(), None);
        }
        if kernel.btf.as_ref().is_ok_and(offsets::has_netns_limit) {
            let text = "each netns has one of its own: the smaller of it and nf_conntrack_max of the initial netns counts";
            self.note("limit", Some(true), text.to_owned(), None);
        }
    }

    fn symbols(&mut self, symbols: &Result<Symbols>) {
        let (ok, text, remedy) = match symbols {
            Err(error) => (false, format!("{error:#}"), "mount /proc"),
            Ok(symbols) if symbols.hidden => (
                false,
                "/proc/kallsyms shows only zeroes".to_owned(),
                "run as root, and set kernel.kptr_restrict to 0 or 1 while ctwatch starts",
            ),
            Ok(symbols)
                if symbols.get("nf_hook_slow").is_none() && symbols.function("init_conntrack").is_none() =>
            {
                (
                    false,
                    "neither nf_hook_slow nor init_conntrack is in /proc/kallsyms".to_owned(),
                    "boot a kernel built with CONFIG_NETFILTER and CONFIG_KALLSYMS; `ctwatch drops --backend counters` shows totals meanwhile",
                )
            }
            Ok(_) => (true, "nf_hook_slow is in /proc/kallsyms".to_owned(), ""),
        };
        self.need("symbols", ok, text, remedy);
    }

    fn kprobes(&mut self, roots: &Roots, symbols: Option<&Symbols>) {
        const REMEDY: &str = "boot a kernel with CONFIG_KPROBES and CONFIG_KPROBE_EVENTS; until then ctwatch uses the tracepoint backend";
        let there = roots.sys("bus/event_source/devices/kprobe/type").exists()
            || roots.sys("kernel/tracing/kprobe_events").exists()
            || roots.sys("kernel/debug/tracing/kprobe_events").exists();
        let loaded = module::loaded(roots).is_some();
        if !there {
            let text = "this kernel has no kprobes".to_owned();
            self.kprobes = Err(text.clone());
            self.note("kprobes", Some(false), text, Some(REMEDY));
        } else if loaded && symbols.is_some_and(|symbols| symbols.function("early_drop").is_none()) {
            let text = "early_drop is not in /proc/kallsyms, so it can't be probed".to_owned();
            self.kprobes = Err(text.clone());
            self.note(
                "kprobes",
                Some(false),
                text,
                Some("a kernel that keeps early_drop out of line; until then ctwatch uses the tracepoint backend"),
            );
        } else {
            self.note("kprobes", Some(true), "kprobes can be attached".to_owned(), None);
        }
    }

    fn lockdown(&mut self, roots: &Roots) {
        match std::fs::read_to_string(roots.sys("kernel/security/lockdown")) {
            Ok(text) if text.contains("[confidentiality]") => self.need(
                "lockdown",
                false,
                "confidentiality: programs may not read kernel memory".to_owned(),
                "boot with lockdown=integrity or without lockdown",
            ),
            Ok(text) => {
                let mode = text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
                self.note("lockdown", Some(true), mode, None);
            }
            Err(_) => {
                self.note("lockdown", None, "unknown (no /sys/kernel/security/lockdown)".to_owned(), None)
            }
        }
    }

    fn conntrack(&mut self, roots: &Roots) {
        if module::loaded(roots).is_some() {
            self.note("conntrack", Some(true), "nf_conntrack is loaded".to_owned(), None);
        } else if module::is_hidden(roots) {
            self.need(
                "conntrack",
                false,
                "nf_conntrack is loaded, but its sysctls are hidden from this user namespace".to_owned(),
                "run outside the container, or as root in the initial user namespace (docker: without userns-remap; \
                 podman: as root)",
            );
        } else {
            self.note(
                "conntrack",
                None,
                "nf_conntrack is not loaded".to_owned(),
                Some("nothing: `ctwatch drops` waits until a firewall rule or `modprobe nf_conntrack` loads it"),
            );
        }
    }

    /// Whether the initial netns is known: what a container calls its own is not the host's.
    fn host(&mut self, roots: &Roots) {
        let initial =
            netns::id_of(&roots.proc("self/ns/net")).map(|own| (InitialNetns::look(roots, own), own));
        match initial {
            Ok((InitialNetns::Known(id), own)) if id == own => {
                self.note("host's netns", Some(true), format!("{id}, the one ctwatch runs in"), None);
            }
            Ok((InitialNetns::Known(id), _)) => {
                self.note("host's netns", Some(true), format!("{id}, that of process 1"), None);
            }
            Ok((InitialNetns::Unknown(why), own)) => {
                let text = format!(
                    "{}; {own} is shown as \"{THIS_NETNS}\", and losses elsewhere as \"not readable\"",
                    why.text()
                );
                self.note("host's netns", Some(false), text, Some(why.remedy()));
            }
            Err(error) => self.note("host's netns", None, format!("{error:#}"), Some("mount /proc")),
        }
    }

    /// Records are kept for each CPU that may ever come up, not only for those that are online.
    fn cpus(&mut self, roots: &Roots) {
        let (Ok(possible), Ok(online)) = (cpus::possible(&roots.sys), cpus::online(&roots.sys)) else {
            self.note("cpus", None, "unknown (no /sys/devices/system/cpu)".to_owned(), None);
            return;
        };
        let present = netns::discover().map_or(1, |namespaces| namespaces.len());
        let room = NetnsRoom::new(present, u32::try_from(possible.len()).unwrap_or(u32::MAX));
        let text = format!(
            "{} online, {} possible; records of {} netns (there {} {present} now) take {} of kernel memory",
            online.len(),
            possible.len(),
            thousands(room.namespaces.into()),
            if present == 1 { "is" } else { "are" },
            mib(room.bytes),
        );
        let enough = present < room.namespaces as usize;
        let remedy = "nothing: of more namespaces that lose packets at the same time only drops of a full table and evictions are counted";
        self.note("cpus", Some(enough), text, (!enough).then_some(remedy));
    }

    /// What `ctwatch table` needs, which is less than watching does.
    fn census(&mut self, roots: &Roots) {
        let Some(these) = Capabilities::effective(roots) else { return };
        let has = |capability| these.has(capability);
        let reads = has(Capability::NetAdmin);
        let text = if reads {
            "`ctwatch table` can list this netns's table (CAP_NET_ADMIN)"
        } else {
            "`ctwatch table` can't list this netns's table: CAP_NET_ADMIN is missing"
        };
        let remedy = (!reads)
            .then_some("run as root, or `setcap cap_net_admin+ep` the binary: listing needs nothing else");
        self.note("census", Some(reads), text.to_owned(), remedy);
        let missing: Vec<&str> = [
            ("CAP_SYS_ADMIN (to enter them)", has(Capability::SysAdmin)),
            ("CAP_SYS_PTRACE (to find them)", has(Capability::SysPtrace)),
            ("CAP_NET_ADMIN", reads),
        ]
        .into_iter()
        .filter_map(|(name, has)| (!has).then_some(name))
        .collect();
        if missing.is_empty() {
            let text = "tables of other netns can be listed, too (CAP_SYS_ADMIN, CAP_SYS_PTRACE)";
            self.note("other netns", Some(true), text.to_owned(), None);
        } else {
            let text = format!("tables of other netns can't be listed: missing {}", missing.join(", "));
            self.note("other netns", Some(false), text, Some("run as root"));
        }
    }
}

/// Which of the ways this kernel has. What programs read through perf must lie where they look for it.
fn raw_tracepoints(btf: &Btf, roots: &Roots) -> RawTpReentrancy {
    if btf.offset("bpf_prog", "active").is_none() {
        return RawTpReentrancy::Nested;
    }
    if release_number(&roots.release()).is_none_or(|number| number < (7, 0)) {
        return RawTpReentrancy::Skipped;
    }
    let event = "trace_event_raw_kfree_skb";
    let listed = ["kernel/tracing", "kernel/debug/tracing"]
        .iter()
        .any(|folder| roots.sys(format!("{folder}/events/skb/kfree_skb/id")).exists());
    RawTpReentrancy::Preempted {
        perf: listed
            && btf.offset(event, "skbaddr") == Some(KFREE_SKB_ADDRESS)
            && btf.offset(event, "location") == Some(KFREE_SKB_ADDRESS + 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn roots(files: &[(&str, &str)]) -> (tempfile::TempDir, Roots) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let roots = Roots { proc: folder.path().join("proc"), sys: folder.path().join("sys") };
        (folder, roots)
    }

    #[test]
    fn without_root_the_first_obstacle_says_run_as_root() {
        let (_keep, roots) = roots(&[
            ("proc/sys/kernel/osrelease", "6.12.1\n"),
            ("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n"),
            ("proc/kallsyms", "0000000000000000 T nf_hook_slow\n"),
        ]);
        let found = look(
            &roots,
            &Kernel::read(&roots),
            Some(&|| panic!("bpf() is not tried when something is missing already")),
        );
        let obstacle = found.obstacle.expect("something is missing");
        assert!(obstacle.contains("CAP_BPF") && obstacle.contains("run as root"), "{obstacle}");
    }

    #[test]
    fn the_right_to_read_one_table_is_told_apart_from_the_right_to_read_all() {
        for (capabilities, own, others) in [
            ("0000000000000000", false, false),
            ("0000000000001000", true, false),
            ("000001ffffffffff", true, true),
        ] {
            let status = format!("Name:\tx\nCapEff:\t{capabilities}\n");
            let (_keep, roots) = roots(&[("proc/self/status", status.as_str())]);
            let found = look(&roots, &Kernel::read(&roots), None);
            let ok = |name: &str| found.items.iter().find(|item| item.name == name).and_then(|item| item.ok);
            assert_eq!((ok("census"), ok("other netns")), (Some(own), Some(others)), "{capabilities}");
        }
    }

    #[test]
    fn a_kernel_without_the_needed_symbol_is_told_what_would_help() {
        let (_keep, roots) = roots(&[
            ("proc/sys/kernel/osrelease", "6.12.1\n"),
            ("proc/self/status", "CapEff:\t000001ffffffffff\n"),
            ("proc/kallsyms", "ffffffff81000000 T something_else\n"),
        ]);
        let found = look(&roots, &Kernel::read(&roots), None);
        let item = found.items.iter().find(|item| item.name == "symbols").expect("looked at");
        assert_eq!(item.ok, Some(false));
        assert!(item.remedy.as_deref().is_some_and(|remedy| remedy.contains("counters")));
    }

    #[test]
    fn an_old_kernel_and_lockdown_are_named() {
        let (_keep, roots) = roots(&[
            ("proc/sys/kernel/osrelease", "4.19.0-27\n"),
            ("sys/kernel/security/lockdown", "none integrity [confidentiality]\n"),
        ]);
        let found = look(&roots, &Kernel::read(&roots), None);
        assert!(found.obstacle.expect("too old").contains("4.19"));
        let lockdown = found.items.iter().find(|item| item.name == "lockdown").expect("looked at");
        assert_eq!(lockdown.ok, Some(false));
    }
}
