//! What is accounted for in a netns on this CPU, and where the kernel keeps its counters.
//! A netns is known by its address; one at a reused address is noticed by its inode number.

use crate::config::config;
use crate::maps::{GENERATIONS, NETS, control};
use crate::percpu;
use crate::read::read;
use aya_ebpf::helpers::generated::bpf_map_lookup_percpu_elem;
use ctwatch_common::classify::{Counters, fresh_base};
use ctwatch_common::config::{NONE, STAT_SPAN};
use ctwatch_common::netns::{NetCpu, id};

/// BPF_NOEXIST
const NOEXIST: u64 = 1;
const STAT_WORDS: usize = STAT_SPAN / 8;

/// The address of the netns's entry count; 0 if it can't be found on this kernel.
#[inline(always)]
fn count_address(net: u64) -> u64 {
    if config!(net_count) != NONE {
        return net + u64::from(config!(net_count));
    }
    // nf_conntrack_net.count is the first field (include/net/netfilter/nf_conntrack.h, 5.12 and later).
    if config!(net_id_address) == 0 {
        return 0;
    }
    let id: u32 = read(config!(net_id_address));
    let generic: u64 = read(net + u64::from(config!(net_gen)));
    if generic == 0 || id == 0 {
        return 0;
    }
    read(generic + 8 * u64::from(id))
}

/// The kernel's counters on this CPU now.
#[inline(always)]
pub fn counters(stat: u64) -> Counters {
    counters_and_invalid(stat).0
}

/// The same, with the kernel's count of invalid packets.
#[inline(always)]
pub fn counters_and_invalid(stat: u64) -> (Counters, u32) {
    let mut span = core::mem::MaybeUninit::<[u64; STAT_WORDS]>::uninit();
    let block = span.as_mut_ptr();
    // SAFETY: `span` is as large as the read, and user space checked the offsets against it.
    unsafe {
        crate::read::read_words(block, stat);
        let invalid = crate::read::field(block, config!(stat_invalid));
        let counters = Counters {
            drop: crate::read::field(block, config!(stat_drop)),
            insert_failed: crate::read::field(block, config!(stat_insert_failed)),
            chaintoolong: if config!(stat_chaintoolong) == NONE {
                0
            } else {
                crate::read::field(block, config!(stat_chaintoolong))
            },
            early_drop: crate::read::field(block, config!(stat_early_drop)),
        };
        (counters, invalid)
    }
}

/// Where counting starts in a netns that is not known on this CPU yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// At the kernel's current counts: those are not ours.
    Current,
    /// At zero: it came up while we watched, so all it has counted is ours.
    Zero,
    /// Nowhere: it is left unknown.
    Unset,
}

/// The baseline of a netns that becomes known by a loss. While user space is still registering those that were there
/// before, the ones it hasn't reached don't count.
#[inline(always)]
pub fn baseline_for_loss() -> Baseline {
    match control() {
        // SAFETY: a pointer into the map's value.
        Some(control) if unsafe { core::ptr::read_volatile(&raw const (*control).watching) } != 0 => {
            Baseline::Zero
        }
        _ => Baseline::Unset,
    }
}

/// The record of the netns of a loss. Where the end of a netns is probed, a known address still stands for the same netns,
/// so its inode number need not be read again.
#[inline(always)]
pub fn for_loss(net: u64) -> Option<*mut NetCpu> {
    if config!(exit_probed) != 0
        && let Some(known) = NETS.get_ptr_mut(net)
        // SAFETY: this CPU's own map value.
        && unsafe { (*known).synced } != 0
    {
        return Some(known);
    }
    lookup(net, inum(net), baseline_for_loss())
}

/// The record of a netns on this CPU; made if the netns is not known yet and the baseline is set.
#[inline(always)]
pub fn lookup(net: u64, inum: u32, baseline: Baseline) -> Option<*mut NetCpu> {
    let mut found = NETS.get_ptr_mut(net);
    if found.is_none() {
        if baseline == Baseline::Unset {
            return None;
        }
        const ZERO: NetCpu = NetCpu {
            stat: 0,
            count: 0,
            inum: 0,
            id: 0,
            loopback: 0,
            synced: 0,
            invalid: 0,
            reserved: 0,
            base: Counters { drop: 0, insert_failed: 0, chaintoolong: 0, early_drop: 0 },
            accounted: Counters { drop: 0, insert_failed: 0, chaintoolong: 0, early_drop: 0 },
        };
        let _ = NETS.insert(net, ZERO, NOEXIST);
        found = NETS.get_ptr_mut(net);
    }
    let entry = found?;
    // SAFETY: this CPU's own map value.
    unsafe {
        if (*entry).synced == 0 || (*entry).inum != inum {
            if baseline == Baseline::Unset {
                return None;
            }
            let stat: u64 = read(net + u64::from(config!(net_stat)));
            if stat == 0 {
                return None;
            }
            let stat = stat.wrapping_add(percpu::offset()?) + u64::from(config!(stat_span));
            let (now, invalid) = counters_and_invalid(stat);
            let base = match baseline {
                Baseline::Current => now,
                Baseline::Zero | Baseline::Unset => Counters {
                    drop: fresh_base(now.drop, 1),
                    insert_failed: fresh_base(now.insert_failed, 1),
                    chaintoolong: fresh_base(now.chaintoolong, 1),
                    early_drop: fresh_base(now.early_drop, 1),
                },
            };
            (*entry).stat = stat;
            (*entry).count = count_address(net);
            (*entry).inum = inum;
            (*entry).id = id(inum, GENERATIONS.get(&inum).copied().unwrap_or(0));
            (*entry).loopback = read(net + u64::from(config!(net_loopback)));
            (*entry).invalid = invalid;
            (*entry).base = base;
            (*entry).accounted = base;
            (*entry).synced = 1;
        }
    }
    Some(entry)
}

/// The record of a netns on another CPU. Only where the configuration says `preempts`: 5.10 has no helper for it.
#[inline(always)]
pub fn on(cpu: u32, net: u64) -> Option<*mut NetCpu> {
    // SAFETY: the map and a live key.
    let found = unsafe {
        bpf_map_lookup_percpu_elem((&raw const NETS).cast_mut().cast(), (&raw const net).cast(), cpu)
    };
    let found = found.cast::<NetCpu>();
    (!found.is_null()).then_some(found)
}

/// The inode number of a netns.
#[inline(always)]
pub fn inum(net: u64) -> u32 {
    read(net + u64::from(config!(net_inum)))
}
