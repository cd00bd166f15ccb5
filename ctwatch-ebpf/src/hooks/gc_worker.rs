//! `gc_worker` runs in a kernel worker, never twice at once. All that `nf_ct_delete` removes on its stack, between its entry
//! and its return, is reaped or evicted by it; a softirq that interrupts it runs on another stack.

use crate::maps::control;
use crate::read::stack_at_entry;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use ctwatch_common::config::STACK_ALIGN;

#[inline(always)]
pub fn on_entry(ctx: &ProbeContext) {
    set(stack_at_entry(ctx) & !(STACK_ALIGN - 1));
}

#[inline(always)]
pub fn on_return(_ctx: &RetProbeContext) {
    set(0);
}

#[inline(always)]
fn set(stack: u64) {
    if let Some(control) = control() {
        // SAFETY: a pointer into the map's value.
        unsafe { core::ptr::write_volatile(&raw mut (*control).gc_stack, stack) };
    }
}
