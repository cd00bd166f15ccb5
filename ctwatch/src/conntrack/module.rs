//! Whether nf_conntrack is there.
//! Its identity changes with each load, so that a reload between two looks shows.

use std::os::unix::fs::MetadataExt;

use crate::kernel::roots::Roots;

/// Whether conntrack runs in this kernel; its identity, so that an unload and reload between two looks shows.
#[must_use]
pub fn loaded(roots: &Roots) -> Option<u64> {
    let loaded = roots.proc("sys/net/netfilter/nf_conntrack_max").exists();
    let identity = std::fs::metadata(roots.sys("module/nf_conntrack")).map(|metadata| metadata.ino());
    loaded.then(|| identity.unwrap_or(0))
}

/// Whether it is there at all, its sysctls hidden or not.
#[must_use]
pub fn is_there(roots: &Roots) -> bool {
    loaded(roots).is_some() || is_hidden(roots)
}

/// Whether it is there, and only its sysctls aren't: before 5.15 they are hidden from a netns whose owner is not the initial
/// user namespace (nf_conntrack_standalone_init_sysctl, net/netfilter/nf_conntrack_standalone.c).
#[must_use]
pub fn is_hidden(roots: &Roots) -> bool {
    loaded(roots).is_none() && is_live(roots)
}

/// Whether the module is there, neither coming nor going; built in, it has no state.
fn is_live(roots: &Roots) -> bool {
    let folder = roots.sys("module/nf_conntrack");
    match std::fs::read_to_string(folder.join("initstate")) {
        Ok(state) => state.trim() == "live",
        Err(_) => folder.exists(),
    }
}
