//! Whose packets were lost: from what the kernel says of a sender to its cgroup and container, and who listens for those
//! that came from outside. All I/O about processes is here; nothing is looked up twice for one process, and nothing guessed.

pub mod listener;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::foreign::Foreign;
use crate::kernel::roots::Roots;
use crate::model::{Hook, Loss, NetnsId, Owner, Packet, ProcessId, Protocol, Role, Sender};
use crate::netns::Netns;
use crate::process::cgroup::Cgroups;
use crate::process::{cgroup, container, procfs};
use listener::{Destination, Listeners};

/// Senders remembered; more at once than any host has.
const SENDERS: usize = 1 << 14;
/// What the paths of their cgroups take together: a path has a kilobyte, if somebody wants it to.
const PATHS: usize = 4 << 20;
/// How long what is known of a sender counts: its number may go to another process.
const FRESH: Duration = Duration::from_secs(30);
/// The same while something is still unknown.
const FRESH_IF_INCOMPLETE: Duration = Duration::from_secs(2);
/// Processes looked at in /proc each second.
const LOOKS_PER_S: u32 = 200;

/// What is known of processes.
#[derive(Debug)]
pub struct OwnerResolver {
    roots: Roots,
    cgroups: Cgroups,
    senders: HashMap<Sender, KnownSender>,
    /// Bytes of names that senders hold.
    named: usize,
    listeners: Listeners,
    /// Losses without a known process, by netns and by whether they may be any process's.
    unknown_owners: HashMap<(NetnsId, bool), Arc<Owner>>,
    now: Instant,
    second: Instant,
    looks: u32,
}

#[derive(Debug)]
struct KnownSender {
    who: Arc<Owner>,
    until: Instant,
}

impl OwnerResolver {
    /// Nothing looked up yet.
    #[must_use]
    pub fn new(roots: &Roots) -> Self {
        let now = Instant::now();
        Self {
            roots: roots.clone(),
            cgroups: Cgroups::new(roots),
            senders: HashMap::new(),
            named: 0,
            listeners: Listeners::new(roots),
            unknown_owners: HashMap::new(),
            now,
            second: now,
            looks: 0,
        }
    }

