//! Evictions wait until the flow that pushed the entry out is known: it is confirmed a moment later, or never.
//! Nothing waits for longer than one round, and nothing is dropped here.

use ctwatch_common::Cause;

use crate::model::{Flow, Loss};

/// Evictions of this round and of the one before.
#[derive(Debug, Default)]
pub(super) struct EvictionMatcher {
    fresh: Vec<Loss>,
    waiting: Vec<Loss>,
}

impl EvictionMatcher {
    /// Keeps an eviction; gives back everything else.
    pub fn hold(&mut self, loss: Loss) -> Option<Loss> {
        if loss.cause == Cause::Evicted {
            self.fresh.push(loss);
            return None;
        }
        Some(loss)
    }

    /// A flow that pushed out all victims with its time: one early_drop can remove several.
    pub fn resolve(&mut self, at_ns: u64, pusher: Option<Flow>) {
        let victims = self.waiting.iter_mut().chain(&mut self.fresh);
        for victim in victims.filter(|loss| loss.packet.at_ns == at_ns) {
            victim.pushed_out_by = pusher;
        }
    }

    /// Ends a round: hands over those that have waited for one.
    pub fn release(&mut self, each: &mut impl FnMut(&Loss)) {
        for loss in self.waiting.drain(..) {
            each(&loss);
        }
        std::mem::swap(&mut self.waiting, &mut self.fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    use crate::model::{Packet, Protocol, Tuple};
    use jiff::Timestamp;

    fn loss(cause: Cause, at_ns: u64) -> Loss {
        Loss::new(Timestamp::UNIX_EPOCH, cause, Packet { at_ns, ..Packet::default() })
    }

    #[test]
    fn an_eviction_learns_who_pushed_it_out_even_a_round_later() {
        let mut matcher = EvictionMatcher::default();
        assert!(matcher.hold(loss(Cause::TableFull, 1)).is_some());
        assert!(matcher.hold(loss(Cause::Evicted, 2)).is_none());
        assert!(matcher.hold(loss(Cause::Evicted, 3)).is_none());
        let mut seen = Vec::new();
        matcher.release(&mut |loss| seen.push((loss.packet.at_ns, loss.pushed_out_by.is_some())));
        assert_eq!(seen, []);
        let [src, dst] = [IpAddr::from([127, 0, 0, 1]); 2];
        let tuple = Tuple { src, dst, sport: 7, dport: 53 };
        matcher.resolve(2, Some(Flow { proto: Protocol::UDP, tuple }));
        matcher.release(&mut |loss| seen.push((loss.packet.at_ns, loss.pushed_out_by.is_some())));
        assert_eq!(seen, [(2, true), (3, false)]);
    }
}
