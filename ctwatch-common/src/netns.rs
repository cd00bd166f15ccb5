//! Per netns and CPU: which of the kernel's counts are accounted for. One value of a per-CPU map.
//! User space only reads it (the base), the programs alone write it.

use crate::classify::Counters;

/// State of one netns on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCpu {
    /// Address of this CPU's ip_conntrack_stat span.
    pub stat: u64,
    /// Address of the netns's entry count, 0 if it can't be read.
    pub count: u64,
    /// Inode number, to notice that the address was reused by another netns.
    pub inum: u32,
    /// 1 once the rest is filled in.
    pub synced: u32,
    /// The kernel's counters when the watch began on this CPU.
    pub base: Counters,
    /// How far each counter is accounted for.
    pub accounted: Counters,
}

const _: () = assert!(size_of::<NetCpu>() == 56);
