//! The ways to see losses, by the names that flags, files and JSON use.
//! Which of them works on a host is decided elsewhere.

use serde::{Serialize, Serializer};

/// Where the losses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Programs on conntrack's own functions: causes are known.
    Kprobe,
    /// The kfree_skb tracepoint: causes are inferred.
    Tracepoint,
    /// No programs; only what the kernel counts by itself.
    Counters,
}

impl Backend {
    /// All of them, the best one first.
    pub const ALL: [Self; 3] = [Self::Kprobe, Self::Tracepoint, Self::Counters];

    /// The spelling in JSON and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Counters => "counters",
        }
    }

    /// The backend of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }
}

impl Serialize for Backend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
