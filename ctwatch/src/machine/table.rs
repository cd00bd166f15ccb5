//! How large the table may grow here, what an entry costs, and the kernel's own default.
//! Facts only: advice is given elsewhere.

use serde::{Deserialize, Serialize};

use super::Notes;
use super::file::{self, Writable};
use crate::kernel::roots::Roots;

/// Bytes of an entry's extensions once it has one (NF_CT_EXT_PREALLOC, net/netfilter/nf_conntrack_extend.c).
const EXTENSIONS: u64 = 128;
/// A bucket is one pointer.
const BUCKET: u64 = size_of::<usize>() as u64;
const GIB: u64 = 1 << 30;

/// The table's dimensions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLimits {
    /// Whether conntrack is a module, built in or absent.
    pub module: Module,
    /// nf_conntrack_max: the limit of each netns. 0 is no limit up to 6.18.
    pub max: Option<u64>,
    /// Entries of this netns.
    pub count: Option<u64>,
    /// Buckets of the one hash table that all netns share.
    pub buckets: Option<u64>,
    /// Whether this is the initial netns, the only one whose root may change max and buckets.
    pub initial_netns: Option<bool>,
    /// Whether nf_conntrack_max can be written here.
    pub max_writable: Writable,
    /// Whether nf_conntrack_buckets can be written here.
    pub buckets_writable: Writable,
    /// What an entry costs.
    pub entry: EntrySize,
    /// This kernel's default for this much memory.
    pub kernel_default: Option<Sizes>,
    /// What the rule of thumb of old kernels gives: history, not advice.
    pub old_rule: Option<Sizes>,
    /// How long a bucket's chain may grow before new flows are dropped.
    pub chain_limit: Option<ChainLimit>,
}

/// Whether conntrack is a module, built in or absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Module {
    /// A module, loaded: its options come from modprobe.d.
    Loaded,
    /// Part of the kernel image: its options come from the kernel's command line.
    BuiltIn,
    /// Nothing tracks.
    #[default]
    Absent,
}

/// Limit and buckets that go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Entries.
    pub max: u64,
    /// Buckets.
    pub buckets: u64,
}

/// Where the size of an entry is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeSource {
    /// The row nf_conntrack of /proc/slabinfo.
    Slabinfo,
    /// /sys/kernel/slab/nf_conntrack/slab_size
    SysSlab,
    /// What kernels of this version have, on x86-64.
    #[default]
    KernelVersion,
}

/// Bytes an entry takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntrySize {
    /// The slab object.
    pub object: u64,
    /// Where that is from.
    pub source: SizeSource,
    /// What extensions (accounting, timestamps, labels, events, NAT, helpers) add to an entry that has any.
    pub extensions: u64,
}

impl EntrySize {
    /// Bytes of an entry at most, without its part of the hash table.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.object.saturating_add(self.extensions)
    }

    /// Bytes of so many entries, at least and at most, in a table of so many buckets.
    #[must_use]
    pub fn memory(&self, entries: u64, buckets: u64) -> (u64, u64) {
        let table = buckets.saturating_mul(BUCKET);
        let of = |each: u64| entries.saturating_mul(each).saturating_add(table);
        (of(self.object), of(self.most()))
    }
}

/// A new flow whose bucket holds a longer chain is dropped (`chain_too_long`): __nf_conntrack_confirm,
/// net/netfilter/nf_conntrack_core.c. The limit is random for each look-up, and each entry is in two chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainLimit {
    /// 5.10: long chains are only slow.
    None,
    /// Between 8 and 32 in the first kernels that had it, between 50 and 80 in later ones.
    Random,
}

/// Reads the dimensions. `memory`: all RAM, in bytes.
pub(super) fn read(
    roots: &Roots,
    memory: Option<u64>,
    version: Option<(u32, u32)>,
    notes: &mut Notes,
) -> TableLimits {
    let sysctl = |name: &str| roots.proc(format!("sys/net/netfilter/nf_conntrack_{name}"));
    let hashsize = roots.sys("module/nf_conntrack/parameters/hashsize");
    let module = if roots.sys("module/nf_conntrack/initstate").exists() {
        Module::Loaded
    } else if roots.sys("module/nf_conntrack").exists() || sysctl("max").exists() {
        Module::BuiltIn
    } else {
        Module::Absent
    };
    if module == Module::Absent {
        notes.add("nf_conntrack is not loaded: nothing is tracked on this host, so no table can be full");
    }
    let max_writable = Writable::of(&sysctl("max"));
    TableLimits {
        module,
        max: file::value(&sysctl("max")),
        count: file::value(&sysctl("count")),
        buckets: file::value(&sysctl("buckets")).or_else(|| file::value(&hashsize)),
        initial_netns: match max_writable {
            Writable::OnlyInTheInitialNetns => Some(false),
            Writable::Missing | Writable::Unknown => None,
            Writable::Yes | Writable::ReadOnlyMount | Writable::NotPermitted => Some(true),
        },
        max_writable,
        buckets_writable: Writable::of(&sysctl("buckets")),
        entry: entry_size(roots, version, notes),
        kernel_default: memory.zip(version).map(|(memory, version)| kernel_default(memory, version)),
        old_rule: memory.map(old_rule),
        chain_limit: version
            .map(|version| if has_chain_limit(version) { ChainLimit::Random } else { ChainLimit::None }),
    }
}

