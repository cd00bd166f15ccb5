//! Losses whose listener is being looked for wait here, so that the first ones of a flow bear its name too.
//! Nothing waits for longer than a moment, and no more than a few: what finds no room goes on as it is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::Loss;

/// How long a loss waits.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How many wait.
const ROOM: usize = 1024;

/// The losses that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct PendingOwners(VecDeque<(Loss, Instant)>);

impl PendingOwners {
    /// Keeps a loss; gives it back if there is no room.
    pub fn hold(&mut self, loss: Loss, now: Instant) -> Option<Loss> {
        if self.0.len() >= ROOM {
            return Some(loss);
        }
        self.0.push_back((loss, now + MAX_WAIT));
        None
    }

    /// Hands over those that `is_answered` (which fills in the answer) and those that have waited long enough.
    pub fn release(
        &mut self,
        now: Instant,
        mut is_answered: impl FnMut(&mut Loss) -> bool,
        each: &mut impl FnMut(&Loss),
    ) {
        for _ in 0..self.0.len() {
            let Some((mut loss, until)) = self.0.pop_front() else { return };
            if is_answered(&mut loss) || now >= until {
                each(&loss);
            } else {
                self.0.push_back((loss, until));
            }
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Packet;
    use ctwatch_common::Cause;
    use jiff::Timestamp;

    fn loss(at_ns: u64) -> Loss {
        Loss::new(Timestamp::UNIX_EPOCH, Cause::TableFull, Packet { at_ns, ..Packet::default() })
    }

    #[test]
    fn a_loss_goes_on_when_it_is_answered_or_has_waited_long_enough() {
        let start = Instant::now();
        let mut pending = PendingOwners::default();
        for at in 0..ROOM as u64 {
            assert!(pending.hold(loss(at), start).is_none());
        }
        assert_eq!(pending.hold(loss(9), start).map(|loss| loss.packet.at_ns), Some(9), "there is no room");
        let mut seen = Vec::new();
        pending.release(start, |loss| loss.packet.at_ns == 7, &mut |loss| seen.push(loss.packet.at_ns));
        assert_eq!(seen, [7]);
        pending.release(start + MAX_WAIT, |_| false, &mut |loss| seen.push(loss.packet.at_ns));
        assert_eq!(seen.len(), ROOM);
        assert!(pending.is_empty());
    }
}
