//! An entry leaves the table: counted per service port, and kept as a possible victim of `early_drop`.
//! 5.10 calls `nf_ct_delete.part.0` from early_drop and gc; there DYING is already set when it starts.

use crate::config::config;
use crate::emit;
use crate::maps::{VICTIMS, Victim, Victims};
use crate::netns;
use crate::packet::service_of_tuple;
use crate::read::{field, read, read_words};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::programs::ProbeContext;
use core::mem::MaybeUninit;
use ctwatch_common::config::{CT_SPAN, STACK_ALIGN};

/// BPF_ANY
const ANY: u64 = 0;
/// enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
const DYING: u32 = 1 << 9;
/// The last word of a tuple holds port and protocol.
const TUPLE_LAST: u64 = 32;

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
        let last: u64 = read(ct + u64::from(config!(ct_tuple)) + TUPLE_LAST);
        let (proto, port) = service_of_tuple(last);
        emit::count_flow(netns::inum(net), proto, port, false);
    }
    if status & ASSURED != 0 {
        return;
    }
    if !is_part && (ctx.arg::<u32>(1) != Some(0) || ctx.arg::<u32>(2) != Some(0)) {
        // Someone asked for it over ctnetlink.
        return;
    }
    let timeout: u32 = read(ct + u64::from(config!(ct_timeout)));
    // SAFETY: the helper has no preconditions.
    if timeout.wrapping_sub(unsafe { bpf_jiffies64() } as u32).cast_signed() <= 0 {
        return;
    }
    remember(ctx, ct, net);
}

/// Keeps the tuple for early_drop's return in this context.
#[inline(always)]
fn remember(ctx: &ProbeContext, ct: u64, net: u64) {
    // SAFETY: the kernel's own registers.
    let stack = unsafe { (*ctx.regs).rsp } & !(STACK_ALIGN - 1);
    let mut place = VICTIMS.get_ptr_mut(stack);
    if place.is_none() {
        const NOBODY: Victims = Victims { net: 0, seen: 0, last: [Victim { tuple: [0; 5] }; 4] };
        let _ = VICTIMS.insert(stack, NOBODY, ANY);
        place = VICTIMS.get_ptr_mut(stack);
    }
    let Some(victims) = place else { return };
    // SAFETY: a pointer into the map's value, of this context alone; the index is masked.
    unsafe {
        let index = ((*victims).seen & 3) as usize;
        read_words(&raw mut (*victims).last[index].tuple, ct + u64::from(config!(ct_tuple)));
        (*victims).net = net;
        (*victims).seen += 1;
    }
}
