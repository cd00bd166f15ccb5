//! Sums that don't grow with what comes and goes: namespaces that are gone share one row, and of ports that were used once
//! only the busiest keep theirs. Totals by cause and by kernel counter stay exact. Pure.

use std::cmp::Reverse;

use ctwatch_common::slot::{SlotKey, SlotKind};

use crate::model::NetnsId;
use crate::record::tick::{NetnsTick, Presence, Tick};
use crate::record::writer::dictionary::GONE;

/// Slots of losses, and as many of flows, that a sum keeps.
pub(super) const SLOTS: usize = 4096;

/// Folds a sum. Returns the namespaces that no longer have a row of their own.
pub(super) fn fold(tick: &mut Tick) -> Vec<NetnsId> {
    let is_gone = |netns: &NetnsTick| netns.presence == Presence::Absent && netns.id != GONE;
    let gone: Vec<NetnsTick> = tick.netns.extract_if(.., |netns| is_gone(netns)).collect();
    if !gone.is_empty() {
        let mut sum = match tick.netns.iter().position(|netns| netns.id == GONE) {
            Some(index) => tick.netns.remove(index),
            None => {
                NetnsTick { id: GONE, presence: Presence::Absent, complete: true, ..NetnsTick::default() }
            }
        };
        for netns in &gone {
            sum.complete &= netns.complete;
            for (sum, more) in sum.kernel.iter_mut().zip(netns.kernel) {
                *sum += more;
            }
        }
        tick.netns.push(sum);
        tick.netns.sort_by_key(|netns| netns.id);
    }
    let gone: Vec<NetnsId> = gone.into_iter().map(|netns| netns.id).collect();
    let of = |key: SlotKey| {
        let is_gone = gone.binary_search(&NetnsId::from_packed(key.netns)).is_ok();
        if is_gone { SlotKey { netns: GONE.packed(), ..key } } else { key }
    };
    merge(&mut tick.losses, of, |sum, more| *sum += more);
    merge(&mut tick.flows, of, |sum, more| {
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum += more;
        }
    });
    for (key, losses) in beyond(&mut tick.losses, |losses| losses.unsigned_abs()) {
        match key.decode() {
            Some(SlotKind::Loss { cause, .. }) => tick.overflow[cause as usize] += losses,
            // No program counts such a kind: it stays.
            Some(SlotKind::Flows) | None => tick.losses.push((key, losses)),
        }
    }
    for (_, counts) in beyond(&mut tick.flows, |counts| counts.iter().map(|count| count.unsigned_abs()).sum())
    {
        tick.flows_overflow += counts.iter().sum::<i64>();
    }
    tick.losses.sort_by_key(|(key, _)| *key);
    tick.flows.sort_by_key(|(key, _)| *key);
    gone
}

/// Gives slots other keys, and adds up those that have the same one then.
fn merge<T: Copy>(slots: &mut Vec<(SlotKey, T)>, of: impl Fn(SlotKey) -> SlotKey, add: impl Fn(&mut T, &T)) {
    for (key, _) in slots.iter_mut() {
        *key = of(*key);
    }
    slots.sort_by_key(|(key, _)| *key);
    slots.dedup_by(|(key, more), (kept, sum)| {
        let is_same = key == kept;
        if is_same {
            add(sum, more);
        }
        is_same
    });
}

/// Takes out the smallest of those there are too many of.
fn beyond<T>(slots: &mut Vec<(SlotKey, T)>, weight: impl Fn(&T) -> u64) -> Vec<(SlotKey, T)> {
    if slots.len() <= SLOTS {
        return Vec::new();
    }
    slots.sort_by_key(|(key, amount)| (Reverse(weight(amount)), *key));
    slots.split_off(SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK};
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn key(netns: u32, port: u16, kind: u8) -> SlotKey {
        SlotKey { netns, ..crate::testing::slot(port, kind) }
    }

    fn totals(tick: &Tick) -> (i64, i64, [i64; 4]) {
        let losses: i64 = tick.losses.iter().map(|(_, losses)| losses).sum();
        let flows: i64 = tick.flows.iter().map(|(_, counts)| counts.iter().sum::<i64>()).sum();
        let mut kernel = [0; 4];
        for netns in &tick.netns {
            for (sum, more) in kernel.iter_mut().zip(netns.kernel) {
                *sum += more;
            }
        }
        (losses + tick.overflow.iter().sum::<i64>(), flows + tick.flows_overflow, kernel)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn totals_stay_and_what_is_there_keeps_its_rows(
            presence in proptest::collection::vec(0i64..4, 1..40),
            ports in 1usize..6000,
            again in any::<bool>(),
        ) {
            let mut tick = Tick::quiet(Timestamp::UNIX_EPOCH, 1, 1);
            tick.netns = (1u32..).zip(&presence).map(|(number, presence)| NetnsTick {
                id: NetnsId::from_packed(number),
                presence: Presence::from_number(*presence).unwrap(),
                kernel: [i64::from(number), 1, 0, 2],
                ..NetnsTick::default()
            }).collect();
            let of = |index: usize| (index % presence.len()) as u32 + 1;
            tick.losses = (0..ports).map(|n| (key(of(n), n as u16, 1 | KIND_LOOPBACK), n as i64)).collect();
            tick.flows = (0..ports).map(|n| (key(of(n), n as u16, KIND_FLOWS), [n as i64, 1, 0])).collect();
            tick.losses.sort_by_key(|(key, _)| *key);
            tick.flows.sort_by_key(|(key, _)| *key);
            let before = tick.clone();
            let gone = fold(&mut tick);
            if again {
                prop_assert!(fold(&mut tick).is_empty(), "nothing is left to fold");
            }
            prop_assert_eq!(totals(&tick), totals(&before));
            prop_assert_eq!(gone.len(), presence.iter().filter(|one| **one == Presence::Absent as i64).count());
            prop_assert!(tick.losses.len() <= SLOTS && tick.flows.len() <= SLOTS);
            prop_assert!(tick.netns.is_sorted_by_key(|netns| netns.id));
            let there = |tick: &Tick| tick.netns.iter().filter(|n| n.presence != Presence::Absent).count();
            prop_assert_eq!(there(&tick), there(&before));
            for slots in [tick.losses.iter().map(|(key, _)| *key).collect::<Vec<_>>(), tick.flows.iter().map(|(key, _)| *key).collect()] {
                prop_assert!(slots.is_sorted_by(|a, b| a < b), "each key once, in order");
                prop_assert!(slots.iter().all(|key| !gone.contains(&NetnsId::from_packed(key.netns))));
            }
        }
    }
}
