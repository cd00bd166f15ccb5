//! Entries that a listing leaves out though they count: dying ones, and unconfirmed ones. ctnetlink has lists of them, too.
//! An empty answer of a kernel that keeps no such list is no answer.

use anyhow::Result;

use super::tally::Tally;
use super::{CT_SUBSYSTEM, dump_here};
use crate::kernel::netlink::Next;
use crate::kernel::release::release_number;
use crate::kernel::roots::Roots;
use crate::model::{CensusKey, EntryFields, HiddenEntries};

/// IPCTNL_MSG_CT_GET_DYING
const GET_DYING: u16 = CT_SUBSYSTEM | 6;
/// IPCTNL_MSG_CT_GET_UNCONFIRMED
const GET_UNCONFIRMED: u16 = CT_SUBSYSTEM | 7;
/// The last kernels with a list of all dying and one of all unconfirmed entries on each CPU (struct ct_pcpu,
/// include/net/netns/conntrack.h) are those before this one. Since then ctnetlink_dump_unconfirmed is empty, and
/// ctnetlink_dump_dying lists those alone whose end an event listener has yet to hear of
/// (net/netfilter/nf_conntrack_netlink.c).
const WITHOUT_LISTS: (u32, u32) = (5, 19);

/// The entries that no listing of this thread's netns shows, as far as the kernel tells.
#[must_use]
pub fn hidden_here(roots: &Roots) -> HiddenEntries {
    let release = std::fs::read_to_string(roots.proc("sys/kernel/osrelease")).unwrap_or_default();
    let has_lists = has_lists(&release);
    let dying = list(GET_DYING).ok();
    let unconfirmed = if has_lists { list(GET_UNCONFIRMED).ok() } else { None };
    HiddenEntries {
        complete: has_lists && dying.is_some() && unconfirmed.is_some(),
        // Where it is not a list of all of them, none in it says nothing.
        dying: dying.filter(|dying| has_lists || !dying.is_empty()),
        unconfirmed,
    }
}

/// Whether this kernel lists all of them; one whose version can't be read is not taken at its word.
fn has_lists(release: &str) -> bool {
    release_number(release.trim()).is_some_and(|number| number < WITHOUT_LISTS)
}

fn list(kind: u16) -> Result<Vec<CensusKey>> {
    let mut tally = Tally::new();
    dump_here(kind, EntryFields::default(), |entry| tally.add(entry), || Next::Go)?;
    Ok(tally.finish().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_list_them_are_told_from_those_that_answer_with_nothing() {
        for (release, lists) in [
            ("5.10.0-32-cloud-amd64", true),
            ("5.18.19\n", true),
            ("5.19.0", false),
            ("6.12.117-cloud", false),
            ("", false),
        ] {
            assert_eq!(has_lists(release), lists, "{release}");
        }
    }
}
