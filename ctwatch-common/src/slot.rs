//! The exact counters: slots of shared memory, each claimed by one key, found by open addressing.
//! Losses have a room of their own, so that flows can't fill it. Each room has two banks: programs write to one of them while
//! user space takes what the other holds and clears it, so that slots never run out.

use crate::Cause;
use crate::door::{DOORS, Door};

/// Slots in a bank of losses (a power of two).
pub const LOSS_SLOTS: u32 = 1 << 15;
/// Slots in a bank of flows (a power of two).
pub const FLOW_SLOTS: u32 = 1 << 14;
/// Banks of a room.
pub const BANKS: u32 = 2;
/// How many slots are probed for a key before it counts as overflow: at three quarters full, one new key in ten thousand
/// finds none.
pub const PROBES: u32 = 32;
/// The kind of a slot that counts inserts and deletes instead of losses of one cause.
pub const KIND_FLOWS: u8 = 31;
/// Set in `kind` when the lost packet travelled over the loopback device.
pub const KIND_LOOPBACK: u8 = 0x80;
/// Set in `kind` of a loss whose tuple ctwatch missed: its port is unknown, not 0.
pub const KIND_UNATTRIBUTED: u8 = 0x40;
/// The bits of `kind` that are flags; the others are a number.
pub const KIND_FLAGS: u8 = KIND_LOOPBACK | KIND_UNATTRIBUTED;

/// What a slot counts, packed so that one 8-byte store publishes it. Never 0 once claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    /// The id of the netns (see [`crate::netns::id`]); for [`KIND_FLOWS`] its inode number.
    pub netns: u32,
    /// Service port in host order; for ICMP `type << 8 | code`.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// A cause's number or [`KIND_FLOWS`], with [`KIND_FLAGS`]: see [`SlotKey::decode`].
    pub kind: u8,
}

/// What [`SlotKey::kind`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// The slot counts losses.
    Loss {
        /// Why they happened.
        cause: Cause,
        /// The packets travelled over the loopback device. Not known of unattributed losses.
        loopback: bool,
        /// The tuple was seen: the key's protocol and port are those of the packets.
        attributed: bool,
    },
    /// The slot counts inserts, deletes and failed inserts.
    Flows,
}

impl SlotKey {
    /// The key as the 8 bytes a slot holds.
    #[must_use]
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.port as u64 | (self.proto as u64) << 16 | (self.kind as u64) << 24 | (self.netns as u64) << 32
    }

    /// The key those 8 bytes stand for.
    #[must_use]
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            netns: (packed >> 32) as u32,
            port: packed as u16,
            proto: (packed >> 16) as u8,
            kind: (packed >> 24) as u8,
        }
    }

    /// What the slot counts; `None` if no cause has this number.
    #[must_use]
    pub fn decode(self) -> Option<SlotKind> {
        let number = self.kind & !KIND_FLAGS;
        if number == KIND_FLOWS {
            return Some(SlotKind::Flows);
        }
        Some(SlotKind::Loss {
            cause: Cause::from_number(number)?,
            loopback: self.kind & KIND_LOOPBACK != 0,
            attributed: self.kind & KIND_UNATTRIBUTED == 0,
        })
    }
}

/// One slot of losses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossSlot {
    /// A packed [`SlotKey`]; 0 while free.
    pub key: u64,
    /// Losses.
    pub count: u64,
}

const _: () = assert!(size_of::<LossSlot>() == 16);

/// One slot of flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowSlot {
    /// A packed [`SlotKey`]; 0 while free.
    pub key: u64,
    /// Inserts.
    pub inserts: u64,
    /// Deletes.
    pub deletes: u64,
    /// Inserts that failed after all.
    pub failed: u64,
}

const _: () = assert!(size_of::<FlowSlot>() == 32);

/// The slot of a bank that is probed first for a key (Fibonacci hashing: ports in a row spread evenly).
#[must_use]
#[inline(always)]
pub const fn first_slot(packed: u64, slots: u32) -> u32 {
    (packed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - slots.trailing_zeros())) as u32
}

/// The slot that is probed after `index`, for the `step`th time (from 1): each leap is longer than the last, so that
/// full neighbourhoods are left soon.
#[must_use]
#[inline(always)]
pub const fn next_slot(index: u32, step: u32, slots: u32) -> u32 {
    (index + step) & (slots - 1)
}

/// What programs and user space tell each other about a room.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomState {
    /// The first slot of the bank that programs write to. User space writes it.
    pub active: u64,
    /// How many slots of each bank are claimed. User space clears it together with the bank.
    pub claimed: [u64; BANKS as usize],
    /// So that slots don't straddle cache lines.
    pub reserved: u64,
}

const _: () = assert!(size_of::<RoomState>() == 32);

/// A room, one value of an array: a program looks it up once, however many slots it probes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Room<S, const SLOTS: usize> {
    /// Which bank is in use, and how full.
    pub state: RoomState,
    /// One bank after the other.
    pub slots: [S; SLOTS],
}

/// The room of losses.
pub type LossRoom = Room<LossSlot, { (BANKS * LOSS_SLOTS) as usize }>;
/// The room of flows.
pub type FlowRoom = Room<FlowSlot, { (BANKS * FLOW_SLOTS) as usize }>;

