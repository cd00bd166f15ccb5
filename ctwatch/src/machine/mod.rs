//! What `ctwatch advise` has to know of the host: memory, table, timeouts, who sets them, what serves a port.
//! Nothing here changes or judges anything, and nothing fails: what can't be read is unknown, with a note.

mod doubts;
pub mod endpoint;
mod file;
#[cfg(test)]
mod fixture;
mod listening;
pub mod management;
pub mod managers;
pub mod ports;
pub mod published;
pub mod reuse;
pub mod settings;
pub mod software;
pub mod table;
pub mod timeouts;
mod yaml;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::kernel::release::release_number;
use crate::kernel::roots::Roots;
use crate::process::claim::{self, Judge};
pub use file::Writable;
pub use managers::Manager;
pub use ports::EphemeralPorts;
pub use published::Published;
pub use settings::BootSettings;
pub use software::{Program, Software};
pub use table::TableLimits;
pub use timeouts::{TimeoutSettings, Tracking};

/// Where a host's files are.
#[derive(Clone, Debug)]
pub struct Host {
    /// /proc and /sys.
    pub roots: Roots,
    /// Usually /; in a container, where the host's file system is mounted.
    pub root: PathBuf,
    /// Decides whether a process may be what it calls itself.
    pub judge: Judge,
}

impl Default for Host {
    fn default() -> Self {
        Self { roots: Roots::default(), root: PathBuf::from("/"), judge: claim::is_believed }
    }
}

impl Host {
    /// A path below the root, which is given without a slash in front.
    fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A path as the host itself sees it.
    fn seen(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_owned(), |path| Path::new("/").join(path))
    }
}

/// Remarks on what was read, or couldn't be.
#[derive(Debug, Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, note: impl Into<String>) {
        self.0.push(note.into());
    }
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All that the kernel manages.
    pub total: u64,
    /// What could be had without swapping.
    pub available: Option<u64>,
}

/// The facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// As `uname -r` prints it.
    pub kernel_release: String,
    /// Its first two numbers.
    pub kernel_version: Option<(u32, u32)>,
    /// CPUs online.
    pub cpus: Option<u32>,
    /// Memory.
    pub memory: Option<Memory>,
    /// The table.
    pub table: TableLimits,
    /// The timeouts of this netns.
    pub timeouts: TimeoutSettings,
    /// What else decides how flows are tracked.
    pub tracking: Tracking,
    /// The limit that source ports impose.
    pub ephemeral_ports: Option<EphemeralPorts>,
    /// Files that set conntrack's settings.
    pub settings: BootSettings,
    /// Programs that do.
    pub managers: Vec<Manager>,
    /// Ports that programs publish for containers.
    pub published: Vec<Published>,
    /// There may be more of those than could be looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub published_is_cut: bool,
    /// It is OpenWrt, which keeps its firewall's files elsewhere.
    #[serde(default)]
    pub is_openwrt: bool,
    /// What couldn't be read, and what looks wrong.
    pub notes: Vec<String>,
}

/// Reads all facts, those of a netns from the one this thread is in.
#[must_use]
pub fn read(host: &Host) -> Machine {
    let roots = &host.roots;
    let mut notes = Notes::default();
    let kernel_release = roots.release();
    let kernel_version = release_number(&kernel_release);
    let memory = file::text(&roots.proc("meminfo")).as_deref().and_then(memory);
    if memory.is_none() {
        notes.add("can't read the amount of memory from /proc/meminfo");
    }
    let cpus = file::text(&roots.sys("devices/system/cpu/online")).as_deref().and_then(ports::cpus);
    let table = table::read(roots, memory.map(|memory| memory.total), kernel_version, &mut notes);
    let timeouts = timeouts::read(roots);
    if timeouts.is_empty() && table.module != table::Module::Absent {
        notes.add("can't read any timeout of this netns from /proc/sys/net/netfilter");
    }
    let managers = managers::read(host, cpus, &mut notes);
    let (published, published_is_cut) = published::read(host, &mut notes);
    if published_is_cut {
        notes.add("there are more sockets or processes than could be looked at: ports published for containers may be missing");
    }
    Machine {
        kernel_release,
        kernel_version,
        cpus,
        memory,
        timeouts,
        tracking: timeouts::read_tracking(roots),
        ephemeral_ports: ports::read(roots),
        settings: settings::read(host, &mut notes),
        managers,
        published,
        published_is_cut,
        is_openwrt: host.root.join("etc/openwrt_release").exists(),
        table,
        notes: notes.0,
    }
}

impl Machine {
    /// The manager that would overwrite a sysctl file's value for this sysctl.
    #[must_use]
    pub fn owner_of(&self, sysctl: &str) -> Option<&Manager> {
        self.managers.iter().find(|manager| manager.overwrites && manager.sets.contains_key(sysctl))
    }
}

