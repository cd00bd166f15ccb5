//! What is accounted for in a netns on this CPU, and where its counters lie.
//! The per-CPU offset is found without symbols: an element of our own per-CPU map, less the map's per-CPU base.

use crate::config::config;
use crate::maps::{CPU, Cpu, LIVES, NETS, OFFSETS, control};
use crate::marks::number;
use crate::read::read;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_map_lookup_percpu_elem};
use ctwatch_common::classify::{Counters, fresh_base};
use ctwatch_common::config::{NONE, STAT_SPAN};
use ctwatch_common::netns::{NetCpu, id};

/// BPF_NOEXIST
const NOEXIST: u64 = 1;
const STAT_WORDS: usize = STAT_SPAN / 8;

/// This CPU's record.
#[inline(always)]
pub fn this_cpu() -> Option<*mut Cpu> {
    CPU.get_ptr_mut(0)
}

/// What to add to a per-CPU pointer to reach this CPU's copy (this_cpu_off).
#[inline(always)]
fn per_cpu_offset() -> Option<u64> {
    let cpu = this_cpu()?;
    // SAFETY: this CPU's own map value.
    unsafe {
        if (*cpu).offset != 0 {
            return Some((*cpu).offset);
        }
        let map = number(cpu, (&raw const CPU).cast());
        let own = number(cpu, cpu.cast_const().cast());
        let base: u64 = read(map + u64::from(config!(bpf_array_pptrs)));
        if base == 0 {
            return None;
        }
        (*cpu).offset = own.wrapping_sub(base);
        // For whoever adds up all CPUs.
        if let Some(offset) = OFFSETS.get_ptr_mut(bpf_get_smp_processor_id()) {
            *offset = (*cpu).offset;
        }
        Some((*cpu).offset)
    }
}

/// The address of the netns's entry count; 0 if this kernel doesn't let us find it.
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

/// The same, and its count of invalid packets.
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

/// How a netns met for the first time on this CPU starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Everything up to now was counted before us.
    Present,
    /// It came up while we watched: all it has counted is ours.
    Fresh,
    /// User space is still going through the netns: those it hasn't reached don't count yet.
    NotYet,
}

/// How a loss that comes now starts a netns it is the first to name.
#[inline(always)]
pub fn start_of_a_loss() -> Start {
    match control() {
        // SAFETY: a pointer into the map's value.
        Some(control) if unsafe { core::ptr::read_volatile(&raw const (*control).watching) } != 0 => {
            Start::Fresh
        }
        _ => Start::NotYet,
    }
}

/// The record of a netns that is losing something. If it is told when a netns goes, an address that is known stands for the
/// same netns still, and its inode number need not be read again.
#[inline(always)]
pub fn of_a_loss(net: u64) -> Option<*mut NetCpu> {
    if config!(exit_probed) != 0
        && let Some(known) = NETS.get_ptr_mut(net)
        // SAFETY: this CPU's own map value.
        && unsafe { (*known).synced } != 0
    {
        return Some(known);
    }
    lookup(net, inum(net), start_of_a_loss())
}

/// The record of a netns on this CPU, filled in.
#[inline(always)]
pub fn lookup(net: u64, inum: u32, start: Start) -> Option<*mut NetCpu> {
    let mut found = NETS.get_ptr_mut(net);
    if found.is_none() {
        if start == Start::NotYet {
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
            if start == Start::NotYet {
                return None;
            }
            let stat: u64 = read(net + u64::from(config!(net_stat)));
            if stat == 0 {
                return None;
            }
            let stat = stat.wrapping_add(per_cpu_offset()?) + u64::from(config!(stat_span));
            let (now, invalid) = counters_and_invalid(stat);
            let base = match start {
                Start::Present => now,
                Start::Fresh | Start::NotYet => Counters {
                    drop: fresh_base(now.drop, 1),
                    insert_failed: fresh_base(now.insert_failed, 1),
                    chaintoolong: fresh_base(now.chaintoolong, 1),
                    early_drop: fresh_base(now.early_drop, 1),
                },
            };
            (*entry).stat = stat;
            (*entry).count = count_address(net);
            (*entry).inum = inum;
            (*entry).id = id(inum, LIVES.get(&inum).copied().unwrap_or(0));
            (*entry).loopback = read(net + u64::from(config!(net_loopback)));
            (*entry).invalid = invalid;
            (*entry).base = base;
            (*entry).accounted = base;
            (*entry).synced = 1;
        }
    }
    Some(entry)
}

/// The record of a netns on another CPU. Where [`crate::config`] says `preempts` only: 5.10 can't look there.
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
