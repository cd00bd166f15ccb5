//! The other way to see a full table: `init_conntrack` (or `__nf_conntrack_alloc`) returns an error.
//! Arguments are carried from entry to return by stack pointer: unique across preempted tasks and softirqs.

use crate::config::config;
use crate::emit;
use crate::hooks::kfree_skb::{refusal, refused_by_full_table};
use crate::maps::{ANY, PENDING, Pending, REPORTED};
use crate::marks;
use crate::netns;
use crate::packet::{Skb, blank, describe_from_tuple};
use crate::read::{read, stack_at_entry, stack_at_its_entry};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use core::mem::MaybeUninit;
use ctwatch_common::config::NONE;
use ctwatch_common::event::{hook, zone};

/// MAX_ERRNO, include/linux/err.h
const MAX_ERRNO: u64 = 4095;
/// NF_CT_FLAG_MARK in the third byte of struct nf_conntrack_zone, include/net/netfilter/nf_conntrack_zones.h
const FLAG_MARK: u32 = 1 << 16;

#[inline(always)]
pub fn on_entry(ctx: &ProbeContext) {
    let (Some(net), Some(tuple)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(2)) else { return };
    let on_alloc = config!(pair_on_alloc) != 0;
    if on_alloc && ctx.arg::<u32>(5) == Some(0) {
        // ctnetlink creates entries with hash 0, and no counter counts its failures.
        return;
    }
    let skb = if on_alloc { 0 } else { ctx.arg::<u64>(3).unwrap_or(0) };
    let zone = u64::from(wanted_zone(ctx.arg::<u64>(1).unwrap_or(0), on_alloc));
    let pending = Pending { net, skb, tuple: read(tuple), zone };
    let _ = PENDING.insert(stack_at_entry(ctx), pending, ANY);
}

#[inline(always)]
pub fn on_return(ctx: &RetProbeContext) {
    let key = stack_at_its_entry(ctx);
    let Some(found) = PENDING.get_ptr(key) else { return };
    // SAFETY: a pointer into the map's value, of this context alone.
    let Pending { net, skb: address, tuple, zone } = unsafe { *found };
    let _ = PENDING.remove(key);
    let result: u64 = ctx.ret();
    if result < u64::MAX - MAX_ERRNO + 1 || config!(by_kfree_skb) != 0 {
        return;
    }
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, netns::baseline_for_loss()) else { return };
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    // The mark says what early_drop found, even if there is room again by now. It stays until the packet is freed.
    // SAFETY: this CPU's own map values.
    let full = unsafe { refused_by_full_table(marks::find().mine, state, event) };
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
        // A probe hit inside another program is skipped: a packet that isn't noted here is reported when it is freed.
        let _ = REPORTED.insert(address, 1, ANY);
    }
    describe_from_tuple(&tuple, event);
    emit::count_losses(emit::loss_key(event, cause), 1);
    if emit::wants_losses() {
        emit::push_of_zone(event, zone as u32);
    }
}

/// The zone that a new flow is to be tracked in: `__nf_conntrack_alloc` is given it, `init_conntrack` the packet's template,
/// which may say that it is the packet's mark (nf_ct_zone_tmpl, include/net/netfilter/nf_conntrack_zones.h): then it is
/// unknown.
#[inline(always)]
fn wanted_zone(argument: u64, on_alloc: bool) -> u32 {
    if config!(ct_zone) == NONE {
        0
    } else if on_alloc {
        read(argument)
    } else if argument == 0 {
        u32::from(zone::BOTH) << 24
    } else {
        let zone: u32 = read(argument + u64::from(config!(ct_zone)));
        if zone & FLAG_MARK == 0 { zone } else { 0 }
    }
}
