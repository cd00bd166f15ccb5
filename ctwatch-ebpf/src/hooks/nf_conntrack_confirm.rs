//! `__nf_conntrack_confirm(skb)`: once for every new flow, after its first packet has passed the firewall.
//! Flows are counted at entry; the few that fail are counted as failed too, where that shows.

use crate::config::config;
use crate::emit::{self, Field};
use crate::marks;
use crate::netns;
use crate::owner;
use crate::packet::{Skb, blank, describe_from_tuple, service_of_tuple};
use crate::percpu::this_cpu;
use crate::read::{read, service_word, stack_at_entry};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::ProbeContext;
use core::mem::MaybeUninit;
use ctwatch_common::event::{KIND_PUSHER, hook};
use ctwatch_common::slot::KIND_FLOWS;

/// From IP_CT_IS_REPLY on the packet travels in the reply direction and confirms nothing.
const IS_REPLY: u64 = 3;

#[inline(always)]
pub fn on_entry(ctx: &ProbeContext) {
    let Some(skb) = ctx.arg::<u64>(0) else { return };
    let nfct: u64 = read(skb + u64::from(config!(skb_nfct_absolute)));
    let ct = nfct & !7;
    if ct == 0 || nfct & 7 >= IS_REPLY {
        return;
    }
    let net: u64 = read(ct + u64::from(config!(ct_status)) + u64::from(config!(ct_net)));
    let inum = netns::inum(net);
    let (proto, port) = service_of_tuple(service_word(ct));
    emit::count_flow(inum, proto, port, Field::Inserts);
    if emit::wants_losses() || emit::wants_inserts() {
        describe_flow(ctx, skb, ct, inum);
    }
}

/// What single events need of a new flow: which victim was evicted for it, the insert itself, the owner of its socket.
#[inline(always)]
fn describe_flow(ctx: &ProbeContext, address: u64, ct: u64, inum: u32) {
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    event.netns = inum;
    event.hook = hook::UNKNOWN;
    let tuple: [u64; 5] = read(ct + u64::from(config!(ct_tuple)));
    describe_from_tuple(&tuple, event);
    if emit::wants_losses()
        && let Some(cpu) = this_cpu()
        // SAFETY: this CPU's own map value.
        && let Some(at) = unsafe { marks::take_eviction(cpu, stack_at_entry(ctx)) }
    {
        event.at = at;
        event.kind = KIND_PUSHER;
        emit::push_of_zone(event, emit::zone_of_entry(ct));
    }
    if emit::wants_inserts() {
        // SAFETY: the helper has no preconditions.
        event.at = unsafe { bpf_ktime_get_ns() };
        event.kind = KIND_FLOWS;
        emit::push_of_zone(event, emit::zone_of_entry(ct));
    }
    if config!(owners) != 0 {
        let mut skb = Skb::uninit();
        skb.read(address);
        owner::note(skb.socket(), owner::flow(event));
    }
}
