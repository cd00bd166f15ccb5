//! Distributions and named numbers as JSON text, which every SQLite can parse:
//! `[[bucket, entries], …]` without empty buckets, and `{"name": number, …}`.

use std::collections::BTreeMap;

/// Buckets with entries.
pub(super) type Sparse = Vec<(usize, u32)>;

/// Numbers by name.
pub(super) type NamedNumbers = BTreeMap<String, u32>;

pub(super) fn sparse_text(sparse: &Sparse) -> String {
    serde_json::to_string(sparse).unwrap_or_default()
}

pub(super) fn sparse_from(text: &str) -> Option<Sparse> {
    serde_json::from_str(text).ok()
}
