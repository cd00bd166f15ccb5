//! `nf_conntrack_in(skb, state)`, for `--cause invalid` only: it runs for every packet.
//! A packet that it accepts without giving it an entry is invalid: it passes untracked.

use crate::config::config;
use crate::emit;
use crate::maps::{ANY, PENDING, Pending};
use crate::netns;
use crate::packet::{Skb, blank};
use crate::read::{stack_at_entry, stack_at_its_entry};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use core::mem::MaybeUninit;
use ctwatch_common::Cause;

/// include/uapi/linux/netfilter.h
const NF_ACCEPT: u32 = 1;

#[inline(always)]
pub fn on_entry(ctx: &ProbeContext) {
    let Some(skb) = ctx.arg::<u64>(0) else { return };
    let _ = PENDING.insert(stack_at_entry(ctx), Pending { net: 0, skb, tuple: [0; 5], zone: 0 }, ANY);
}

#[inline(always)]
pub fn on_return(ctx: &RetProbeContext) {
    let key = stack_at_its_entry(ctx);
    let Some(found) = PENDING.get_ptr(key) else { return };
    // SAFETY: a pointer into the map's value, of this context alone.
    let address = unsafe { (*found).skb };
    let _ = PENDING.remove(key);
    if ctx.ret::<u32>() != NF_ACCEPT {
        return;
    }
    let mut skb = Skb::uninit();
    skb.read(address);
    // Not even IP_CT_UNTRACKED, which NOTRACK sets.
    if skb.nfct() != 0 {
        return;
    }
    let net = skb.net();
    if net == 0 {
        return;
    }
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, netns::baseline_for_loss()) else { return };
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    // SAFETY: the helper has no preconditions; this CPU's own map value.
    let loopback = unsafe {
        if config!(event_details) != 0 {
            event.at = bpf_ktime_get_ns();
        }
        event.netns = (*state).id;
        (*state).loopback
    };
    event.kind = Cause::Invalid as u8;
    skb.describe_path(false, loopback, event);
    skb.describe_tuple(event);
    emit::count_losses(emit::loss_key(event, Cause::Invalid), 1);
    if emit::wants_losses() {
        emit::push_packet(event, &skb, 0);
    }
}
