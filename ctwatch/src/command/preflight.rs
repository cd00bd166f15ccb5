//! Can ctwatch watch here, with which backend, and if not, what would change that?
//! It reads /proc and /sys; what has to be tried is handed in, and a caller that attaches anyway leaves it out.

mod rights;

use std::fmt;

use anyhow::Result;

use crate::conntrack::{module, stat};
use crate::contract::CheckItem;
use crate::kernel::Kernel;
use crate::kernel::btf::Btf;
use crate::kernel::calls::Refused;
use crate::kernel::cpus;
use crate::kernel::release::release_number;
use crate::kernel::roots::Roots;
use crate::kernel::standing::{OUTSIDE, Standing};
use crate::kernel::symbols::Symbols;
use crate::model::THIS_NETNS;
use crate::netns::{self, Entered, InitialNetns};
use crate::probe::offsets;
use crate::probe::plan::{MissingHook, RawTpReentrancy};
use crate::probe::room::NetnsRoom;
use crate::probe::shapes;
use crate::text::{mib, thousands};
use ctwatch_common::config::KFREE_SKB_ADDRESS;

/// What was found.
pub struct Preflight {
    /// Each thing looked at, in the order of the check.
    pub items: Vec<CheckItem>,
    /// The first thing that rules out every backend that uses programs.
    pub obstacle: Option<Obstacle>,
    /// kprobes can be used; else why not.
    pub kprobes: Result<(), String>,
    /// The kernel's own counters can be read, which is all that the last backend takes; else why not.
    pub counters: Result<(), String>,
    /// How the kernel runs raw tracepoint programs.
    pub raw_tracepoints: RawTpReentrancy,
}

/// What rules out programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// The item it is.
    pub name: &'static str,
    /// What was found.
    pub found: String,
    /// What would change it.
    pub remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, found, remedy } = self;
        write!(f, "{name}: {found}; {remedy}")
    }
}

/// What can only be found out by doing it. Each leaves nothing behind.
pub struct Trials<'a> {
    /// Loads a program and its maps.
    pub program: &'a dyn Fn() -> Result<()>,
    /// Attaches a kprobe; false if there is nothing yet to attach it to.
    pub kprobe: &'a dyn Fn() -> Result<bool>,
    /// Attaches a program to each function that is hooked; which are not there, or refuse.
    pub hooks: &'a dyn Fn() -> Result<Vec<MissingHook>>,
    /// Begins to list this netns's table.
    pub listing: &'a dyn Fn() -> Result<()>,
    /// Enters another netns.
    pub netns: &'a dyn Fn() -> Result<Entered>,
}

/// Looks at everything. `refused`: the system calls that something refuses before the kernel looks at them. Without `trials`
/// nothing else is tried.
pub fn look(
    roots: &Roots,
    kernel: &Kernel,
    standing: &Standing,
    refused: &[Refused],
    trials: Option<&Trials<'_>>,
) -> Preflight {
    let release = roots.release();
    let mut found = Preflight {
        items: Vec::new(),
        obstacle: None,
        kprobes: Ok(()),
        counters: Ok(()),
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
    let symbols = kernel.symbols.as_ref().ok();
    found.capabilities(standing, symbols.is_some_and(|symbols| symbols.hidden));
    found.calls(roots, standing, refused);
    found.types(&kernel.btf, symbols);
    found.functions(kernel);
    found.symbols(&kernel.symbols, roots, standing);
    found.lockdown(roots);
    found.conntrack(roots);
    if let Some(trials) = trials {
        found.program(trials);
    }
    found.kprobes(roots, symbols, trials);
    found.hooks(roots, trials);
    found.census(roots, standing, trials);
    found.other_netns(roots, standing, trials);
    found.host(roots);
    found.judge(roots, standing);
    if trials.is_some() {
        // All processes are asked for their netns: a caller that is about to attach does so anyway.
        found.cpus(roots);
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
    fn need(&mut self, name: &'static str, ok: bool, text: String, remedy: &str) {
        if !ok && self.obstacle.is_none() {
            self.obstacle = Some(Obstacle { name, found: text.clone(), remedy: remedy.to_owned() });
        }
        self.note(name, Some(ok), text, (!ok).then_some(remedy));
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
            self.need("conntrack", false, HIDDEN.to_owned(), OUTSIDE);
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

    /// Whether the kernel's own counters, which judge ctwatch's and do without programs, can be read, and where.
    fn judge(&mut self, roots: &Roots, standing: &Standing) {
        if module::loaded(roots).is_none() {
            if module::is_hidden(roots) {
                self.counters = Err(HIDDEN.to_owned());
            } else if !roots.proc("sys/kernel/osrelease").exists() {
                self.counters = Err("/proc is not readable".to_owned());
            }
            return;
        }
        match stat::read_here() {
            Ok(stat) => {
                self.note("kernel counters", Some(true), format!("read from {}", stat.from.title()), None);
            }
            Err(error) => {
                let text = format!("not readable: {error:#}");
                let remedy = format!(
                    "without /proc/net/stat/nf_conntrack (CONFIG_NF_CONNTRACK_PROCFS) it takes `modprobe nf_conntrack_netlink` and \
                     CAP_NET_ADMIN ({}). Until then losses are counted, but nothing confirms them",
                    standing.how_to_list_here()
                );
                self.note("kernel counters", Some(false), text.clone(), Some(&remedy));
                self.counters = Err(text);
            }
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
}

/// Before Linux 5.15.
pub const HIDDEN: &str = "nf_conntrack is loaded, but its sysctls are hidden from this user namespace";

/// Which of the ways this kernel has. What programs read through perf must lie where they look for it.
pub fn raw_tracepoints(btf: &Btf, roots: &Roots) -> RawTpReentrancy {
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
mod tests;
