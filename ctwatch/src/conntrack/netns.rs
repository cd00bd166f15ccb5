//! Network namespaces: which there are, what they are called, and reading a table's counters inside each.
//! Only short-lived visiting threads change their netns; no fd into a netns outlives a visit, so none is kept alive.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::stat::{self, Stat};
use crate::event::NetnsId;
use crate::kernel::roots::Roots;
use crate::owner::cgroup;
use crate::owner::container::{self, Kind};

/// Folders where tools keep named netns (iproute2, docker).
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// A netns and a way into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its inode number.
    pub id: NetnsId,
    /// A file that leads into it.
    pub path: PathBuf,
    /// "host", the name its maker gave it, or that of the container that lives in it.
    pub name: Option<String>,
    /// The container or pod that lives in it; else the systemd unit.
    pub container: Option<String>,
}

/// The netns a file leads into.
pub fn id_of(path: &Path) -> Result<NetnsId> {
    let inode = std::fs::metadata(path).with_context(|| format!("looking up {}", path.display()))?.ino();
    Ok(NetnsId(u32::try_from(inode).context("a netns inode number does not fit 32 bits")?))
}

/// The netns this process started in.
pub fn own() -> Result<NetnsId> {
    id_of(Path::new("/proc/self/ns/net"))
}

/// All netns that a name or a process leads to.
pub fn discover() -> Result<BTreeMap<NetnsId, Place>> {
    let mut places = BTreeMap::new();
    let own = PathBuf::from("/proc/self/ns/net");
    let own_id = id_of(&own)?;
    let first = PathBuf::from("/proc/1/ns/net");
    if let Ok(id) = id_of(&first) {
        places.insert(id, Place { id, path: first, name: Some(HOST.to_owned()), container: None });
    }
    // Where process 1 may not be looked at (a hardened /proc), the own netns is the best guess for the host's.
    let name = places.is_empty().then(|| HOST.to_owned());
    places.entry(own_id).or_insert(Place { id: own_id, path: own.clone(), name, container: None });
    // Named netns are bind mounts of the same file system as /proc/self/ns/net; other files there are leftovers.
    let device = std::fs::metadata(&own).context("looking up /proc/self/ns/net")?.dev();
    for entry in NAMED.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        let Ok(id) = u32::try_from(metadata.ino()).map(NetnsId) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = places.entry(id).or_insert(Place { id, path: entry.path(), name: None, container: None });
        if place.name.is_none() {
            place.name = Some(name);
            place.path = entry.path();
        }
    }
    let mut dwellers = Dwellers::default();
    for entry in std::fs::read_dir("/proc").context("listing /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = entry.path().join("ns/net");
        if let Ok(id) = id_of(&path) {
            let place = places.entry(id).or_insert(Place { id, path, name: None, container: None });
            if place.name.as_deref() != Some(HOST) {
                dwellers.met(id, pid);
            }
        }
    }
    dwellers.name(&mut places);
    Ok(places)
}

/// What the netns of process 1 is called.
const HOST: &str = "host";
/// Processes of one netns whose cgroups are read until one is a container's.
const ASKED: u8 = 3;

/// Which container lives in which netns, by the first processes met there.
#[derive(Debug, Default)]
struct Dwellers(BTreeMap<NetnsId, Dweller>);

#[derive(Debug, Default)]
struct Dweller {
    asked: u8,
    found: Option<(Kind, String)>,
}

impl Dwellers {
    fn met(&mut self, id: NetnsId, pid: u32) {
        let dweller = self.0.entry(id).or_default();
        let settled = matches!(dweller.found, Some((Kind::Container, _)));
        if settled || dweller.asked >= ASKED {
            return;
        }
        dweller.asked += 1;
        let path = cgroup::of_process(&Roots::default(), pid);
        dweller.consider(path.as_deref().unwrap_or_default());
    }

    fn name(self, places: &mut BTreeMap<NetnsId, Place>) {
        for (id, dweller) in self.0 {
            let Some((place, (_, name))) = places.get_mut(&id).zip(dweller.found) else { continue };
            place.name.get_or_insert_with(|| name.clone());
            place.container = Some(name);
        }
    }
}

impl Dweller {
    /// A container runtime's word is worth more than a unit's, and that more than a session's.
    fn consider(&mut self, cgroup: &str) {
        if let Some(container) = container::of_path(cgroup)
            && self.found.as_ref().is_none_or(|(kind, _)| container.kind < *kind)
        {
            self.found = Some((container.kind, container.netns_name()));
        }
    }
}

