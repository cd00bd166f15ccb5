//! The causes of a loss, one spelling and one number for kernel, JSON and metrics.
//! Numbers are part of the wire format: add at the end, never renumber.

/// Why a packet or an entry was lost.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// `early_drop` found no victim: the packet that wanted a new entry is dropped.
    TableFull = 1,
    /// No memory for the entry or its extensions.
    NoMemory = 2,
    /// `nf_ct_resolve_clash` gave up: another CPU inserted the same tuple first.
    Clash = 3,
    /// `__nf_conntrack_confirm` met a hash chain over the limit (not in 5.10).
    ChainTooLong = 4,
    /// The entry was dying when `__nf_conntrack_confirm` wanted to insert it.
    Dying = 5,
    /// A closing TCP entry was reopened in a race (always inferred).
    TcpRace = 6,
    /// The kernel counted a drop that fits no other cause.
    Other = 7,
    /// `early_drop` removed this entry to make room.
    Evicted = 8,
    /// `gc_worker` removed this entry because the table was nearly full.
    GcEvicted = 9,
    /// The packet passed untracked: it fits no connection.
    Invalid = 10,
    /// A helper found no room for the connection it was to expect, and dropped the packet that announced it.
    ExpectFull = 11,
}

/// What a loss of a cause is counted in. The two are never added up together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Packets that were dropped (or, for [`Cause::Invalid`], passed untracked).
    Packets,
    /// Table entries that were removed before their time.
    Entries,
}

impl Unit {
    /// The spelling in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Entries => "entries",
        }
    }
}

/// How many numbers a cause can have: arrays indexed by cause have this length.
pub const CAUSES: usize = 16;

impl Cause {
    /// Every cause, in the order of its number.
    pub const ALL: [Self; 11] = [
        Self::TableFull,
        Self::NoMemory,
        Self::Clash,
        Self::ChainTooLong,
        Self::Dying,
        Self::TcpRace,
        Self::Other,
        Self::Evicted,
        Self::GcEvicted,
        Self::Invalid,
        Self::ExpectFull,
    ];

    /// The cause with this number on the wire.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|cause| *cause as u8 == number)
    }

    /// The spelling in JSON, metrics and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TableFull => "table_full",
            Self::NoMemory => "no_memory",
            Self::Clash => "clash",
            Self::ChainTooLong => "chain_too_long",
            Self::Dying => "dying",
            Self::TcpRace => "tcp_race",
            Self::Other => "other",
            Self::Evicted => "evicted",
            Self::GcEvicted => "gc_evicted",
            Self::Invalid => "invalid",
            Self::ExpectFull => "expect_full",
        }
    }

    /// The cause with this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|cause| cause.name() == name)
    }

    /// What its losses are counted in.
    #[must_use]
    pub const fn unit(self) -> Unit {
        match self {
            Self::Evicted | Self::GcEvicted => Unit::Entries,
            _ => Unit::Packets,
        }
    }

    /// Whether one loss of this cause bumps the kernel's `drop` counter by one.
    ///
    /// `nf_conntrack_in` (every refused allocation, and a protocol handler's NF_DROP) and
    /// `__nf_ct_resolve_clash`, net/netfilter/nf_conntrack_core.c, 5.10 to 7.3.
    #[must_use]
    pub const fn bumps_drop(self) -> bool {
        matches!(self, Self::TableFull | Self::NoMemory | Self::Clash | Self::TcpRace | Self::Other)
    }

    /// Whether one loss of this cause bumps `insert_failed` by one (`__nf_conntrack_confirm`).
    #[must_use]
    pub const fn bumps_insert_failed(self) -> bool {
        matches!(self, Self::Clash | Self::ChainTooLong | Self::Dying)
    }

    /// Whether one loss of this cause bumps `chaintoolong` by one.
    #[must_use]
    pub const fn bumps_chaintoolong(self) -> bool {
        matches!(self, Self::ChainTooLong)
    }

    /// Whether one loss of this cause bumps `early_drop` by one.
    #[must_use]
    pub const fn bumps_early_drop(self) -> bool {
        matches!(self, Self::Evicted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_survives_the_way_to_its_number_and_to_its_name() {
        for cause in Cause::ALL {
            assert_eq!(Cause::from_number(cause as u8), Some(cause));
            assert_eq!(Cause::from_name(cause.name()), Some(cause));
            assert!((cause as usize) < CAUSES);
        }
        assert_eq!(Cause::from_number(0), None);
    }
}