    /// Before a batch of losses: one look at the clock for all of them.
    pub fn begin(&mut self) {
        self.now = Instant::now();
        if self.now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = self.now;
            self.looks = 0;
        }
        self.listeners.take_answers(self.now);
    }

    /// Namespaces came, went, or got a name.
    pub fn namespaces_changed(&mut self) {
        self.unknown_owners.clear();
    }

    /// Whose packet it was.
    pub fn of(&mut self, loss: &Loss, namespaces: &BTreeMap<NetnsId, Netns>) -> Arc<Owner> {
        let Packet { netns, hook, .. } = loss.packet;
        let (inbound, forwarded) = (hook.is_some_and(Hook::is_inbound), hook == Some(Hook::Forward));
        // The task that runs while a packet comes in was merely interrupted.
        if let Some(sender) = loss.sender.filter(|_| !inbound && !forwarded) {
            return self.sender(&sender);
        }
        let entered = namespaces.get(&netns);
        let listener = match (inbound, entered, destination(&loss.packet)) {
            (true, Some(entered), Some(target)) => self.listeners.of(target, entered, self.now),
            _ => None,
        };
        match listener {
            Some(who) if who.process.is_some() => who,
            // Too many sockets or processes for all to be looked at.
            Some(who) if who.unattributable => self.unknown_owner(netns, entered, true),
            // Nobody listens: it was to be forwarded, or refused.
            Some(_) => self.unknown_owner(netns, entered, false),
            None => self.unknown_owner(netns, entered, !forwarded),
        }
    }

    /// Whether the listener that this packet was going to is being looked for: asked again later, it may be known.
    #[must_use]
    pub fn lookup_pending(&self, loss: &Loss) -> bool {
        loss.packet.hook.is_some_and(Hook::is_inbound)
            && destination(&loss.packet).is_some_and(|to| self.listeners.is_open(&to, self.now))
    }

    fn sender(&mut self, sender: &Sender) -> Arc<Owner> {
        let now = self.now;
        if let Some(known) = self.senders.get(sender).filter(|known| now < known.until) {
            return Arc::clone(&known.who);
        }
        if self.senders.len() >= SENDERS || self.named >= PATHS {
            self.senders.clear();
            self.named = 0;
        }
        let cgroup = self.cgroup_of(sender);
        let container =
            cgroup.as_ref().and_then(|path| container::of_path(path.raw())).map(|container| container.name);
        let process = ProcessId { pid: sender.pid, name: sender.name, role: Role::Sender };
        let until = now + if cgroup.is_some() { FRESH } else { FRESH_IF_INCOMPLETE };
        self.named += [&cgroup, &container].into_iter().flatten().map(Foreign::size).sum::<usize>();
        let who = Arc::new(Owner { process: Some(process), cgroup, container, unattributable: false });
        self.senders.insert(*sender, KnownSender { who: Arc::clone(&who), until });
        who
    }

    /// By the id the kernel gave; by /proc where that says nothing, as it does under cgroup v1.
    fn cgroup_of(&mut self, sender: &Sender) -> Option<Foreign> {
        let path = self.cgroups.path(sender.cgroup, self.now).cloned();
        if path.as_ref().is_some_and(|path| *path != "/") {
            return path;
        }
        if self.looks >= LOOKS_PER_S {
            return path;
        }
        self.looks += 1;
        // The number may have gone to another process by now.
        let is_it = procfs::is_called(&self.roots, sender.pid, &sender.name.padded());
        is_it.then(|| cgroup::of_process(&self.roots, sender.pid)).flatten().or(path)
    }

    fn unknown_owner(&mut self, netns: NetnsId, entered: Option<&Netns>, unattributable: bool) -> Arc<Owner> {
        let make = || {
            let container = entered.and_then(|entered| entered.container.clone());
            Arc::new(Owner { container, unattributable, ..Owner::default() })
        };
        Arc::clone(self.unknown_owners.entry((netns, unattributable)).or_insert_with(make))
    }
}

