//! What conntrack says of itself: per-CPU counters, limits, and the netns that have a table.
//! Read-only: nothing here changes a setting or an entry.

pub mod census;
pub mod netns;
pub mod stat;
