//! The other way to see a full table: `init_conntrack` (or `__nf_conntrack_alloc`) returns an error.
//! Arguments are carried from entry to return by stack pointer: unique across preempted tasks and softirqs.

use crate::config::config;
use crate::emit;
use crate::hooks::kfree_skb::{refusal, refused_for_want_of_room};
use crate::maps::{PENDING, Pending};
use crate::marks;
use crate::netns;
use crate::packet::{Skb, blank, describe_from_tuple};
use crate::read::read;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use core::mem::MaybeUninit;
use ctwatch_common::event::hook;

/// BPF_ANY
const ANY: u64 = 0;
/// MAX_ERRNO, include/linux/err.h
const MAX_ERRNO: u64 = 4095;
/// On x86-64 the return probe runs after the return address was popped.
const RETURN_ADDRESS: u64 = 8;

#[inline(always)]
pub fn on_entry(ctx: &ProbeContext) {
    let (Some(net), Some(tuple)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(2)) else { return };
    let on_alloc = config!(pair_on_alloc) != 0;
    if on_alloc && ctx.arg::<u32>(5) == Some(0) {
        // ctnetlink creates entries with hash 0, and no counter counts its failures.
        return;
    }
    let skb = if on_alloc { 0 } else { ctx.arg::<u64>(3).unwrap_or(0) };
    let pending = Pending { net, skb, tuple: read(tuple) };
    // SAFETY: the kernel's own registers.
    let _ = PENDING.insert(unsafe { (*ctx.regs).rsp }, pending, ANY);
}

#[inline(always)]
pub fn on_return(ctx: &RetProbeContext) {
    // SAFETY: the kernel's own registers.
    let key = unsafe { (*ctx.regs).rsp } - RETURN_ADDRESS;
    let Some(found) = PENDING.get_ptr(key) else { return };
    // SAFETY: a pointer into the map's value, of this context alone.
    let Pending { net, skb: address, tuple } = unsafe { *found };
    let _ = PENDING.remove(key);
    let result: u64 = ctx.ret();
    if result < u64::MAX - MAX_ERRNO + 1 || config!(by_kfree_skb) != 0 {
        return;
    }
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, netns::start_of_a_loss()) else { return };
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    // The mark says what early_drop found, whatever room there is by now. It stays until the packet is freed.
    // SAFETY: this CPU's own map values.
    let full = unsafe { refused_for_want_of_room(marks::find().mine, state, event) };
    let cause = refusal(full);
    // SAFETY: the helper has no preconditions.
    event.at = unsafe { bpf_ktime_get_ns() };
    event.kind = cause as u8;
    event.hook = hook::UNKNOWN;
    // SAFETY: this CPU's own map values.
    let loopback = unsafe {
        event.netns = (*state).id;
        (*state).loopback
    };
    if address != 0 {
        let mut skb = Skb::uninit();
        skb.read(address);
        skb.describe_path(false, loopback, event);
    }
    describe_from_tuple(&tuple, event);
    emit::count_losses(emit::loss_key(event, cause), 1);
    if emit::wants_losses() {
        emit::push(event);
    }
}
