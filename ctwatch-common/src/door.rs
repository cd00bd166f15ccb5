//! Where the kernel frees packets that conntrack refused, beside `nf_hook_slow`: the doors through which packets reach
//! conntrack without it. Modules come and go while programs run, so user space writes the list to the control page.

use crate::event::hook;

/// How many places can be listed.
pub const DOORS: usize = 8;

/// What is known of a packet from the place it was freed at.
pub mod kind {
    use super::hook;

    /// `nf_hook_slow`: a hook of netfilter's.
    pub const NF_HOOK_SLOW: u8 = 0;
    /// A hook of netfilter's that goes on after NFQUEUE: whoever gave the verdict runs, not the sender.
    pub const NFQUEUE: u8 = 1;
    /// Open vSwitch's action `ct`.
    pub const OPENVSWITCH: u8 = hook::OPENVSWITCH;
    /// tc's action `ct`, on a packet that came in.
    pub const TC_INGRESS: u8 = hook::TC_INGRESS;
    /// The same on one that goes out.
    pub const TC_EGRESS: u8 = hook::TC_EGRESS;
    /// A bridge that tracks connections.
    pub const BRIDGE: u8 = hook::BRIDGE;
}

/// The code of one function.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Door {
    /// Its address.
    pub start: u64,
    /// Its length in bytes, and above them in one word what is known of a packet freed there; 0 ends the list. One word, so
    /// that a list that is just being written has whole doors, of which one may be another's start with this word.
    pub span: u64,
}

const KIND_BITS: u32 = 8;

impl Door {
    /// No door: the list ends.
    pub const NONE: Self = Self { start: 0, span: 0 };

    /// The code from `start` on, for `length` bytes.
    #[must_use]
    pub const fn new(start: u64, length: u32, kind: u8) -> Self {
        Self { start, span: (length as u64) << KIND_BITS | kind as u64 }
    }

    /// What is known of a packet that was freed at this address, if it was freed here.
    #[must_use]
    #[inline(always)]
    pub const fn kind_of(self, location: u64) -> Option<u8> {
        if location.wrapping_sub(self.start) < self.span >> KIND_BITS { Some(self.span as u8) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_door_is_as_wide_as_its_function(start: u64, length: u32, kind: u8, away in -9_000_000_000i64..9_000_000_000) {
            let inside = (0..i64::from(length)).contains(&away);
            let location = start.wrapping_add_signed(away);
            prop_assert_eq!(Door::new(start, length, kind).kind_of(location), inside.then_some(kind));
        }
    }

    #[test]
    fn nothing_is_freed_where_there_is_no_door() {
        assert_eq!(Door::NONE.kind_of(0), None);
        assert_eq!(Door::NONE.kind_of(u64::MAX), None);
    }
}
