//! The kernel's own per-CPU counters, the judge of every number ctwatch shows, and the limit of the table.
//! The limit is read in each netns: today it is one number for all, and the smaller of two where a netns has its own.
//! From /proc where the kernel has the file, else over ctnetlink: the same numbers (struct ip_conntrack_stat), 5.10 to 7.3.

pub(crate) mod ctnetlink;
pub(crate) mod procfs;

use anyhow::{Context, Result, bail};
use ctwatch_common::classify::Counters;

use super::census::max_here;
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
    /// The limit of the table; 0 is none, `None` unknown.
    pub max: Option<u32>,
}

/// Reads the counters and limits of many netns in one go. `initial` is the one whose limit holds everywhere, if it is known.
pub fn read_all<'a>(
    namespaces: impl Iterator<Item = &'a Netns> + Clone + Send,
    initial: Option<NetnsId>,
) -> Result<Vec<(NetnsId, Result<Stat>)>> {
    netns::on_netns_thread(|| {
        let everywhere = limit_everywhere(namespaces.clone(), initial);
        let read = |netns: &Netns| -> Result<Stat> {
            netns::enter(netns)?;
            let stat = read_here()?;
            Ok(Stat { max: stricter(everywhere, stat.max), ..stat })
        };
        namespaces.map(|netns| (netns.id, read(netns))).collect()
    })
}

/// The limit that holds everywhere: the initial netns's. Another one's own is its own alone where limits are kept per netns. On a
/// thread that may be moved.
pub fn limit_everywhere<'a>(
    mut namespaces: impl Iterator<Item = &'a Netns>,
    initial: Option<NetnsId>,
) -> Option<u32> {
    let initial = initial?;
    if netns::own().is_ok_and(|own| own == initial) {
        return max_here();
    }
    netns::enter(namespaces.find(|netns| netns.id == initial)?).ok()?;
    max_here()
}

/// Which of two limits refuses packets first; 0 is no limit.
#[must_use]
pub fn stricter(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    match (a, b) {
        (Some(0), limit) | (limit, Some(0)) => limit,
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The counters and the limit of the netns this thread is in.
pub fn read_here() -> Result<Stat> {
    Ok(Stat { max: max_here(), ..counters_here()? })
}

fn counters_here() -> Result<Stat> {
    if let Some(stat) = procfs::read_here()? {
        return Ok(stat);
    }
    // To ask ctnetlink would load nf_conntrack.
    if !module::is_there(&Roots::default()) {
        bail!("nf_conntrack is not loaded, so there are no counters");
    }
    ctnetlink::read_here()
        .context("asking ctnetlink for its statistics (there is no /proc/net/stat/nf_conntrack)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_holds_and_none_is_no_limit() {
        assert_eq!(stricter(Some(4000), Some(5000)), Some(4000));
        assert_eq!(stricter(Some(4000), Some(0)), Some(4000));
        assert_eq!(stricter(Some(0), Some(9)), Some(9));
        assert_eq!(stricter(Some(0), Some(0)), Some(0));
        assert_eq!(stricter(Some(4000), None), Some(4000));
        assert_eq!(stricter(None, None), None);
    }
}
