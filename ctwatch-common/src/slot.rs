//! The exact counters: slots of shared memory, each claimed by one key, found by open addressing.
//! A slot's key never changes once written, so user space reads them without a lock.

/// How many slots there are (a power of two).
pub const SLOTS: u32 = 1 << 16;
/// How many neighbours a key may probe before it counts as overflow.
pub const PROBES: u32 = 16;
/// The kind of a slot that counts inserts and deletes instead of losses of one cause.
pub const KIND_FLOWS: u8 = 31;
/// Set in `kind` when the lost packet travelled over the loopback device.
pub const KIND_LOOPBACK: u8 = 0x80;
/// Set in `kind` of a loss whose tuple ctwatch missed: its port is unknown, not 0.
pub const KIND_UNATTRIBUTED: u8 = 0x40;

/// What a slot counts, packed so that one 8-byte store publishes it. Never 0 once claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    /// Inode number of the netns.
    pub netns: u32,
    /// Service port in host order; for ICMP `type << 8 | code`.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// A cause's number or [`KIND_FLOWS`], with [`KIND_LOOPBACK`].
    pub kind: u8,
}

impl SlotKey {
    /// The key as the 8 bytes a slot holds.
    #[must_use]
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.netns as u64 | (self.port as u64) << 32 | (self.proto as u64) << 48 | (self.kind as u64) << 56
    }

    /// The key those 8 bytes stand for.
    #[must_use]
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self {
            netns: packed as u32,
            port: (packed >> 32) as u16,
            proto: (packed >> 48) as u8,
            kind: (packed >> 56) as u8,
        }
    }
}

/// One slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// A packed [`SlotKey`]; 0 while free.
    pub key: u64,
    /// Losses, or inserts for [`KIND_FLOWS`].
    pub count: u64,
    /// Deletes for [`KIND_FLOWS`].
    pub deletes: u64,
    /// Inserts that failed after all, for [`KIND_FLOWS`].
    pub failed: u64,
}

const _: () = assert!(size_of::<Slot>() == 32);

/// The slot a key is looked for first (Fibonacci hashing: the top bits are well mixed).
#[must_use]
#[inline(always)]
pub const fn first_slot(packed: u64) -> u32 {
    (packed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as u32 & (SLOTS - 1)
}

/// Control page: totals that are not per port, and words user space writes for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// 0 while netns are being synchronised (count nothing), 1 while watching. User space writes it.
    pub watching: u64,
    /// How many slots were claimed. User space scans for new ones when this has moved.
    pub claimed: u64,
    /// Events that did not fit the ring buffer, by cause.
    pub lost_events: [u64; super::cause::CAUSES],
    /// Losses whose key found no slot, by cause.
    pub overflow: [u64; super::cause::CAUSES],
    /// Inserts, deletes and failed inserts whose key found no slot.
    pub flows_overflow: [u64; 3],
    /// Losses claimed while another drop was pending on the same CPU and nothing else told the two apart:
    /// the count is right, the tuple may be that of a firewall's drop.
    pub ambiguous: u64,
    /// Address of the netns that the `sync` program was last asked to look up.
    pub sync_net: u64,
    /// The stack `gc_worker` runs on at this moment, 0 while it doesn't.
    pub gc_stack: u64,
    /// Jiffies when the sync program last ran.
    pub jiffies: u64,
    /// Where the number of the system call lies on a task's stack, from its lowest address; 0 if not known.
    pub orig_ax: u64,
}

impl Control {
    /// All zero.
    pub const ZERO: Self = Self {
        watching: 0,
        claimed: 0,
        lost_events: [0; super::cause::CAUSES],
        overflow: [0; super::cause::CAUSES],
        flows_overflow: [0; 3],
        ambiguous: 0,
        sync_net: 0,
        gc_stack: 0,
        jiffies: 0,
        orig_ax: 0,
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
            prop_assert!(first_slot(key.pack()) < SLOTS);
        }
    }

    #[test]
    fn neighbouring_ports_spread_over_the_slots() {
        let mut used = std::collections::HashSet::new();
        for port in 0..60_000u16 {
            used.insert(first_slot(SlotKey { netns: 4_026_531_840, port, proto: 17, kind: 1 }.pack()));
        }
        assert!(used.len() > 20_000, "only {} first slots for 60,000 ports", used.len());
    }
}
