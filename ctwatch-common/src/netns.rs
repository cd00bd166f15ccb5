//! Per netns and CPU: how many of the kernel's counts are accounted for. One value of a per-CPU map.
//! Only the programs write it; user space reads the baseline from it.

use crate::classify::Counters;

/// A netns on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCpu {
    /// Address of this CPU's ip_conntrack_stat span.
    pub stat: u64,
    /// Address of the netns's entry count, 0 if it can't be read.
    pub count: u64,
    /// Inode number, to notice that the address was reused by another netns.
    pub inum: u32,
    /// The id of the netns in counters and events: see [`id`].
    pub id: u32,
    /// Address of its loopback device.
    pub loopback: u64,
    /// 1 once the rest is filled in.
    pub synced: u64,
    /// The kernel's counters when counting began on this CPU.
    pub base: Counters,
    /// How far each counter is accounted for.
    pub accounted: Counters,
    /// The kernel's count of invalid packets at the last loss.
    pub invalid: u32,
    /// 1 in the record of a netns for which there is no room: it lasts for one loss, and what was counted before is not known.
    pub crowded: u32,
}

const _: () = assert!(size_of::<NetCpu>() == 80);

/// The key under which the programs find what a CPU that was offline when the watch began had counted in a netns.
#[must_use]
#[inline(always)]
pub const fn late_key(inode: u32, cpu: u32) -> u64 {
    (inode as u64) << 32 | cpu as u64
}

/// Spreads the generations of one inode number so far apart that no other inode number comes near (the golden ratio).
const GENERATION_STRIDE: u32 = 0x9E37_79B1;
/// How many netns can have the same inode number during a watch before two of them share an id.
const GENERATIONS: u32 = 1024;
/// Inode numbers of namespaces start here (PROC_DYNAMIC_FIRST, fs/proc/generic.c); from 6.17 the first netns has a fixed
/// number just below (PROC_NET_INIT_INO, include/linux/proc_ns.h).
const FIRST_INODE: u32 = 0xEFFF_FF00;
/// How many namespaces can exist at once.
const INODES: u32 = 1 << 20;

/// The id of a netns: its inode number, made distinct from earlier netns that had the same number. `generation` is how
/// many of those there were since the watch began; generation 0 is the plain inode number.
#[must_use]
#[inline(always)]
pub const fn id(inode: u32, generation: u32) -> u32 {
    inode.wrapping_add((generation % GENERATIONS).wrapping_mul(GENERATION_STRIDE))
}

/// Inode number and generation of an id.
#[must_use]
pub const fn split(id: u32) -> (u32, u32) {
    let mut generation = 0;
    while generation < GENERATIONS {
        let inode = id.wrapping_sub(generation.wrapping_mul(GENERATION_STRIDE));
        if inode.wrapping_sub(FIRST_INODE) < INODES {
            return (inode, generation);
        }
        generation += 1;
    }
    (id, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_netns_that_takes_over_an_inode_number_gets_another_id(
            offset in 0..INODES, generation in 0..GENERATIONS,
        ) {
            let inode = FIRST_INODE + offset;
            prop_assert_eq!(split(id(inode, generation)), (inode, generation));
            prop_assert_eq!(id(inode, 0), inode);
        }
    }
}
