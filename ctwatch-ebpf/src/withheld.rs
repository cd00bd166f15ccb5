//! A refused packet whose refusal is not proven yet. While a context handles a return probe, a softirq that interrupts it gets
//! no probes of its own (kprobe_busy_begin, kernel/kprobes.c), so its packets bear no mark; and the one count that they find
//! may be that of the context below, whose mark is there. That context tells, when its own packet is freed: a count that
//! is left over then was the other packet's.

use crate::emit;
use crate::maps::{Cpu, NETS, add};
use crate::netns;
use crate::packet::Skb;
use crate::percpu::this_cpu;
use ctwatch_common::Cause;
use ctwatch_common::classify::moved;
use ctwatch_common::event::{LossEvent, Record};

/// A packet that was freed, and perhaps refused. One place is enough: a second packet of the same softirq finds two counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Withheld {
    /// Its netns's address; 0 if there is none.
    pub net: u64,
    /// What is reported of it if it was refused.
    pub record: Record,
}

/// Keeps a packet until [`settle`].
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn keep(cpu: *mut Cpu, net: u64, event: &LossEvent, skb: &Skb) {
    // SAFETY: the caller's; all of the record is written.
    unsafe {
        let withheld = &raw mut (*cpu).withheld;
        emit::fill(&raw mut (*withheld).record, event);
        if emit::wants_losses() {
            emit::fill_packet(&raw mut (*withheld).record, event, skb, 0);
        }
        core::ptr::write_volatile(&raw mut (*withheld).net, net);
    }
}

/// Whether a packet waits on this CPU.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn is_waiting(cpu: *mut Cpu) -> bool {
    // SAFETY: the caller's.
    unsafe { core::ptr::read_volatile(&raw const (*cpu).withheld.net) != 0 }
}

/// Counts the packet that waits on this CPU if its netns's counter has moved by more than the `others` that are still on
/// their way; lets it go once nobody else's count could be meant. A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle(others: u64) -> u64 {
    let Some(cpu) = this_cpu() else { return 1 };
    // SAFETY: pointers into map values of this CPU.
    unsafe {
        let withheld = &raw mut (*cpu).withheld;
        let net = core::ptr::read_volatile(&raw const (*withheld).net);
        let Some(state) = NETS.get_ptr_mut(net) else {
            core::ptr::write_volatile(&raw mut (*withheld).net, 0);
            return 1;
        };
        let now = netns::counters((*state).stat);
        let drops = moved(now.drop, (*state).accounted.drop).unwrap_or(0);
        if u64::from(drops) <= others && others != 0 {
            return 0;
        }
        core::ptr::write_volatile(&raw mut (*withheld).net, 0);
        if drops == 0 {
            return 0;
        }
        add(&raw mut (*state).accounted.drop, 1);
        let event = &(*withheld).record.loss;
        let refusals = [Cause::NoMemory, Cause::TcpRace];
        let cause = refusals.into_iter().find(|cause| *cause as u8 == event.kind).unwrap_or(Cause::TableFull);
        emit::count_losses(emit::loss_key(event, cause), 1);
        if emit::wants_losses() {
            emit::push_copy(&raw const (*withheld).record);
        }
    }
    0
}
