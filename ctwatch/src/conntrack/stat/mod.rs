//! The kernel's own per-CPU counters, the judge of every number ctwatch shows, and the limit they go with.
//! From /proc where the kernel has the file, else over ctnetlink: the same numbers (struct ip_conntrack_stat), 5.10 to 7.3.

mod ctnetlink;
mod procfs;

use anyhow::{Context, Result, bail};
use ctwatch_common::classify::Counters;

use super::module;
use crate::kernel::roots::Roots;
use crate::model::{CounterSource, NetnsId};
use crate::netns::{self, Netns};

/// The counters of one netns. They are u32 and wrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Entries in the table.
    pub entries: u32,
    /// One element per possible CPU.
    pub cpus: Vec<Counters>,
    /// Who said so.
    pub from: CounterSource,
}

/// Reads the conntrack counters of many netns in one go.
pub fn read_all<'a>(
    namespaces: impl Iterator<Item = &'a Netns> + Send,
) -> Result<Vec<(NetnsId, Result<Stat>)>> {
    netns::on_netns_thread(|| {
        namespaces.map(|netns| (netns.id, netns::enter(netns).and_then(|()| read_here()))).collect()
    })
}

/// The counters of the netns this thread is in.
pub fn read_here() -> Result<Stat> {
    if let Some(stat) = procfs::read_here()? {
        return Ok(stat);
    }
    // To ask ctnetlink would load nf_conntrack.
    if module::loaded(&Roots::default()).is_none() {
        bail!("nf_conntrack is not loaded, so there are no counters");
    }
    ctnetlink::read_here()
        .context("asking ctnetlink for its statistics (there is no /proc/net/stat/nf_conntrack)")
}

/// nf_conntrack_max: one number for all netns.
pub fn max() -> Result<u32> {
    const FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let text = std::fs::read_to_string(FILE).with_context(|| format!("reading {FILE}"))?;
    text.trim().parse().with_context(|| format!("parsing {FILE}: {text:?}"))
}