/// Runs something on a thread of its own, which may change its netns; the rest of the process never does.
fn on_a_visit<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let visit = thread::Builder::new()
            .name("netns-visit".to_owned())
            .stack_size(256 << 10)
            .spawn_scoped(scope, work)
            .context("starting a thread to visit a netns")?;
        visit.join().ok().context("a visit to a netns panicked")
    })
}

/// Runs something inside a netns.
pub fn inside<T: Send>(place: &Place, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_visit(|| {
        enter(place)?;
        work()
    })?
}

/// Reads the conntrack counters of many netns in one go.
pub fn read_all<'a>(places: impl Iterator<Item = &'a Place> + Send) -> Result<Vec<(NetnsId, Result<Stat>)>> {
    on_a_visit(|| {
        let mut text = String::new();
        places.map(|place| (place.id, enter(place).and_then(|()| read_here(&mut text)))).collect()
    })
}

/// Moves this thread into a netns, unless it is there already.
fn enter(place: &Place) -> Result<()> {
    let here = id_of(Path::new("/proc/thread-self/ns/net"))?;
    if here.inode() == place.id.inode() {
        return Ok(());
    }
    let file =
        File::open(&place.path).with_context(|| format!("opening the netns {}", place.path.display()))?;
    let found = file.metadata().context("looking up an open netns")?.ino();
    ensure!(found == u64::from(place.id.inode()), "{} leads to another netns by now", place.path.display());
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| {
        format!("entering the netns {} (this needs CAP_SYS_ADMIN: run as root)", place.path.display())
    })
}

/// The counters of the netns this thread is in. After setns, /proc/net still shows the leader's netns.
fn read_here(text: &mut String) -> Result<Stat> {
    use std::io::Read;
    const FILE: &str = "/proc/thread-self/net/stat/nf_conntrack";
    text.clear();
    File::open(FILE)
        .and_then(|mut file| file.read_to_string(text))
        .with_context(|| format!("reading {FILE} (is the nf_conntrack module loaded?)"))?;
    stat::parse(text).with_context(|| format!("parsing {FILE}"))
}

/// nf_conntrack_max: one number for all netns.
pub fn max() -> Result<u32> {
    const FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let text = std::fs::read_to_string(FILE).with_context(|| format!("reading {FILE}"))?;
    text.trim().parse().with_context(|| format!("parsing {FILE}: {text:?}"))
}

/// Finds the netns a user named: a name, an inode number, or a process.
pub fn find(places: &BTreeMap<NetnsId, Place>, name: &str) -> Result<NetnsId> {
    if let Some(place) = places.values().find(|place| place.name.as_deref() == Some(name)) {
        return Ok(place.id);
    }
    let known: Vec<_> = places.values().filter_map(|place| place.name.as_deref()).collect();
    bail!("there is no netns named {name:?}; known names: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_netns_is_always_discovered() {
        let places = discover().expect("/proc is readable");
        assert!(places.contains_key(&own().expect("/proc is readable")));
    }

    #[test]
    fn a_netns_is_called_after_the_container_rather_than_the_unit_that_lives_in_it() {
        let id = NetnsId(1);
        let mut dweller = Dweller::default();
        let docker = format!("/system.slice/docker-{}.scope", "ab".repeat(32));
        for path in [
            "",
            "/user.slice/user-0.slice/session-1.scope",
            "/system.slice/vpn.service",
            &docker,
            "/init.scope",
        ] {
            dweller.consider(path);
        }
        let place = |name: Option<&str>| Place {
            id,
            path: PathBuf::from("/x"),
            name: name.map(str::to_owned),
            container: None,
        };
        for (name, expected) in [(None, "docker:abababababab"), (Some("blue"), "blue")] {
            let mut places = BTreeMap::from([(id, place(name))]);
            let found = dweller.found.clone();
            Dwellers(BTreeMap::from([(id, Dweller { asked: 3, found })])).name(&mut places);
            assert_eq!(places[&id].name.as_deref(), Some(expected));
            assert_eq!(places[&id].container.as_deref(), Some("docker:abababababab"));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let id = NetnsId(1);
        let place = Place { id, path: PathBuf::from("/x"), name: Some("blue".to_owned()), container: None };
        let error = find(&BTreeMap::from([(id, place)]), "red").expect_err("red is unknown").to_string();
        assert!(error.contains("\"red\"") && error.contains("blue"), "{error}");
    }
}
