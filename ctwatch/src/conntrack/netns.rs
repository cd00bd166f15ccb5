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

/// Folders where tools keep named netns (iproute2, docker).
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// A netns and a way into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its inode number.
    pub id: NetnsId,
    /// A file that leads into it.
    pub path: PathBuf,
    /// "host", or the name its maker gave it.
    pub name: Option<String>,
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
        places.insert(id, Place { id, path: first, name: Some("host".to_owned()) });
    }
    // Where process 1 may not be looked at (a hardened /proc), the own netns is the best guess for the host's.
    let name = places.is_empty().then(|| "host".to_owned());
    places.entry(own_id).or_insert(Place { id: own_id, path: own.clone(), name });
    // Named netns are bind mounts of the same file system as /proc/self/ns/net; other files there are leftovers.
    let device = std::fs::metadata(&own).context("looking up /proc/self/ns/net")?.dev();
    for entry in NAMED.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        let Ok(id) = u32::try_from(metadata.ino()).map(NetnsId) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = places.entry(id).or_insert(Place { id, path: entry.path(), name: None });
        if place.name.is_none() {
            place.name = Some(name);
            place.path = entry.path();
        }
    }
    for entry in std::fs::read_dir("/proc").context("listing /proc")?.flatten() {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let path = entry.path().join("ns/net");
        if let Ok(id) = id_of(&path) {
            places.entry(id).or_insert(Place { id, path, name: None });
        }
    }
    Ok(places)
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
    fn an_unknown_name_lists_the_known_ones() {
        let id = NetnsId(1);
        let place = Place { id, path: PathBuf::from("/x"), name: Some("blue".to_owned()) };
        let error = find(&BTreeMap::from([(id, place)]), "red").expect_err("red is unknown").to_string();
        assert!(error.contains("\"red\"") && error.contains("blue"), "{error}");
    }
}