/// 5.10 had none, 5.15 and all later kernels read had one.
fn has_chain_limit(version: (u32, u32)) -> bool {
    version >= (5, 15)
}

fn entry_size(roots: &Roots, version: Option<(u32, u32)>, notes: &mut Notes) -> EntrySize {
    let slabinfo = file::text(&roots.proc("slabinfo"));
    let (object, source) = if let Some(size) = slabinfo.as_deref().and_then(object_of_slabinfo) {
        (size, SizeSource::Slabinfo)
    } else if let Some(size) = file::value(&roots.sys("kernel/slab/nf_conntrack/slab_size")) {
        (size, SizeSource::SysSlab)
    } else {
        notes.add("entry size assumed from the kernel version: /proc/slabinfo is unreadable or has no nf_conntrack row");
        let is_old = version.is_some_and(|version| version < (5, 15));
        (if is_old { 320 } else { 256 }, SizeSource::KernelVersion)
    };
    EntrySize { object, source, extensions: EXTENSIONS }
}

/// The column objsize of the row nf_conntrack. In 2.6 and 3.x each netns had a row of its own, named with an address.
fn object_of_slabinfo(text: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let mut row = lines.find_map(|mut words| {
        let name = words.next()?;
        (name == "nf_conntrack").then_some(words)
    })?;
    row.nth(2)?.parse().ok()
}

/// nf_conntrack_init_start, net/netfilter/nf_conntrack_core.c: as in 5.10 and before, and as from 5.15 on.
#[must_use]
pub fn kernel_default(memory: u64, version: (u32, u32)) -> Sizes {
    /// The hash table takes whole pages (nf_ct_alloc_hashtable).
    const PER_PAGE: u64 = 4096 / 8;
    let is_old = version < (5, 15);
    let (large, medium, least, factor) =
        if is_old { (65_536, 16_384, 32, 4) } else { (262_144, 65_536, 1024, 1) };
    let buckets = if memory > 4 * GIB {
        large
    } else if memory > GIB {
        medium
    } else {
        (memory / 16_384 / 8).max(least)
    };
    let buckets = buckets.next_multiple_of(PER_PAGE);
    Sizes { max: buckets * factor, buckets }
}

/// RAM / 16384 / (bits / 32) entries, and an eighth of that in buckets.
#[must_use]
pub fn old_rule(memory: u64) -> Sizes {
    let max = memory / 16_384 / (u64::from(usize::BITS) / 32);
    Sizes { max, buckets: max / 8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize>\n";

    #[test]
    fn the_entry_s_row_is_not_taken_for_the_expectation_s() {
        // As on 7.3.4, where the expectation's row comes first.
        let text =
            format!("{HEAD}nf_conntrack_expect 0 0 240 17 1\nnf_conntrack 336 336 256 16 1 : tunables 0\n");
        assert_eq!(object_of_slabinfo(&text), Some(256));
        assert_eq!(object_of_slabinfo("slabinfo - version: 2.1\nnf_conntrack"), None);
        assert_eq!(object_of_slabinfo(""), None);
    }

    #[test]
    fn the_kernel_s_defaults_by_memory_and_version() {
        let of = |gib: u64, version| {
            let Sizes { max, buckets } = kernel_default(gib * GIB + 1, version);
            (max, buckets)
        };
        assert_eq!(of(2, (5, 10)), (65_536, 16_384));
        assert_eq!(of(8, (5, 10)), (262_144, 65_536));
        assert_eq!(of(2, (6, 12)), (65_536, 65_536));
        assert_eq!(of(64, (7, 3)), (262_144, 262_144));
        assert_eq!(kernel_default(512 << 20, (6, 12)), Sizes { max: 4096, buckets: 4096 });
        assert_eq!(kernel_default(16 << 20, (5, 10)), Sizes { max: 2048, buckets: 512 });
    }

    #[test]
    fn the_old_rule_gives_what_the_old_articles_say() {
        assert_eq!(old_rule(64 * GIB), Sizes { max: 2_097_152, buckets: 262_144 });
    }

    #[test]
    fn a_million_entries_on_6_12_cost_up_to_392_mb() {
        let entry = EntrySize { object: 256, source: SizeSource::Slabinfo, extensions: EXTENSIONS };
        assert_eq!(entry.memory(1 << 20, 1 << 20), (264 << 20, 392 << 20));
    }

    proptest! {
        #[test]
        fn more_memory_never_gives_a_smaller_table(a in 0u64..1 << 44, b in 0u64..1 << 44, new: bool) {
            let version = if new { (6, 12) } else { (5, 10) };
            let (small, large) = (kernel_default(a.min(b), version), kernel_default(a.max(b), version));
            // At 1 GiB and below the formula takes over; it never passes the step above it.
            prop_assert!(small.buckets <= large.buckets);
            prop_assert_eq!(small.buckets % 512, 0);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = object_of_slabinfo(&text);
        }
    }
}
