//! All namespaces that a name or a process leads to.
//! Files that lead nowhere, and processes that end meanwhile, are passed over.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::initial::InitialNetns;
use super::name::NetnsNamer;
use super::{Netns, id_of};
use crate::kernel::roots::Roots;
use crate::model::{HOST_NETNS, NetnsId, THIS_NETNS};

/// Folders where tools keep named netns (iproute2, docker).
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// All netns that a name or a process leads to.
pub fn discover() -> Result<BTreeMap<NetnsId, Netns>> {
    discover_around(InitialNetns::look(&Roots::default(), super::own()?).known())
}

/// The same, where it is known which netns is the initial one, from the kernel itself.
pub fn discover_around(initial: Option<NetnsId>) -> Result<BTreeMap<NetnsId, Netns>> {
    let mut namespaces = BTreeMap::new();
    let own = PathBuf::from("/proc/self/ns/net");
    let own_id = id_of(&own)?;
    let mut add = |id: NetnsId, path: PathBuf| {
        let name = (Some(id) == initial).then(|| HOST_NETNS.to_owned());
        namespaces.entry(id).or_insert(Netns { id, path, name, container: None });
    };
    let first = PathBuf::from("/proc/1/ns/net");
    if let Ok(id) = id_of(&first) {
        add(id, first);
    }
    add(own_id, own.clone());
    // Named netns are bind mounts of the same file system as /proc/self/ns/net; other files there are leftovers.
    let device = std::fs::metadata(&own).context("looking up /proc/self/ns/net")?.dev();
    for entry in NAMED.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        let Ok(id) = u32::try_from(metadata.ino()).map(NetnsId::from_inode) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let netns =
            namespaces.entry(id).or_insert(Netns { id, path: entry.path(), name: None, container: None });
        if netns.name.is_none() {
            netns.name = Some(name);
            netns.path = entry.path();
        }
    }
    let mut dwellers = NetnsNamer::default();
    for entry in std::fs::read_dir("/proc").context("listing /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = entry.path().join("ns/net");
        if let Ok(id) = id_of(&path) {
            let name = (Some(id) == initial).then(|| HOST_NETNS.to_owned());
            let netns = namespaces.entry(id).or_insert(Netns { id, path, name, container: None });
            if netns.name.as_deref() != Some(HOST_NETNS) {
                dwellers.add_process(id, pid);
            }
        }
    }
    dwellers.name(&mut namespaces);
    if let Some(own) = namespaces.get_mut(&own_id) {
        own.name.get_or_insert_with(|| THIS_NETNS.to_owned());
    }
    Ok(namespaces)
}
