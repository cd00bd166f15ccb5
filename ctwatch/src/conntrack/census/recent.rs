//! Recognises an entry that a dump lists twice, in a fixed 32 KB.
//! It need not look far back: what is repeated is the part of one hash chain that was listed already.

use crate::model::TableEntry;

/// Places an entry can be in.
const WAYS: usize = 4;
/// A chain has at most 80 entries (nf_conntrack_core.c, MAX_CHAINLEN; 5.10 has no limit, and long chains only where buckets
/// are few): four of them between an entry and its repetition in the same one of 1,024 sets happen once in a million
/// chains of that length.
const SETS: usize = 1024;

/// The last few thousand entries.
///
/// `ctnetlink_dump_table` (net/netfilter/nf_conntrack_netlink.c, 5.10 to 7.3) remembers the bucket and the entry at which
/// a datagram was full. If that entry is gone when the dump goes on, it walks the bucket from its head again.
pub(super) struct Recent(Vec<[u64; WAYS]>);

impl Recent {
    pub fn new() -> Self {
        Self(vec![[0; WAYS]; SETS])
    }

    /// Whether this entry was listed a moment ago; from now on it was.
    #[inline]
    pub fn repeats(&mut self, entry: &TableEntry) -> bool {
        if entry.id == 0 {
            return false;
        }
        let known = (entry.tuple ^ u64::from(entry.id)).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let set = &mut self.0[(known >> 54) as usize % SETS];
        if set.contains(&known) {
            return true;
        }
        set.rotate_right(1);
        set[0] = known;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(number: u32) -> TableEntry {
        // Ids are hashes, and tuples too.
        let id = number.wrapping_mul(0x85EB_CA6B) | 1;
        TableEntry {
            id,
            tuple: u64::from(number).wrapping_mul(0xC2B2_AE3D_27D4_EB4F),
            ..TableEntry::default()
        }
    }

    proptest! {
        #[test]
        fn a_chain_walked_again_adds_nothing(first in 0..1_000_000u32, chain in 1..80u32, listed in 0..80u32) {
            let mut recent = Recent::new();
            let listed = listed.min(chain);
            for number in 0..5_000 {
                recent.repeats(&entry(first.wrapping_sub(number + 1)));
            }
            let mut repeated = 0;
            for number in (first..first + listed).chain(first..first + chain) {
                repeated += u32::from(recent.repeats(&entry(number)));
            }
            prop_assert_eq!(repeated, listed);
        }
    }

    #[test]
    fn an_entry_without_an_id_is_never_taken_for_another() {
        let mut recent = Recent::new();
        let nameless = TableEntry { id: 0, ..entry(1) };
        assert!(!recent.repeats(&nameless) && !recent.repeats(&nameless));
    }

    #[test]
    fn entries_that_share_an_id_are_told_apart_by_their_tuples() {
        let mut recent = Recent::new();
        let (one, other) = (entry(1), TableEntry { tuple: 9, ..entry(1) });
        assert!(!recent.repeats(&one) && !recent.repeats(&other) && recent.repeats(&one));
    }
}
