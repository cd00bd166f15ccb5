//! All namespaces that a name or a process leads to.
//! Files that lead nowhere, and processes that end meanwhile, are passed over.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::name::{HOST, NetnsNamer};
use super::{Netns, id_of};
use crate::model::NetnsId;

/// Folders where tools keep named netns (iproute2, docker).
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// All netns that a name or a process leads to.
pub fn discover() -> Result<BTreeMap<NetnsId, Netns>> {
    let mut places = BTreeMap::new();
    let own = PathBuf::from("/proc/self/ns/net");
    let own_id = id_of(&own)?;
    let first = PathBuf::from("/proc/1/ns/net");
    if let Ok(id) = id_of(&first) {
        places.insert(id, Netns { id, path: first, name: Some(HOST.to_owned()), container: None });
    }
    // Where process 1 may not be looked at (a hardened /proc), the own netns is the best guess for the host's.
    let name = places.is_empty().then(|| HOST.to_owned());
    places.entry(own_id).or_insert(Netns { id: own_id, path: own.clone(), name, container: None });
    // Named netns are bind mounts of the same file system as /proc/self/ns/net; other files there are leftovers.
    let device = std::fs::metadata(&own).context("looking up /proc/self/ns/net")?.dev();
    for entry in NAMED.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        let Ok(id) = u32::try_from(metadata.ino()).map(NetnsId::from_inode) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = places.entry(id).or_insert(Netns { id, path: entry.path(), name: None, container: None });
        if place.name.is_none() {
            place.name = Some(name);
            place.path = entry.path();
        }
    }
    let mut dwellers = NetnsNamer::default();
    for entry in std::fs::read_dir("/proc").context("listing /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = entry.path().join("ns/net");
        if let Ok(id) = id_of(&path) {
            let place = places.entry(id).or_insert(Netns { id, path, name: None, container: None });
            if place.name.as_deref() != Some(HOST) {
                dwellers.add_process(id, pid);
            }
        }
    }
    dwellers.name(&mut places);
    Ok(places)
}
