//! Kernel settings with a memory: a scenario may lower nf_conntrack_max, the next one must find it as it was.
//! Only ever used inside a throw-away VM; the native run may read settings, never write them.

use std::fs;

use anyhow::{Context, Result};

/// Limit of entries, compared with each netns's own count.
pub const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// Entries of the calling thread's netns.
pub const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Size of the hash table, for all netns.
pub const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";

/// A setting that gets its old value back when this is dropped.
#[must_use = "dropping it puts the old value back"]
pub struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    /// Writes `value` to `path` and remembers what was there.
    pub fn set(path: &'static str, value: u64) -> Result<Self> {
        let before = read_text(path)?;
        fs::write(path, value.to_string()).with_context(|| format!("writing {value} to {path}"))?;
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.path, &self.before) {
            eprintln!("putting {} back to {}: {error}", self.path, self.before);
        }
    }
}

/// Reads a numeric setting.
pub fn read(path: &str) -> Result<u64> {
    let text = read_text(path)?;
    text.parse().with_context(|| format!("{path} holds `{text}`"))
}

fn read_text(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path).with_context(|| format!("reading {path}"))?.trim().to_owned())
}