/// Where a packet with ports was going, if something can listen there.
fn destination(packet: &Packet) -> Option<Destination> {
    let tuple = packet.tuple?;
    let proto =
        packet.proto.filter(|proto| matches!(*proto, Protocol::TCP | Protocol::UDP | Protocol::SCTP))?;
    Some(Destination { netns: packet.netns, proto, to: tuple.dst, port: tuple.dport })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use ctwatch_common::Cause;
    use jiff::Timestamp;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    const NETNS: NetnsId = NetnsId::from_inode(4_026_532_299);

    fn loss(hook: Hook, sender: Option<Sender>) -> Loss {
        let packet = Packet { netns: NETNS, hook: Some(hook), ..Packet::default() };
        Loss { sender, ..Loss::new(Timestamp::UNIX_EPOCH, Cause::TableFull, packet) }
    }

    fn owner(cgroup: u64, pid: u32) -> Sender {
        Sender { cgroup, pid, name: Name::new(b"redis-server") }
    }

    /// A host on cgroup v2 with one container, and a process that only /proc knows.
    fn host() -> (tempfile::TempDir, Roots, u64) {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots { proc: folder.path().join("proc"), sys: folder.path().join("sys") };
        let scope = roots.sys(format!("fs/cgroup/system.slice/docker-{}.scope", "3f2a9c0b1d2e".repeat(6)));
        fs::create_dir_all(&scope).unwrap();
        fs::write(roots.sys("fs/cgroup/cgroup.procs"), "").unwrap();
        fs::write(roots.sys("fs/cgroup/cgroup.controllers"), "").unwrap();
        fs::create_dir_all(roots.proc("77")).unwrap();
        fs::write(roots.proc("77/comm"), "redis-server\n").unwrap();
        fs::write(roots.proc("77/cgroup"), "1:name=systemd:/system.slice/redis.service\n0::/\n").unwrap();
        let id = fs::metadata(scope).unwrap().ino();
        (folder, roots, id)
    }

    #[test]
    fn a_sender_has_its_cgroup_and_container() {
        let (_folder, roots, id) = host();
        let mut owners = OwnerResolver::new(&roots);
        let who = owners.of(&loss(Hook::LocalOut, Some(owner(id, 5))), &BTreeMap::new());
        let process = who.process.unwrap();
        assert_eq!((process.pid, process.role), (5, Role::Sender));
        assert_eq!(who.container.as_ref().map(Foreign::raw), Some("docker:3f2a9c0b1d2e"));
        let again = owners.of(&loss(Hook::LocalOut, Some(owner(id, 5))), &BTreeMap::new());
        assert!(Arc::ptr_eq(&who, &again), "it was looked up once");
    }

    #[test]
    fn under_v1_the_cgroup_comes_from_proc_if_the_process_is_still_the_same() {
        let (_folder, roots, _) = host();
        let mut owners = OwnerResolver::new(&roots);
        let who = owners.of(&loss(Hook::LocalOut, Some(owner(0, 77))), &BTreeMap::new());
        assert_eq!(who.cgroup.as_ref().map(Foreign::raw), Some("/system.slice/redis.service"));
        assert_eq!(who.container.as_ref().map(Foreign::raw), Some("unit:redis.service"));
        let another = Sender { name: Name::new(b"cron"), ..owner(0, 77) };
        let who = owners.of(&loss(Hook::LocalOut, Some(another)), &BTreeMap::new());
        assert_eq!(
            (who.cgroup.as_ref().map(Foreign::raw), who.container.as_ref().map(Foreign::raw)),
            (None, None)
        );
        assert_eq!(who.process.unwrap().pid, 77);
    }

    #[test]
    fn cgroups_with_endless_paths_fill_no_memory() {
        let (_folder, roots, _) = host();
        let mut deep = roots.sys("fs/cgroup/user.slice");
        for _ in 0..3 {
            deep.push("d".repeat(250));
        }
        fs::create_dir_all(&deep).unwrap();
        let id = fs::metadata(&deep).unwrap().ino();
        let mut owners = OwnerResolver::new(&roots);
        for pid in 1..=10_000 {
            let who = owners.of(&loss(Hook::LocalOut, Some(owner(id, pid))), &BTreeMap::new());
            assert!(who.cgroup.as_ref().is_some_and(|path| path.size() > 700));
        }
        let held = |known: &KnownSender| known.who.cgroup.as_ref().map_or(0, Foreign::size);
        let bytes: usize = owners.senders.values().map(held).sum();
        assert!(bytes <= PATHS + 8_192, "{bytes}");
    }

    #[test]
    fn nobody_is_called_the_sender_of_what_came_in() {
        let (_folder, roots, id) = host();
        let mut owners = OwnerResolver::new(&roots);
        for inbound in [Hook::PreRouting, Hook::LocalIn, Hook::Forward] {
            let who = owners.of(&loss(inbound, Some(owner(id, 5))), &BTreeMap::new());
            assert_eq!(who.process, None);
        }
    }

    #[test]
    fn where_nobody_is_known_the_netns_s_container_is() {
        let (_folder, roots, _) = host();
        let mut owners = OwnerResolver::new(&roots);
        let container = Some(Foreign::from("pod:1234"));
        let place = Netns { id: NETNS, path: PathBuf::from("/x"), name: container.clone(), container };
        let who = owners.of(&loss(Hook::LocalOut, None), &BTreeMap::from([(NETNS, place)]));
        assert_eq!(
            (who.process, who.container.as_ref().map(Foreign::raw), who.unattributable),
            (None, Some("pod:1234"), true)
        );
        let who = owners.of(&loss(Hook::Forward, None), &BTreeMap::new());
        assert!(!who.unattributable, "a forwarded packet is no local process's");
    }
}
