//! An entry leaves the table: counted per service port, and kept as a possible victim of `early_drop`.
//! 5.10 calls `nf_ct_delete.part.0` from early_drop and gc; there DYING is already set when it starts.

use crate::config::config;
use crate::emit::{self, Field};
use crate::maps::{ANY, NOBODY, REMEMBERED, VICTIMS, control};
use crate::netns;
use crate::packet::{blank, describe_from_tuple, mark_loopback, service_of_tuple};
use crate::read::{field, read, read_words, service_word, stack_at_entry};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::ProbeContext;
use core::mem::MaybeUninit;
use ctwatch_common::Cause;
use ctwatch_common::config::{CT_SPAN, STACK_ALIGN};
use ctwatch_common::event::{flag, hook};

/// enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
const DYING: u32 = 1 << 9;

#[inline(always)]
pub fn on_entry(ctx: &ProbeContext, count: bool) {
    let Some(ct) = ctx.arg::<u64>(0) else { return };
    let mut span = MaybeUninit::<[u64; CT_SPAN / 8]>::uninit();
    let block = span.as_mut_ptr();
    // SAFETY: the block is as large as the read, and user space checked the offsets against it.
    let (status, net): (u32, u64) = unsafe {
        read_words(block, ct + u64::from(config!(ct_status)));
        (field(block, 0), field(block, config!(ct_net)))
    };
    let is_part = config!(delete_is_part) != 0;
    if status & CONFIRMED == 0 || (status & DYING != 0 && !is_part) {
        return;
    }
    if count {
        let (proto, port) = service_of_tuple(service_word(ct));
        emit::count_flow(netns::inum(net), proto, port, Field::Deletes);
    }
    if !is_part && (ctx.arg::<u32>(1) != Some(0) || ctx.arg::<u32>(2) != Some(0)) {
        // Requested over ctnetlink.
        return;
    }
    let stack = stack_at_entry(ctx) & !(STACK_ALIGN - 1);
    // SAFETY: a pointer into the map's value.
    let by_gc = control().is_some_and(|control| unsafe { (*control).gc_stack == stack });
    if by_gc {
        evicted_by_gc(ct, net);
    } else if status & ASSURED == 0 {
        remember(ct, net, stack);
    }
}

/// `gc_worker` reaps expired entries; one that has not expired yet is evicted, because the table is nearly full.
#[inline(always)]
fn evicted_by_gc(ct: u64, net: u64) {
    if emit::time_left(ct) <= 0 {
        return;
    }
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, netns::baseline_for_loss()) else { return };
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    // SAFETY: the helper has no preconditions; this CPU's own map value.
    unsafe {
        event.at = bpf_ktime_get_ns();
        event.netns = (*state).id;
    }
    event.kind = Cause::GcEvicted as u8;
    event.hook = hook::UNKNOWN;
    let tuple: [u64; 5] = read(ct + u64::from(config!(ct_tuple)));
    describe_from_tuple(&tuple, event);
    mark_loopback(event);
    emit::count_losses(emit::loss_key(event, Cause::GcEvicted), 1);
    if emit::wants_losses() {
        event.flags |= flag::ENTRY;
        // SAFETY: a reserved record.
        emit::push_filled(event, |record| unsafe { emit::describe_entry(ct, record) });
    }
}

/// Keeps the entry for the return of early_drop in this context.
#[inline(always)]
fn remember(ct: u64, net: u64, stack: u64) {
    let mut place = VICTIMS.get_ptr_mut(&stack);
    if place.is_none() {
        let _ = VICTIMS.insert(&stack, &NOBODY, ANY);
        place = VICTIMS.get_ptr_mut(&stack);
    }
    let Some(victims) = place else { return };
    // SAFETY: a pointer into the map's value, of this context alone; the index is masked.
    unsafe {
        let victim = &raw mut (*victims).last[((*victims).seen & (REMEMBERED as u64 - 1)) as usize];
        let tuple = ct + u64::from(config!(ct_tuple));
        read_words(&raw mut (*victim).original, tuple);
        read_words(&raw mut (*victim).reply, tuple + u64::from(config!(ct_reply)));
        let (proto, _) = service_of_tuple((*victim).original[4]);
        let (status, left, tcp_state) = emit::state_of_entry(ct, proto);
        (*victim).status = status;
        (*victim).left = left;
        (*victim).zone = emit::zone_of_entry(ct);
        (*victim).tcp_state = u16::from(tcp_state);
        (*victim).counted = 0;
        (*victims).net = net;
        (*victims).seen += 1;
    }
}
