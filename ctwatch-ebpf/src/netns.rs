//! What is accounted for in a netns on this CPU, and where the kernel keeps its counters.
//! A netns is known by its address; one at a reused address is noticed by its inode number.

use crate::config::config;
use crate::maps::{CROWD, GENERATIONS, LATE_BASES, NETS, add, control};
use crate::percpu;
use crate::read::read;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_map_lookup_percpu_elem};
use ctwatch_common::classify::{Counters, fresh_base};
use ctwatch_common::config::{NONE, STAT_SPAN};
use ctwatch_common::netns::{NetCpu, id, late_key};

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
    /// The same, and a packet was just lost.
    Loss,
    /// The same, and an entry was just evicted.
    Eviction,
    /// Nowhere: it is left unknown.
    Unset,
}

/// The baseline of a netns that becomes known by a loss. While user space is still registering those that were there
/// before, the ones it hasn't reached don't count.
#[inline(always)]
pub fn baseline_for_loss() -> Baseline {
    if watching() != 0 { Baseline::Loss } else { Baseline::Unset }
}

/// The same for one that becomes known by an eviction.
#[inline(always)]
pub fn baseline_for_eviction() -> Baseline {
    if watching() != 0 { Baseline::Eviction } else { Baseline::Unset }
}

/// Since when losses count, in jiffies; 0 while user space is still taking the baselines.
#[inline(always)]
pub fn watching() -> u64 {
    // SAFETY: a pointer into the map's value.
    control().map_or(0, |control| unsafe { core::ptr::read_volatile(&raw const (*control).watching) })
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

const UNKNOWN: NetCpu = NetCpu {
    stat: 0,
    count: 0,
    inum: 0,
    id: 0,
    loopback: 0,
    synced: 0,
    invalid: 0,
    crowded: 0,
    base: NOTHING,
    accounted: NOTHING,
};
const NOTHING: Counters = Counters { drop: 0, insert_failed: 0, chaintoolong: 0, early_drop: 0 };

/// The record of a netns on this CPU; made if the netns is not known yet and the baseline is set.
#[inline(always)]
pub fn lookup(net: u64, inum: u32, baseline: Baseline) -> Option<*mut NetCpu> {
    let mut found = NETS.get_ptr_mut(net);
    if found.is_none() {
        if baseline == Baseline::Unset {
            return None;
        }
        let _ = NETS.insert(net, UNKNOWN, NOEXIST);
        found = NETS.get_ptr_mut(net);
        if found.is_none() {
            crowd(net, u64::from(baseline == Baseline::Eviction));
            return CROWD.get_ptr_mut(0);
        }
    }
    let entry = found?;
    // SAFETY: this CPU's own map value.
    unsafe {
        if (*entry).synced == 0 || (*entry).inum != inum {
            if baseline == Baseline::Unset {
                return None;
            }
            let how = match baseline {
                Baseline::Current => BEGIN_NOW,
                Baseline::Loss => BEGIN_FRESH | OWN_LOSS,
                Baseline::Eviction => BEGIN_FRESH | OWN_EVICTION,
                Baseline::Zero | Baseline::Unset => BEGIN_FRESH,
            };
            if begin(net, how) != 0 {
                return None;
            }
        }
    }
    Some(entry)
}

const BEGIN_NOW: u64 = 0;
const BEGIN_FRESH: u64 = 1;
const OWN_LOSS: u64 = 2;
const OWN_EVICTION: u64 = 4;

/// Begins to count in a netns on this CPU; 0 if that was possible. A global function: it runs once for each netns and CPU,
/// and the verifier need not go through it in each of its callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin(net: u64, how: u64) -> u64 {
    let Some(entry) = NETS.get_ptr_mut(net) else { return 1 };
    let Some(now) = describe(net, entry) else { return 1 };
    // SAFETY: this CPU's own map value; the helper has no preconditions.
    unsafe {
        let inum = (*entry).inum;
        let base = if how == BEGIN_NOW {
            now
        } else if (*entry).id == inum
            && let Some(late) = LATE_BASES.get_ptr(late_key(inum, bpf_get_smp_processor_id()))
        {
            // This CPU was offline when the watch began, and had counted this much.
            *late
        } else {
            let lost = u32::from(how & OWN_LOSS != 0);
            Counters {
                drop: fresh_base(now.drop, lost),
                insert_failed: fresh_base(now.insert_failed, lost),
                chaintoolong: fresh_base(now.chaintoolong, lost),
                early_drop: fresh_base(now.early_drop, u32::from(how & OWN_EVICTION != 0)),
            }
        };
        (*entry).base = base;
        (*entry).accounted = base;
        (*entry).synced = 1;
    }
    0
}

/// A loss in a netns for which there is no room. What it counted before is not known, so only what this moment proves counts:
/// a mark of early_drop's, or an eviction.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crowd(net: u64, evicted: u64) -> u64 {
    let Some(entry) = CROWD.get_ptr_mut(0) else { return 1 };
    // SAFETY: this CPU's own map value, and a pointer into the control page.
    unsafe {
        *entry = UNKNOWN;
        let Some(now) = describe(net, entry) else { return 1 };
        (*entry).base = now;
        // Who asked for the record looks for the mark: another call from here would be too much for the stack.
        (*entry).accounted = Counters { early_drop: now.early_drop.wrapping_sub(evicted as u32), ..now };
        (*entry).synced = 1;
        (*entry).crowded = 1;
        if let Some(control) = control() {
            add(&raw mut (*control).crowded, 1);
        }
    }
    0
}

/// Fills in what a record says of its netns; returns the kernel's counters on this CPU.
#[inline(always)]
fn describe(net: u64, entry: *mut NetCpu) -> Option<Counters> {
    let stat: u64 = read(net + u64::from(config!(net_stat)));
    if stat == 0 {
        return None;
    }
    let stat = stat.wrapping_add(percpu::offset()?) + u64::from(config!(stat_span));
    let (now, invalid) = counters_and_invalid(stat);
    let inum = inum(net);
    // SAFETY: this CPU's own map value.
    unsafe {
        (*entry).stat = stat;
        (*entry).count = count_address(net);
        (*entry).inum = inum;
        (*entry).id = current_id(inum);
        (*entry).loopback = read(net + u64::from(config!(net_loopback)));
        (*entry).invalid = invalid;
    }
    Some(now)
}

/// Whether the kernel has counted a loss in a netns on this CPU.
#[inline(always)]
pub fn has_counted(net: u64) -> bool {
    let stat: u64 = read(net + u64::from(config!(net_stat)));
    let Some(offset) = percpu::offset() else { return false };
    let now = counters(stat.wrapping_add(offset) + u64::from(config!(stat_span)));
    stat != 0 && now.drop | now.insert_failed | now.early_drop | now.chaintoolong != 0
}

/// The id of the netns that has this inode number now.
#[inline(always)]
pub fn current_id(inum: u32) -> u32 {
    // SAFETY: a pointer into the map's value.
    id(inum, GENERATIONS.get_ptr(inum).map_or(0, |generation| unsafe { *generation }))
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
