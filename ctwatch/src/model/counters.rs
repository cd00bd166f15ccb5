//! The kernel's own counters, as totals since a baseline.
//! Nothing here knows how they are read.

/// The kernel's conntrack counters that losses are judged by (/proc/net/stat/nf_conntrack).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct KernelCounters {
    /// Packets `nf_conntrack_in` or the confirm step dropped.
    pub drop: u64,
    /// Entries evicted to make room.
    pub early_drop: u64,
    /// Entries that could not be inserted at confirm.
    pub insert_failed: u64,
    /// Inserts refused for too long a hash chain.
    pub chaintoolong: u64,
}

impl KernelCounters {
    /// From an array in the order of the fields.
    #[must_use]
    pub const fn from_array([drop, early_drop, insert_failed, chaintoolong]: [u64; 4]) -> Self {
        Self { drop, early_drop, insert_failed, chaintoolong }
    }

    /// As an array in the order of the fields.
    #[must_use]
    pub const fn as_array(&self) -> [u64; 4] {
        let Self { drop, early_drop, insert_failed, chaintoolong } = *self;
        [drop, early_drop, insert_failed, chaintoolong]
    }

    /// Each with the name the kernel gives it.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 4] {
        let Self { drop, early_drop, insert_failed, chaintoolong } = *self;
        [
            ("drop", drop),
            ("early_drop", early_drop),
            ("insert_failed", insert_failed),
            ("chaintoolong", chaintoolong),
        ]
    }
}
