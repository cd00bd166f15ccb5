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
