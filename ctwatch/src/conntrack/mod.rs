//! What conntrack says of itself: per-CPU counters, limits, and the netns that have a table.
//! Read-only: nothing here changes a setting or an entry.

pub mod addresses;
pub mod census;
pub mod module;
pub mod stat;
pub mod tracking;
