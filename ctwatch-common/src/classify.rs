//! The cause of a dropped packet, decided from the kernel's own per-CPU counters at that moment.
//! Pure: no helper calls, so the same code is tested on the host and verified in the kernel.

use crate::Cause;

/// The per-CPU conntrack counters a decision needs. They are u32 and wrap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `drop`
    pub drop: u32,
    /// `insert_failed`
    pub insert_failed: u32,
    /// `chaintoolong` (stays 0 where the kernel has none)
    pub chaintoolong: u32,
    /// `early_drop`
    pub early_drop: u32,
}

/// A netns first seen while watching is new and has counted little. With more than this it is older and was only missed.
const FRESH: u32 = 64;

/// The value a counter starts from when a netns is first seen in the middle of a watch.
///
/// A new netns starts at 0, and its first loss reaches us when the counter is 1 or little more.
#[must_use]
#[inline(always)]
pub const fn fresh_base(current: u32, own: u32) -> u32 {
    if current <= FRESH { 0 } else { current.wrapping_sub(own) }
}

/// How far a counter has moved past what is accounted for; `None` when it went backwards (a new netns
/// took the address of one that died).
#[must_use]
#[inline(always)]
pub const fn moved(current: u32, accounted: u32) -> Option<u32> {
    let delta = current.wrapping_sub(accounted);
    if delta <= u32::MAX / 2 {
        Some(delta)
    } else if accounted.wrapping_sub(current) <= FRESH {
        // Two contexts accounted for one increment: the next loss makes up for it, so the total stays right.
        Some(0)
    } else {
        None
    }
}

/// What moved on this CPU since the last loss was accounted for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// `drop` moved.
    pub drop: bool,
    /// `insert_failed` moved.
    pub insert_failed: bool,
    /// `chaintoolong` moved.
    pub chaintoolong: bool,
}

/// The cause of a packet that `nf_hook_slow` just freed, or `None` if conntrack had no part in it.
///
/// Without an entry (`has_entry` false) only `nf_conntrack_in` can have dropped the packet, and it bumps `drop`
/// first; with an entry it was `__nf_conntrack_confirm` or `nf_confirm`, which bump what the identities in
/// docs/how-it-works.md say (net/netfilter/nf_conntrack_core.c, 5.10 to 7.3).
#[must_use]
#[inline(always)]
pub const fn classify(moved: Moved, has_entry: bool, table_full: bool) -> Option<Cause> {
    if !has_entry {
        return match (moved.drop, table_full) {
            (false, _) => None,
            (true, true) => Some(Cause::TableFull),
            (true, false) => Some(Cause::NoMemory),
        };
    }
    match (moved.insert_failed, moved.chaintoolong, moved.drop) {
        (true, true, _) => Some(Cause::ChainTooLong),
        (true, false, true) => Some(Cause::Clash),
        (true, false, false) => Some(Cause::Dying),
        (false, _, true) => Some(Cause::Other),
        (false, _, false) => None,
    }
}

/// The cause of a packet without an entry that was refused although the table had room.
///
/// `nf_conntrack_in` counts `invalid` and `drop` when the TCP tracker answers NF_DROP (5.10 to 7.3): a SYN that reopens
/// a connection whose entry is being destroyed on another CPU. `invalid` moves for accepted packets too, so this stays
/// an inference; if it stood still, memory ran out.
#[must_use]
#[inline(always)]
pub const fn refused_with_room(proto: u8, invalid_moved: bool) -> Cause {
    const TCP: u8 = 6;
    if invalid_moved && proto == TCP { Cause::TcpRace } else { Cause::NoMemory }
}

/// Losses the kernel counted and no program saw, by cause as far as the counters tell them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Bumped `drop` alone: nearly always a full table.
    pub drop: u32,
    /// Bumped `drop` and `insert_failed`.
    pub clash: u32,
    /// Bumped `insert_failed` alone.
    pub dying: u32,
    /// Bumped `chaintoolong` and `insert_failed`.
    pub chaintoolong: u32,
    /// Bumped `early_drop`.
    pub evicted: u32,
}

