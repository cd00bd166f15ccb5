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
