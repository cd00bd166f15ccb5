//! Run by user space (BPF_PROG_TEST_RUN), never attached: learns where a netns's counters stand on this CPU.
//! It runs with interrupts as the kernel left them, so what it notes is exact for this CPU.

use crate::config::config;
use crate::emit;
use crate::maps::control;
use crate::netns::{self, Start};
use crate::read::read;
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use ctwatch_common::Cause;
use ctwatch_common::classify::missed;

/// First argument: 0 finds the caller's netns, 1 takes its present counts as the base, 2 takes it as new,
/// 3 owns up to losses whose packets were missed on this CPU.
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
    if what == 3 {
        settle(ctx, net);
        return 0;
    }
    let start = if what == 1 { Start::Present } else { Start::Fresh };
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, start) else { return 1 };
    // SAFETY: this CPU's own map value.
    let (base, count) = unsafe { ((*state).base, (*state).count) };
    debug!(
        ctx,
        "netns {}: this CPU starts at drop {}, early_drop {}; count at 0x{:x}",
        inum,
        base.drop,
        base.early_drop,
        count
    );
    0
}

/// What the kernel counted on this CPU and no program saw (a migration in the middle of a drop, a probe that was
/// skipped) is counted without a tuple, so that the totals stay right.
#[inline(always)]
fn settle(ctx: &RawTracePointContext, net: u64) {
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, Start::NotYet) else { return };
    // SAFETY: this CPU's own map value.
    unsafe {
        let now = netns::counters((*state).stat);
        let accounted = (*state).accounted;
        let mut missed = missed(now, accounted);
        if config!(by_kfree_skb) == 0 {
            // The init_conntrack pair counts these without looking at the kernel's counter.
            missed.drop = 0;
        }
        (*state).accounted = now;
        debug!(ctx, "netns {}: this CPU missed {} drops and {} evictions", inum, missed.drop, missed.evicted);
        for (cause, count) in
            [(Cause::TableFull, missed.drop), (Cause::Clash, missed.clash), (Cause::Dying, missed.dying)]
        {
            if count != 0 {
                emit::count_unattributed(inum, cause, u64::from(count));
            }
        }
        for (cause, count) in [(Cause::ChainTooLong, missed.chaintoolong), (Cause::Evicted, missed.evicted)] {
            if count != 0 {
                emit::count_unattributed(inum, cause, u64::from(count));
            }
        }
    }
}
