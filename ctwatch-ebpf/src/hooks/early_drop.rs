//! `early_drop` runs only when the table is full (`__nf_conntrack_alloc`, net/netfilter/nf_conntrack_core.c):
//! it returns true when it made room. How many it removed is read from the kernel's own counter on this CPU.

use crate::config::config;
use crate::emit;
use crate::maps::{REMEMBERED, VICTIMS, add};
use crate::marks;
use crate::netns;
use crate::packet::{blank, describe_from_tuple, describe_reply, mark_loopback};
use crate::percpu::this_cpu;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::RetProbeContext;
use core::mem::MaybeUninit;
use ctwatch_common::Cause;
use ctwatch_common::classify::moved;
use ctwatch_common::config::STACK_ALIGN;
use ctwatch_common::event::{flag, hook};

#[inline(always)]
pub fn on_return(ctx: &RetProbeContext) {
    let made_room = ctx.ret::<u64>() as u8 != 0;
    let Some(cpu) = this_cpu() else { return };
    // SAFETY: the kernel's own registers.
    let pointer = unsafe { (*ctx.regs).rsp };
    if !made_room {
        // SAFETY: this CPU's own map value.
        unsafe { marks::leave(cpu, pointer) };
        return;
    }
    let stack = pointer & !(STACK_ALIGN - 1);
    let Some(victims) = VICTIMS.get_ptr_mut(&stack) else { return };
    // SAFETY: pointers into map values, of this context alone.
    unsafe {
        let net = (*victims).net;
        let inum = netns::inum(net);
        let mut evicted = 1;
        let mut id = inum;
        if config!(has_stat) != 0 {
            let Some(state) = netns::lookup(net, inum, netns::baseline_for_eviction()) else { return };
            let now = netns::counters((*state).stat);
            let Some(delta) = moved(now.early_drop, (*state).accounted.early_drop) else { return };
            evicted = u64::from(delta);
            id = (*state).id;
            add(&raw mut (*state).accounted.early_drop, delta);
        }
        let at = bpf_ktime_get_ns();
        // The newest are early_drop's; older ones were deleted in this context for other reasons. early_drop reaps
        // expired entries too, which are no victims; but a victim may have expired just after it looked.
        let left = report_victims(stack, u64::from(id), at, evicted);
        let left = report_victims(stack, u64::from(id) | EXPIRED, at, left);
        if left != 0 {
            emit::count_unattributed(id, Cause::Evicted, left);
        }
        (*victims).seen = 0;
        if emit::wants_losses() {
            marks::evicted(cpu, pointer, at);
        }
    }
}

/// Reports up to `wanted` victims, newest first, and returns how many it did not find. `sort` is the netns's id, and above
/// it whether expired ones are meant. A global function, which the verifier goes through once for both sorts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_victims(stack: u64, sort: u64, at: u64, wanted: u64) -> u64 {
    let Some(victims) = VICTIMS.get_ptr_mut(&stack) else { return wanted };
    let mut left = wanted;
    for back in 1..=REMEMBERED as u64 {
        // SAFETY: a pointer into the map's value, of this context alone; the index is masked.
        unsafe {
            let seen = (*victims).seen;
            if left == 0 || back > seen {
                break;
            }
            let index = (seen - back) & (REMEMBERED as u64 - 1);
            let victim = &raw mut (*victims).last[index as usize];
            let is_expired = u64::from((*victim).left <= 0);
            if (*victim).counted == 0 && is_expired == sort >> 32 {
                (*victim).counted = 1;
                report_victim(stack, index, sort & u64::from(u32::MAX), at);
                left -= 1;
            }
        }
    }
    left
}

/// Victims that had expired when they were deleted.
const EXPIRED: u64 = 1 << 32;

/// Reports one remembered victim. A global function: the verifier goes through it once, not once for each victim.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_victim(stack: u64, index: u64, netns: u64, at: u64) -> u64 {
    let Some(victims) = VICTIMS.get_ptr_mut(&stack) else { return 1 };
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    event.at = at;
    event.netns = netns as u32;
    event.kind = Cause::Evicted as u8;
    event.hook = hook::UNKNOWN;
    // SAFETY: a pointer into the map's value, of this context alone; the index is masked.
    let victim = unsafe { &raw const (*victims).last[(index & (REMEMBERED as u64 - 1)) as usize] };
    // SAFETY: the same.
    let tuple = unsafe { (*victim).original };
    describe_from_tuple(&tuple, event);
    mark_loopback(event);
    emit::count_losses(emit::loss_key(event, Cause::Evicted), 1);
    if emit::wants_losses() {
        event.flags |= flag::ENTRY;
        emit::push_filled(event, |record| {
            // SAFETY: the victim's, and a reserved record.
            unsafe {
                let reply = (*victim).reply;
                describe_reply(&reply, &raw mut (*record).entry);
                (*record).entry.status = (*victim).status;
                (*record).entry.left = (*victim).left;
                (*record).entry.tcp_state = (*victim).tcp_state as u8;
                emit::fill_zone(record, (*victim).zone);
            }
        });
    }
    0
}
