//! Evictions wait until the flow that pushed the entry out is known: it is confirmed a moment later, or never.
//! Nothing waits for longer than a moment, so that no later flow is named, and no more than there is room for; nothing is
//! dropped here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ctwatch_common::Cause;

use crate::model::{Flow, Loss};

/// How long an eviction waits at least: its flow is confirmed when its first packet has passed the firewall.
const WAIT: Duration = Duration::from_millis(50);
/// Who is read of later than this after it isn't named. Events are taken every tenth of a second, so that half of a pair may
/// come with the next ones.
const NAMED_WITHIN: Duration = Duration::from_millis(250);
/// How many wait.
const ROOM: usize = 1 << 14;

/// The evictions that wait, oldest first, and when each was read of.
#[derive(Debug, Default)]
pub(super) struct EvictionMatcher(VecDeque<(Loss, Instant)>);

impl EvictionMatcher {
    /// Keeps an eviction; gives back everything else, and the eviction that has waited longest if there is no room.
    pub fn hold(&mut self, loss: Loss, now: Instant) -> Option<Loss> {
        if loss.cause != Cause::Evicted {
            return Some(loss);
        }
        self.0.push_back((loss, now));
        if self.0.len() > ROOM { self.0.pop_front().map(|(oldest, _)| oldest) } else { None }
    }

    /// A flow that pushed out all victims with its time: one early_drop can remove several. They are among the last.
    pub fn resolve(&mut self, at_ns: u64, pusher: Option<Flow>, now: Instant) {
        let victims = self.0.iter_mut().rev().take_while(|(_, since)| now < *since + NAMED_WITHIN);
        for (victim, _) in victims.filter(|(loss, _)| loss.packet.at_ns == at_ns) {
            victim.pushed_out_by = pusher;
        }
    }

    /// Hands over those that had waited long enough when events began to be taken the last time, so that what came then could
    /// name their flows.
    pub fn release(&mut self, began: Instant, each: &mut impl FnMut(&Loss)) {
        while let Some((loss, _)) = self.0.pop_front_if(|(_, since)| *since + WAIT <= began) {
            each(&loss);
        }
    }

    /// Hands over all.
    pub fn flush(&mut self, each: &mut impl FnMut(&Loss)) {
        for (loss, _) in self.0.drain(..) {
            each(&loss);
        }
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

    fn pusher() -> Option<Flow> {
        let [src, dst] = [IpAddr::from([127, 0, 0, 1]); 2];
        Some(Flow { proto: Protocol::UDP, tuple: Tuple { src, dst, sport: 7, dport: 53 } })
    }

    #[test]
    fn an_eviction_learns_who_pushed_it_out_however_often_events_are_taken_meanwhile() {
        let start = Instant::now();
        let mut matcher = EvictionMatcher::default();
        assert!(matcher.hold(loss(Cause::TableFull, 1), start).is_some());
        assert!(matcher.hold(loss(Cause::Evicted, 2), start).is_none());
        assert!(matcher.hold(loss(Cause::Evicted, 3), start).is_none());
        let mut seen = Vec::new();
        let mut see = |loss: &Loss| seen.push((loss.packet.at_ns, loss.pushed_out_by.is_some()));
        for _ in 0..3 {
            matcher.release(start + WAIT / 2, &mut see);
        }
        // With the next events, a tenth of a second later.
        matcher.resolve(2, pusher(), start + WAIT * 2);
        matcher.release(start + WAIT * 2, &mut see);
        assert_eq!(seen, [(2, true), (3, false)]);
    }

    #[test]
    fn a_flow_that_comes_later_pushed_nobody_out() {
        let start = Instant::now();
        let mut matcher = EvictionMatcher::default();
        assert!(matcher.hold(loss(Cause::Evicted, 2), start).is_none());
        matcher.resolve(2, pusher(), start + NAMED_WITHIN);
        let mut seen = Vec::new();
        matcher.flush(&mut |loss| seen.push((loss.packet.at_ns, loss.pushed_out_by.is_some())));
        assert_eq!(seen, [(2, false)]);
    }

    #[test]
    fn in_a_storm_the_oldest_goes_on_as_it_is() {
        let start = Instant::now();
        let mut matcher = EvictionMatcher::default();
        for at in 0..ROOM as u64 {
            assert!(matcher.hold(loss(Cause::Evicted, at), start).is_none());
        }
        let oldest = matcher.hold(loss(Cause::Evicted, 1 << 20), start);
        assert_eq!((oldest.map(|loss| loss.packet.at_ns), matcher.0.len()), (Some(0), ROOM));
    }
}
