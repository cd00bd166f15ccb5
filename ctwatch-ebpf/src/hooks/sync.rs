//! Run by user space (BPF_PROG_TEST_RUN), never attached: learns where a netns's counters stand on this CPU.
//! It runs with interrupts as the kernel left them, so what it notes is exact for this CPU.

use crate::config::config;
use crate::maps::control;
use crate::netns::{self, Start};
use crate::read::read;
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::programs::RawTracePointContext;

/// First argument: 0 finds the caller's netns, 1 takes its present counts as the base, 2 takes it as new.
#[inline(always)]
pub fn run(ctx: &RawTracePointContext) -> i32 {
    let Some(control) = control() else { return 1 };
    let what: u64 = ctx.arg(0);
    if what == 0 {
        // SAFETY: the helper has no preconditions; the pointer goes into the map's value.
        unsafe {
            let task = bpf_get_current_task();
            let nsproxy: u64 = read(task + u64::from(config!(task_nsproxy)));
            let net: u64 = if nsproxy == 0 { 0 } else { read(nsproxy + u64::from(config!(nsproxy_net))) };
            core::ptr::write_volatile(&raw mut (*control).sync_net, net);
            return i32::from(net == 0);
        }
    }
    let net: u64 = ctx.arg(1);
    let start = if what == 1 { Start::Present } else { Start::Fresh };
    i32::from(netns::lookup(net, netns::inum(net), start).is_none())
}
