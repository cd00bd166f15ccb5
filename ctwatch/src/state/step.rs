//! One key in one tick, as the forecast and its models take it.
//! Plain numbers.

use std::cmp::Ordering;

/// A key: `proto << 16 | port`.
pub(super) type FlowKey = u32;

/// One key in one tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub key: FlowKey,
    /// Entries by now.
    pub entries: f64,
    /// Inserts and deletes since the last tick.
    pub inserts: f64,
    pub deletes: f64,
}

impl Step {
    /// Nothing there, and nothing moved.
    pub const NONE: Self = Self { key: 0, entries: 0.0, inserts: 0.0, deletes: 0.0 };

    /// Entries a tick ago.
    pub fn before(&self) -> f64 {
        (self.entries - self.inserts + self.deletes).max(0.0)
    }

    /// Whom a model is for first: the larger, of equals the busier, of those the lower key.
    pub fn rank(&self, other: &Self) -> Ordering {
        let by_entries = other.entries.total_cmp(&self.entries);
        by_entries.then(other.inserts.total_cmp(&self.inserts)).then(self.key.cmp(&other.key))
    }
}
