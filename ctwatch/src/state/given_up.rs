//! Which keys may have lost their row: a Bloom filter, so that as many as there are fit into half a megabyte.
//! What it says no to never had one; the fuller it is, the more often it says yes for nothing.

use super::key::Key;

/// Bits, a power of two. With 130,000 keys in it, it is wrong of one new key in 250.
const BITS: u64 = 1 << 22;

/// Keys whose row was given up.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    bits: Vec<u64>,
}

impl GivenUp {
    pub fn add(&mut self, key: &Key) {
        if self.bits.is_empty() {
            self.bits = vec![0; (BITS / 64) as usize];
        }
        for bit in places(key) {
            self.bits[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    /// Whether it may have been added.
    pub fn may_contain(&self, key: &Key) -> bool {
        !self.bits.is_empty()
            && places(key).iter().all(|bit| self.bits[(bit / 64) as usize] & 1 << (bit % 64) != 0)
    }
}

fn places(key: &Key) -> [u64; 2] {
    // The same in every run: what is said of a row must not depend on chance.
    let mut hash: u64 = 0;
    for word in key.words() {
        hash = (hash.rotate_left(29) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^= hash >> 32;
    }
    hash = hash.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    [hash % BITS, (hash >> 32) % BITS]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NetnsId, Protocol};
    use crate::state::by::By;
    use crate::state::key::{ClassifiedLoss, Facts};
    use ctwatch_common::Cause;

    fn key(proto: u8, port: u16) -> Key {
        let facts = Facts {
            netns: NetnsId::from_packed(4_026_531_840),
            proto: Some(Protocol(proto)),
            port: Some(port),
            loopback: Some(true),
            zone: None,
        };
        ClassifiedLoss { cause: Cause::TableFull, facts }.key(By::Port, None)
    }

    #[test]
    fn after_a_scan_of_all_ports_of_two_protocols_few_others_are_mistaken() {
        let mut given_up = GivenUp::default();
        assert!(!given_up.may_contain(&key(17, 1)));
        for (proto, port) in
            [6, 17].into_iter().flat_map(|proto| (0..=u16::MAX).map(move |port| (proto, port)))
        {
            given_up.add(&key(proto, port));
        }
        for (proto, port) in
            [6, 17].into_iter().flat_map(|proto| (0..=u16::MAX).map(move |port| (proto, port)))
        {
            assert!(given_up.may_contain(&key(proto, port)));
        }
        let mistaken = (0..=u16::MAX).filter(|port| given_up.may_contain(&key(132, *port))).count();
        assert!(mistaken < 65_536 / 100, "{mistaken}");
    }
}
