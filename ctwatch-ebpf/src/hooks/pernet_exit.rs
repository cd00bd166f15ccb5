//! `nf_conntrack_pernet_exit(struct list_head *)`: namespaces are destroyed, and no packet of theirs is in flight any more
//! (net/netfilter/nf_conntrack_standalone.c, 5.10 to 7.3). The last chance to read what the kernel counted there.

use crate::config::config;
use crate::emit;
use crate::maps::{ANY, GENERATIONS, NETS, OFFSETS, add, control};
use crate::netns;
use crate::packet::blank;
use crate::read::read;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::ProbeContext;
use core::mem::MaybeUninit;
use ctwatch_common::config::MAX_CPUS;
use ctwatch_common::event::{KIND_NETNS_GONE, hook};
use ctwatch_common::netns::id;

/// Namespaces are destroyed in batches. Those of a batch that are beyond this number are noticed by user space instead.
const BATCH: u32 = 512 * STEP;
const STEP: u32 = 32;

#[inline(always)]
pub fn on_entry(ctx: &ProbeContext) {
    let Some(list) = ctx.arg::<u64>(0) else { return };
    // list_head.next comes first.
    let mut node: u64 = read(list);
    for _ in 0..BATCH / STEP {
        if node == list || node == 0 {
            break;
        }
        node = all_gone(list, node);
    }
}

/// Goes through a part of the list from this node on; returns the next. A global function, so that the verifier goes through
/// the loop once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn all_gone(list: u64, from: u64) -> u64 {
    let mut node = from;
    for _ in 0..STEP {
        if node == list || node == 0 {
            break;
        }
        gone(node.wrapping_sub(u64::from(config!(net_exit_list))));
        node = read(node);
    }
    node
}

/// Reports what a netns counted, and starts the next generation of its inode number. A global function, so that the
/// verifier doesn't go through it once for each netns of a batch.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn gone(net: u64) -> u64 {
    // When the module is unloaded, this runs for namespaces that live on.
    if read::<u32>(net + u64::from(config!(net_references))) != 0 {
        return 1;
    }
    let inum = netns::inum(net);
    let generation = GENERATIONS.get_ptr(inum).map_or(0, |generation| {
        // SAFETY: a pointer into the map's value.
        unsafe { *generation }
    });
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    // SAFETY: the helper has no preconditions.
    event.at = unsafe { bpf_ktime_get_ns() };
    event.netns = id(inum, generation);
    event.kind = KIND_NETNS_GONE;
    event.hook = hook::UNKNOWN;
    let stat: u64 = read(net + u64::from(config!(net_stat)));
    let stat = stat + u64::from(config!(stat_span));
    let mut sums = [0u64; 4];
    let mut cpu = 0;
    // The condition is at the end and nothing jumps into the middle: 5.10 accepts no other loop.
    loop {
        let Some(offset) = OFFSETS.get_ptr(cpu) else { break };
        // SAFETY: a pointer into the map's value.
        let here = netns::counters(stat.wrapping_add(unsafe { *offset }));
        // A CPU without an offset has counted nothing for us: the read fails and gives zeroes.
        sums[0] += u64::from(here.drop);
        sums[1] += u64::from(here.early_drop);
        sums[2] += u64::from(here.insert_failed);
        sums[3] += u64::from(here.chaintoolong);
        cpu += 1;
        if cpu >= MAX_CPUS || cpu >= config!(cpus) {
            break;
        }
    }
    // SAFETY: both are 16 bytes of plain data.
    unsafe {
        event.src = core::mem::transmute::<[u64; 2], [u8; 16]>([sums[0], sums[1]]);
        event.dst = core::mem::transmute::<[u64; 2], [u8; 16]>([sums[2], sums[3]]);
    }
    if GENERATIONS.insert(inum, generation + 1, ANY).is_err()
        && let Some(control) = control()
    {
        // SAFETY: a pointer into the control page.
        unsafe { add(&raw mut (*control).unnumbered, 1) };
    }
    let _ = NETS.remove(net);
    emit::push(event);
    0
}