/// Splits what the counters moved beyond what is accounted for. Every counter is explained in full.
#[must_use]
#[inline(always)]
pub const fn missed(now: Counters, accounted: Counters) -> Missed {
    const fn ahead(now: u32, accounted: u32) -> u32 {
        match moved(now, accounted) {
            Some(delta) => delta,
            None => 0,
        }
    }
    let drop = ahead(now.drop, accounted.drop);
    let chaintoolong = ahead(now.chaintoolong, accounted.chaintoolong);
    let insert_failed = ahead(now.insert_failed, accounted.insert_failed).saturating_sub(chaintoolong);
    let clash = if drop < insert_failed { drop } else { insert_failed };
    Missed {
        drop: drop - clash,
        clash,
        dying: insert_failed - clash,
        chaintoolong,
        evicted: ahead(now.early_drop, accounted.early_drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_moved() -> impl Strategy<Value = Moved> {
        any::<(bool, bool, bool)>().prop_map(|(drop, insert_failed, chaintoolong)| Moved {
            drop,
            insert_failed,
            chaintoolong,
        })
    }

    proptest! {
        #[test]
        fn a_cause_never_claims_a_counter_that_stood_still(moved in any_moved(), has_entry: bool, full: bool) {
            if let Some(cause) = classify(moved, has_entry, full) {
                prop_assert!(!cause.bumps_drop() || moved.drop);
                prop_assert!(!cause.bumps_insert_failed() || moved.insert_failed);
                prop_assert!(!cause.bumps_chaintoolong() || moved.chaintoolong);
            }
        }

        #[test]
        fn nothing_moved_means_conntrack_had_no_part(has_entry: bool, full: bool) {
            prop_assert_eq!(classify(Moved::default(), has_entry, full), None);
        }

        #[test]
        fn what_was_missed_explains_every_counter_in_full(
            accounted: (u32, u32, u32, u32), drop in 0..9u32, dying in 0..9u32, clash in 0..9u32, chain in 0..9u32, evicted in 0..9u32,
        ) {
            let (a, b, c, d) = accounted;
            let accounted = Counters { drop: a, insert_failed: b, chaintoolong: c, early_drop: d };
            let now = Counters {
                drop: a.wrapping_add(drop + clash),
                insert_failed: b.wrapping_add(clash + dying + chain),
                chaintoolong: c.wrapping_add(chain),
                early_drop: d.wrapping_add(evicted),
            };
            let found = missed(now, accounted);
            prop_assert_eq!(found.drop + found.clash, drop + clash);
            prop_assert_eq!(found.clash + found.dying + found.chaintoolong, clash + dying + chain);
            prop_assert_eq!((found.chaintoolong, found.evicted), (chain, evicted));
        }

        #[test]
        fn counters_wrap_without_losing_a_count(accounted: u32, delta in 0..1_000_000u32) {
            prop_assert_eq!(moved(accounted.wrapping_add(delta), accounted), Some(delta));
        }
    }

    #[test]
    fn only_a_tcp_packet_that_was_counted_invalid_can_have_lost_the_reopen_race() {
        assert_eq!(refused_with_room(6, true), Cause::TcpRace);
        assert_eq!(refused_with_room(6, false), Cause::NoMemory);
        assert_eq!(refused_with_room(17, true), Cause::NoMemory);
    }

    #[test]
    fn a_counter_that_went_backwards_is_a_new_netns() {
        assert_eq!(moved(3, 900), None);
    }

    #[test]
    fn a_hidden_netns_starts_at_its_present_count_a_new_one_at_zero() {
        assert_eq!(fresh_base(2, 1), 0);
        assert_eq!(fresh_base(90_000, 1), 89_999);
    }
}