/// "MemTotal:        2014740 kB"
fn memory(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory { total: bytes("MemTotal")?, available: bytes("MemAvailable") })
}

#[cfg(test)]
mod tests {
    use super::fixture::{Fixture, kernels};
    use super::table::{ChainLimit, Module, SizeSource};
    use super::*;

    #[test]
    fn three_kernels_as_they_boot() {
        for (kernel, fixture) in kernels() {
            let machine = read(&fixture.host);
            let is_old = kernel == "5.10";
            let table = &machine.table;
            assert!(machine.kernel_release.starts_with(kernel), "{}", machine.kernel_release);
            assert_eq!(machine.cpus, Some(2), "{kernel}");
            let memory = machine.memory.unwrap();
            assert!((1_900 << 20..2 << 30).contains(&memory.total), "{kernel}: {memory:?}");
            assert!(memory.available.unwrap() < memory.total);
            assert_eq!(table.module, Module::Loaded);
            assert_eq!(table.entry.object, if is_old { 320 } else { 256 }, "{kernel}");
            assert_eq!(table.entry.source, SizeSource::Slabinfo);
            assert_eq!(table.initial_netns, Some(true));
            assert_eq!(table.max_writable, Writable::Yes);
            // Nobody set anything: the kernel chose what we say it chooses.
            let chosen = table.kernel_default.unwrap();
            assert_eq!((table.max, table.buckets), (Some(chosen.max), Some(chosen.buckets)), "{kernel}");
            assert_eq!(table.chain_limit == Some(ChainLimit::None), is_old);
            assert_eq!(table.count, Some(0), "no rule tracked yet when the sysctls were copied");
            assert_eq!(machine.ephemeral_ports.unwrap().ceiling(), 28_232);
            assert!(machine.managers.is_empty() && machine.published.is_empty());
            assert!(machine.notes.is_empty(), "{kernel}: {:?}", machine.notes);
        }
    }

    #[test]
    fn every_timeout_of_a_fresh_kernel_is_known_and_at_its_default() {
        for (kernel, fixture) in kernels() {
            let machine = read(&fixture.host);
            for (name, timeout) in &machine.timeouts {
                assert_eq!(timeout.default, Some(timeout.seconds), "{name} of {kernel}");
                assert!(!timeout.is_changed());
            }
            assert_eq!(machine.timeouts["tcp_time_wait"].seconds, 120);
            assert_eq!(machine.timeouts["tcp_established"].seconds, 432_000);
            assert_eq!(machine.timeouts.len(), if kernel == "7.3" { 25 } else { 32 }, "{kernel}");
            assert_eq!(machine.tracking.tcp_loose, Some(true));
            assert_eq!(machine.tracking.helper.is_some(), kernel == "5.10");
        }
    }

    #[test]
    fn a_host_without_anything_gives_facts_without_anything() {
        let machine = read(&Fixture::of(&[]).host);
        assert_eq!(machine.kernel_release, "unknown");
        assert_eq!((machine.cpus, machine.memory, machine.table.max), (None, None, None));
        assert_eq!(machine.table.module, Module::Absent);
        assert_eq!(machine.table.entry.source, SizeSource::KernelVersion);
        assert!(machine.timeouts.is_empty() && machine.ephemeral_ports.is_none());
        assert_eq!(machine.notes.len(), 3, "{:?}", machine.notes);
    }

    #[test]
    fn outside_of_the_initial_netns_the_limit_is_read_only() {
        use std::os::unix::fs::PermissionsExt;
        let fixture = Fixture::of(&[("proc/sys/net/netfilter/nf_conntrack_max", "65536\n")]);
        let path = fixture.host.roots.proc("sys/net/netfilter/nf_conntrack_max");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o444)).unwrap();
        let table = read(&fixture.host).table;
        assert_eq!(table.max_writable, Writable::OnlyInTheInitialNetns);
        assert_eq!(table.initial_netns, Some(false));
        assert_eq!(table.module, Module::BuiltIn, "there is no module, and yet it tracks");
    }

    #[test]
    fn facts_survive_being_written_and_read() {
        for (_, fixture) in kernels() {
            let machine = read(&fixture.host);
            let text = serde_json::to_string(&machine).unwrap();
            assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
        }
    }

    #[test]
    fn the_sysctl_s_owner_is_who_would_overwrite_it() {
        let fixture = Fixture::of(&[
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("proc/12/comm", "kube-proxy\n"),
            ("proc/12/cmdline", "kube-proxy\0"),
        ]);
        let machine = read(&fixture.host);
        let owner = machine.owner_of(managers::MAX).unwrap();
        assert_eq!(owner.sets[managers::MAX], 262_144);
        assert!(machine.owner_of("net.netfilter.nf_conntrack_tcp_timeout_time_wait").is_none());
    }
}
