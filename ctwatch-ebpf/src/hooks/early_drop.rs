//! `early_drop` runs only when the table is full (`__nf_conntrack_alloc`, net/netfilter/nf_conntrack_core.c):
//! it returns true when it made room. How many it removed is read from the kernel's own counter on this CPU.

use crate::config::config;
use crate::emit;
use crate::hooks::kfree_skb::EMPTY;
use crate::maps::{VICTIMS, add};
use crate::marks;
use crate::netns;
use crate::packet::describe_from_tuple;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::RetProbeContext;
use ctwatch_common::Cause;
use ctwatch_common::classify::moved;
use ctwatch_common::config::STACK_ALIGN;
use ctwatch_common::event::hook;

#[inline(always)]
pub fn on_return(ctx: &RetProbeContext) {
    let made_room = ctx.ret::<u64>() as u8 != 0;
    let Some(cpu) = netns::this_cpu() else { return };
    if !made_room {
        // SAFETY: this CPU's own map value, and the kernel's own registers.
        unsafe { marks::leave(cpu, (*ctx.regs).rsp) };
        return;
    }
    // SAFETY: the kernel's own registers.
    let stack = unsafe { (*ctx.regs).rsp } & !(STACK_ALIGN - 1);
    let Some(victims) = VICTIMS.get_ptr_mut(stack) else { return };
    // SAFETY: a pointer into the map's value, of this context alone.
    unsafe {
        let net = (*victims).net;
        let inum = netns::inum(net);
        let seen = (*victims).seen;
        let mut evicted = 1;
        if config!(has_stat) != 0 {
            let Some(state) = netns::lookup(net, inum, netns::start_of_a_loss()) else { return };
            let now = netns::counters((*state).stat);
            let Some(delta) = moved(now.early_drop, (*state).accounted.early_drop) else { return };
            evicted = u64::from(delta);
            add(&raw mut (*state).accounted.early_drop, delta);
        }
        // The newest victims are early_drop's; older ones were deleted in this context for other reasons.
        let mut left = evicted;
        for back in 1..=4u64 {
            if left == 0 || back > seen {
                break;
            }
            let index = (seen - back) & 3;
            let mut event = EMPTY;
            event.at = bpf_ktime_get_ns();
            event.netns = inum;
            event.kind = Cause::Evicted as u8;
            event.hook = hook::UNKNOWN;
            let tuple = (*victims).last[index as usize].tuple;
            describe_from_tuple(&tuple, &mut event);
            emit::count_losses(emit::loss_key(&event, Cause::Evicted), Cause::Evicted, 1);
            emit::push(&event, Cause::Evicted as u8);
            left -= 1;
        }
        if left != 0 {
            emit::count_unattributed(inum, Cause::Evicted, left);
        }
        (*victims).seen = 0;
    }
}
