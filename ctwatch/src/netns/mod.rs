//! Network namespaces: which there are, what they are called, and how to run something run_inside one.
//! Only short-lived visiting threads change their netns; no fd into a netns outlives a visit, so none is kept alive.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::foreign::{Foreign, Shown as _};
use crate::kernel::roots::Roots;
use crate::model::NetnsId;
use crate::text::did_you_mean;

mod discover;
mod enter;
mod initial;
mod name;

pub use discover::{NetnsFinder, discover};
pub use enter::{Entered, enter, on_netns_thread, run_inside, try_to_enter};
pub use initial::{InitialNetns, WhyUnknown, sees_all_processes};

/// A netns and a way into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// Its inode number.
    pub id: NetnsId,
    /// A file that leads into it.
    pub path: PathBuf,
    /// [`crate::model::HOST_NETNS`], the name its maker gave it, that of the container that lives in it, or [`crate::model::THIS_NETNS`].
    pub name: Option<Foreign>,
    /// The container or pod that lives in it; else the systemd unit.
    pub container: Option<Foreign>,
}

/// The netns a file leads into.
pub fn id_of(path: &Path) -> Result<NetnsId> {
    let inode = std::fs::metadata(path).with_context(|| format!("looking up {}", path.shown()))?.ino();
    Ok(NetnsId::from_inode(u32::try_from(inode).context("a netns inode number does not fit 32 bits")?))
}

/// The netns this process started in.
pub fn own() -> Result<NetnsId> {
    id_of(Path::new("/proc/self/ns/net"))
}

/// Whether a netns is still where it was found.
#[must_use]
pub fn leads_there(netns: &Netns) -> bool {
    id_of(&netns.path).is_ok_and(|found| found.inode() == netns.id.inode())
}

/// The initial netns: what `host` means, live, in recordings and in advice.
pub fn host() -> Result<NetnsId> {
    match InitialNetns::look(&Roots::default(), own()?) {
        InitialNetns::Known(id) => Ok(id),
        InitialNetns::Unknown(why) => bail!("--netns host: {}; {}", why.text(), why.remedy()),
    }
}

/// Finds the netns a user named: a name, an inode number, or a process.
pub fn find(namespaces: &BTreeMap<NetnsId, Netns>, name: &str) -> Result<NetnsId> {
    let named = || namespaces.values().filter_map(|netns| Some((netns, netns.name.as_ref()?)));
    let exactly = named().find(|(_, own)| **own == name);
    if let Some((netns, _)) = exactly.or_else(|| named().find(|(_, own)| own.is_called(name))) {
        return Ok(netns.id);
    }
    let known: Vec<String> = named().map(|(_, name)| name.to_string()).collect();
    let near = did_you_mean(name, known.iter().map(String::as_str));
    bail!("there is no netns named {:?}{near}; known names: {}", Foreign::from(name), known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_netns_is_always_discovered() {
        let namespaces = discover().expect("/proc is readable");
        assert!(namespaces.contains_key(&own().expect("/proc is readable")));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let id = NetnsId::from_inode(1);
        let netns = Netns { id, path: PathBuf::from("/x"), name: Some("blue".into()), container: None };
        let error = find(&BTreeMap::from([(id, netns)]), "red").expect_err("red is unknown").to_string();
        assert!(error.contains("\"red\"; known names: blue"), "{error}");
        let namespaces = BTreeMap::from([(
            id,
            Netns { id, path: PathBuf::new(), name: Some("blue".into()), container: None },
        )]);
        let error = find(&namespaces, "bleu").expect_err("bleu is unknown").to_string();
        assert!(error.contains("did you mean `blue`?"), "{error}");
    }
}
