//! Where there were losses of which a filter or a row needs something unknown: rows of that netns and cause may lack some.
//! Of bounded size: with many namespaces it is said of all of them, which is never too little.

use std::collections::HashMap;

use ctwatch_common::Cause;
use ctwatch_common::cause::CAUSES;

use crate::model::NetnsId;

/// Namespaces kept apart.
const LIMIT: usize = 1 << 13;

/// A bit for each cause.
type Causes = u32;
const _: () = assert!(CAUSES <= Causes::BITS as usize);

#[derive(Debug, Default)]
pub(super) struct Unattributed {
    namespaces: HashMap<NetnsId, Causes>,
    /// Of some netns that found no room.
    elsewhere: Causes,
}

impl Unattributed {
    pub fn add(&mut self, netns: NetnsId, cause: Cause) {
        if let Some(causes) = self.namespaces.get_mut(&netns) {
            *causes |= bit(cause);
        } else if self.namespaces.len() < LIMIT {
            self.namespaces.insert(netns, bit(cause));
        } else {
            self.elsewhere |= bit(cause);
        }
    }

    /// Whether there may be any in this netns.
    pub fn may_be_in(&self, netns: NetnsId, cause: Cause) -> bool {
        (self.elsewhere | self.namespaces.get(&netns).copied().unwrap_or(0)) & bit(cause) != 0
    }

    /// Whether there are any.
    pub fn is_any(&self, cause: Cause) -> bool {
        (self.elsewhere | self.namespaces.values().fold(0, |all, causes| all | causes)) & bit(cause) != 0
    }
}

const fn bit(cause: Cause) -> Causes {
    1 << (cause as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_any_netns_may_lack_losses_of_that_cause_and_of_no_other() {
        let mut unattributed = Unattributed::default();
        let netns = |number: usize| NetnsId::from_packed(u32::try_from(number).expect("few"));
        for number in 0..LIMIT {
            unattributed.add(netns(number), Cause::TableFull);
        }
        assert!(unattributed.may_be_in(netns(7), Cause::TableFull) && unattributed.is_any(Cause::TableFull));
        assert!(!unattributed.may_be_in(netns(LIMIT), Cause::TableFull), "nothing was lost there");
        // As many again.
        for number in LIMIT..2 * LIMIT {
            unattributed.add(netns(number), Cause::Clash);
        }
        assert_eq!(unattributed.namespaces.len(), LIMIT);
        assert!(
            unattributed.may_be_in(netns(LIMIT), Cause::Clash)
                && unattributed.may_be_in(netns(7), Cause::Clash)
        );
        assert!(!unattributed.may_be_in(netns(LIMIT), Cause::TableFull));
        assert!(unattributed.is_any(Cause::Clash) && !unattributed.is_any(Cause::Evicted));
    }
}
