//! Evictions wait until the flow that pushed the entry out is known: it is confirmed a moment later, or never.
//! Nothing waits for longer than one round, and nothing is dropped here.

use ctwatch_common::Cause;
use ctwatch_common::event::LossEvent;

use crate::model::Loss;

/// Evictions of this round and of the one before.
#[derive(Debug, Default)]
pub(super) struct Pairing {
    fresh: Vec<Loss>,
    waiting: Vec<Loss>,
}

impl Pairing {
    /// Keeps an eviction; gives back everything else.
    pub fn hold(&mut self, loss: Loss) -> Option<Loss> {
        if loss.event.kind == Cause::Evicted as u8 {
            self.fresh.push(loss);
            return None;
        }
        Some(loss)
    }

    /// A flow that pushed out all victims with its time: one early_drop can remove several.
    pub fn push(&mut self, pusher: &LossEvent) {
        let victims = self.waiting.iter_mut().chain(&mut self.fresh);
        for victim in victims.filter(|loss| loss.event.at == pusher.at) {
            victim.pushed_out_by = Some(*pusher);
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
    use jiff::Timestamp;

    fn loss(cause: Cause, at: u64) -> Loss {
        // SAFETY: plain integers, for which zero is a value.
        let event = LossEvent { at, kind: cause as u8, ..unsafe { std::mem::zeroed() } };
        Loss::new(Timestamp::UNIX_EPOCH, event)
    }

    #[test]
    fn an_eviction_learns_who_pushed_it_out_even_a_round_later() {
        let mut pairing = Pairing::default();
        assert!(pairing.hold(loss(Cause::TableFull, 1)).is_some());
        assert!(pairing.hold(loss(Cause::Evicted, 2)).is_none());
        assert!(pairing.hold(loss(Cause::Evicted, 3)).is_none());
        let mut seen = Vec::new();
        pairing.release(&mut |loss| seen.push((loss.event.at, loss.pushed_out_by.is_some())));
        assert_eq!(seen, []);
        pairing.push(&LossEvent { sport: 7, ..loss(Cause::TableFull, 2).event });
        pairing.release(&mut |loss| seen.push((loss.event.at, loss.pushed_out_by.is_some())));
        assert_eq!(seen, [(2, true), (3, false)]);
    }
}
