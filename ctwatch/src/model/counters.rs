//! The kernel's own counters, as totals since a baseline.
//! Nothing here knows how they are read.

/// The kernel's conntrack counters that losses are judged by (struct ip_conntrack_stat).
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

/// One value for each of the kernel's counters, in the order of [`KernelCounters::as_array`].
pub type CounterArray<T = u64> = [T; 4];

impl KernelCounters {
    /// What the kernel calls them, in the order of the fields.
    pub const NAMES: CounterArray<&'static str> = ["drop", "early_drop", "insert_failed", "chaintoolong"];

    /// From an array in the order of the fields.
    #[must_use]
    pub const fn from_array([drop, early_drop, insert_failed, chaintoolong]: CounterArray) -> Self {
        Self { drop, early_drop, insert_failed, chaintoolong }
    }

    /// As an array in the order of the fields.
    #[must_use]
    pub const fn as_array(&self) -> CounterArray {
        let Self { drop, early_drop, insert_failed, chaintoolong } = *self;
        [drop, early_drop, insert_failed, chaintoolong]
    }

    /// Each with the name the kernel gives it.
    #[must_use]
    pub fn named(&self) -> CounterArray<(&'static str, u64)> {
        let counts = self.as_array();
        std::array::from_fn(|counter| (Self::NAMES[counter], counts[counter]))
    }
}

/// Where the kernel's counters are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterSource {
    /// /proc/net/stat/nf_conntrack
    Procfs,
    /// Statistics over ctnetlink, as `conntrack -S` prints them.
    Ctnetlink,
}

impl CounterSource {
    /// The spelling in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Procfs => "procfs",
            Self::Ctnetlink => "ctnetlink",
        }
    }

    /// For people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Procfs => "/proc/net/stat/nf_conntrack",
            Self::Ctnetlink => "ctnetlink",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_and_the_names_have_the_order_of_the_fields() {
        let counters = KernelCounters { drop: 1, early_drop: 2, insert_failed: 3, chaintoolong: 4 };
        assert_eq!(counters.as_array(), [1, 2, 3, 4]);
        assert_eq!(KernelCounters::from_array([1, 2, 3, 4]), counters);
        assert_eq!(counters.named()[3], ("chaintoolong", 4));
    }
}