/// Control page: totals that are not per port, and what programs and user space tell each other.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// 0 while the netns are being registered (losses don't count yet); then the jiffies by which each CPU's counters had
    /// their baseline. User space writes it.
    pub watching: u64,
    /// Events that did not fit the ring buffer, by cause.
    pub lost_events: [u64; super::cause::CAUSES],
    /// Losses whose key found no slot, by cause.
    pub overflow: [u64; super::cause::CAUSES],
    /// Inserts, deletes and failed inserts whose key found no slot.
    pub flows_overflow: [u64; 3],
    /// Losses attributed while another drop was pending on the same CPU and nothing told the two apart: the count is
    /// right, the tuple may be that of a packet the firewall dropped.
    pub ambiguous: u64,
    /// Address of the netns that [`crate::sync::SyncOp::Locate`] found last.
    pub sync_net: u64,
    /// The stack `gc_worker` runs on at this moment, 0 while it doesn't.
    pub gc_stack: u64,
    /// Jiffies when the sync program last ran.
    pub jiffies: u64,
    /// Offset of the system call number on a task's stack, from its lowest address; 0 if unknown.
    pub orig_ax: u64,
    /// The id of the netns that [`crate::sync::SyncOp::Locate`] found last (see [`crate::netns::id`]).
    pub sync_id: u64,
    /// Losses in namespaces for which there was no room: told by what the moment itself proves.
    pub crowded: u64,
    /// Namespaces that went and whose inode number found no room for another generation: the next one with that number is
    /// taken for the same.
    pub unnumbered: u64,
    /// Jiffies when a helper last found no room for an expectation; 0 if it never did.
    pub expectation_refused: u64,
    /// Where else than in `nf_hook_slow` refused packets are freed. User space writes it.
    pub doors: [Door; DOORS],
}

impl Control {
    /// All zero.
    pub const ZERO: Self = Self {
        watching: 0,
        lost_events: [0; super::cause::CAUSES],
        overflow: [0; super::cause::CAUSES],
        flows_overflow: [0; 3],
        ambiguous: 0,
        sync_net: 0,
        gc_stack: 0,
        jiffies: 0,
        orig_ax: 0,
        sync_id: 0,
        crowded: 0,
        unnumbered: 0,
        expectation_refused: 0,
        doors: [Door::NONE; DOORS],
    };
}

const _: () = assert!(size_of::<Control>() <= 4096);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_survives_packing(netns: u32, port: u16, proto: u8, kind: u8) {
            let key = SlotKey { netns, port, proto, kind };
            prop_assert_eq!(SlotKey::unpack(key.pack()), key);
            prop_assert!(first_slot(key.pack(), LOSS_SLOTS) < LOSS_SLOTS);
            prop_assert!(first_slot(key.pack(), FLOW_SLOTS) < FLOW_SLOTS);
        }
    }

    #[test]
    fn every_kind_byte_decodes_to_what_its_bits_say() {
        let mut causes = std::collections::HashMap::<Cause, usize>::new();
        for kind in 0..=u8::MAX {
            let number = kind & 0x3f;
            match (SlotKey { netns: 1, port: 2, proto: 3, kind }).decode() {
                Some(SlotKind::Loss { cause, loopback, attributed }) => {
                    assert_eq!(cause as u8, number);
                    assert_eq!(loopback, kind & KIND_LOOPBACK != 0);
                    assert_eq!(attributed, kind & KIND_UNATTRIBUTED == 0);
                    *causes.entry(cause).or_default() += 1;
                }
                Some(SlotKind::Flows) => assert_eq!(number, KIND_FLOWS),
                None => assert!(number != KIND_FLOWS && Cause::from_number(number).is_none(), "{kind:#x}"),
            }
        }
        // Each with and without either flag.
        assert!(Cause::ALL.into_iter().all(|cause| causes[&cause] == 4));
    }

    #[test]
    fn no_cause_has_the_number_of_another_kind_or_of_a_flag() {
        for cause in Cause::ALL {
            assert_ne!(cause as u8, KIND_FLOWS);
            assert_eq!(cause as u8 & KIND_FLAGS, 0);
        }
    }

    #[test]
    fn ports_in_a_row_spread_over_the_slots() {
        let ports = LOSS_SLOTS / 2;
        let mut used = std::collections::HashSet::new();
        for port in 0..ports as u16 {
            let key = SlotKey { netns: 4_026_531_840, port, proto: 17, kind: 1 };
            used.insert(first_slot(key.pack(), LOSS_SLOTS));
        }
        assert!(used.len() as u32 > ports / 8 * 7, "only {} first slots for {ports} ports", used.len());
    }

    #[test]
    fn different_slots_are_probed_for_a_key() {
        let mut index = first_slot(12_345, FLOW_SLOTS);
        let mut probed = std::collections::HashSet::from([index]);
        for step in 1..PROBES {
            index = next_slot(index, step, FLOW_SLOTS);
            assert!(index < FLOW_SLOTS);
            probed.insert(index);
        }
        assert_eq!(probed.len() as u32, PROBES);
    }
}
