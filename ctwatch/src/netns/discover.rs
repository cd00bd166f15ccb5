//! All namespaces that a name or a process leads to.
//! Files that lead nowhere, and processes that end meanwhile, are passed over.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::initial::InitialNetns;
use super::name::NetnsNamer;
use super::{Netns, id_of};
use crate::kernel::roots::Roots;
use crate::model::{HOST_NETNS, NetnsId, THIS_NETNS};

/// Folders where tools keep named netns (iproute2, docker).
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];
/// A process may move to another netns, and its number to another process: so often all are asked again.
const ASK_ALL: Duration = Duration::from_secs(60);

/// All netns that a name or a process leads to.
pub fn discover() -> Result<BTreeMap<NetnsId, Netns>> {
    NetnsFinder::default().look(InitialNetns::look(&Roots::default(), super::own()?).known(), true)
}

/// Looks for namespaces again and again. Only processes that are new are asked where they live, and nobody is if there is
/// none: on a host with thousands of them asking all takes long.
#[derive(Debug, Default)]
pub struct NetnsFinder {
    /// The netns of each process, as it was when the process was first seen.
    homes: BTreeMap<u32, NetnsId>,
    found: BTreeMap<NetnsId, Netns>,
    /// What /proc/loadavg said of the newest process.
    newest: Option<String>,
    asked_all: Option<Instant>,
}

impl NetnsFinder {
    /// All namespaces now. `initial` is the initial netns, if that is known; `thorough`: ask all processes.
    pub fn look(&mut self, initial: Option<NetnsId>, thorough: bool) -> Result<BTreeMap<NetnsId, Netns>> {
        let thorough = thorough || self.asked_all.is_none_or(|at| at.elapsed() >= ASK_ALL);
        let newest = newest_process();
        if !thorough && newest.is_some() && newest == self.newest {
            // A new netns comes with a new process or thread. Those that are gone show when they are entered.
            self.found.retain(|_, netns| super::leads_there(netns));
            return Ok(self.found.clone());
        }
        self.ask_processes(thorough)?;
        self.newest = newest;
        if thorough {
            self.asked_all = Some(Instant::now());
        }
        self.found = self.namespaces(initial, thorough)?;
        Ok(self.found.clone())
    }

    fn ask_processes(&mut self, thorough: bool) -> Result<()> {
        let mut homes = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").context("listing /proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let known = if thorough { None } else { self.homes.get(&pid).copied() };
            if let Some(id) = known.or_else(|| id_of(&path_of(pid)).ok()) {
                homes.insert(pid, id);
            }
        }
        self.homes = homes;
        Ok(())
    }

    fn namespaces(&self, initial: Option<NetnsId>, thorough: bool) -> Result<BTreeMap<NetnsId, Netns>> {
        let mut namespaces = BTreeMap::new();
        let own = PathBuf::from("/proc/self/ns/net");
        let own_id = id_of(&own)?;
        let unnamed = |id: NetnsId, path: PathBuf| {
            let name = (Some(id) == initial).then(|| HOST_NETNS.into());
            Netns { id, path, name, container: None }
        };
        let first = PathBuf::from("/proc/1/ns/net");
        if let Ok(id) = id_of(&first) {
            namespaces.insert(id, unnamed(id, first));
        }
        namespaces.entry(own_id).or_insert_with(|| unnamed(own_id, own.clone()));
        // Named netns are bind mounts of the same file system as /proc/self/ns/net; other files there are leftovers.
        let device = std::fs::metadata(&own).context("looking up /proc/self/ns/net")?.dev();
        for entry in NAMED.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != device {
                continue;
            }
            let Ok(id) = u32::try_from(metadata.ino()).map(NetnsId::from_inode) else { continue };
            let netns = namespaces.entry(id).or_insert_with(|| unnamed(id, entry.path()));
            if netns.name.is_none() {
                netns.name = Some(entry.file_name().as_os_str().into());
                netns.path = entry.path();
            }
        }
        let mut namer = NetnsNamer::default();
        let mut asked_before: HashMap<NetnsId, bool> = HashMap::new();
        for (pid, id) in &self.homes {
            let netns = namespaces.entry(*id).or_insert_with(|| unnamed(*id, path_of(*pid)));
            let settled = !thorough && *asked_before.entry(*id).or_insert_with(|| self.keep_container(netns));
            if !settled && netns.name.as_ref().is_none_or(|name| *name != HOST_NETNS) {
                namer.add_process(*id, *pid);
            }
        }
        namer.name(&mut namespaces);
        if let Some(own) = namespaces.get_mut(&own_id) {
            own.name.get_or_insert_with(|| THIS_NETNS.into());
        }
        Ok(namespaces)
    }

    /// Who lives in a netns was found out before.
    fn keep_container(&self, netns: &mut Netns) -> bool {
        let Some(container) = self.found.get(&netns.id).and_then(|before| before.container.clone()) else {
            return false;
        };
        netns.name.get_or_insert_with(|| container.clone());
        netns.container = Some(container);
        true
    }
}

fn path_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// The number that the newest process or thread got, where that says something of all of them: in the initial pid namespace.
fn newest_process() -> Option<String> {
    let pid_namespace = std::fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    (pid_namespace == super::initial::INITIAL_PID_NAMESPACE)
        .then(|| text.split_ascii_whitespace().last().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_second_look_finds_is_what_the_first_found() {
        let mut finder = NetnsFinder::default();
        let first = finder.look(None, true).expect("/proc is readable");
        let asked = finder.asked_all;
        let second = finder.look(None, false).expect("/proc is readable");
        // Other tests start and end processes meanwhile, but the own netns stays.
        let own = super::super::own().expect("/proc is readable");
        assert_eq!(first.get(&own), second.get(&own));
        assert_eq!(finder.asked_all, asked, "not everyone was asked twice");
    }
}
