//! Losses whose listener is being looked for wait here, so that the first ones of a flow bear its name too.
//! Nothing waits for longer than a moment, and no more than a few: what finds no room goes on as it is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::Loss;

/// How long a loss waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many wait.
const ROOM: usize = 1024;

/// The losses that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unanswered(VecDeque<(Loss, Instant)>);

impl Unanswered {
    /// Keeps a loss; gives it back if there is no room.
    pub fn hold(&mut self, loss: Loss, now: Instant) -> Option<Loss> {
        if self.0.len() >= ROOM {
            return Some(loss);
        }
        self.0.push_back((loss, now + PATIENCE));
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
    use ctwatch_common::event::LossEvent;
    use jiff::Timestamp;

    fn loss(at: u64) -> Loss {
        // SAFETY: plain integers, for which zero is a value.
        Loss::new(Timestamp::UNIX_EPOCH, LossEvent { at, ..unsafe { std::mem::zeroed() } })
    }

    #[test]
    fn a_loss_goes_on_when_it_is_answered_or_has_waited_long_enough() {
        let start = Instant::now();
        let mut unanswered = Unanswered::default();
        for at in 0..ROOM as u64 {
            assert!(unanswered.hold(loss(at), start).is_none());
        }
        assert_eq!(unanswered.hold(loss(9), start).map(|loss| loss.event.at), Some(9), "there is no room");
        let mut seen = Vec::new();
        unanswered.release(start, |loss| loss.event.at == 7, &mut |loss| seen.push(loss.event.at));
        assert_eq!(seen, [7]);
        unanswered.release(start + PATIENCE, |_| false, &mut |loss| seen.push(loss.event.at));
        assert_eq!(seen.len(), ROOM);
        assert!(unanswered.is_empty());
    }
}
