//! Run by user space (BPF_PROG_TEST_RUN), never attached: learns where a netns's counters stand on this CPU.
//! It runs with interrupts as the kernel left them, so what it notes is exact for this CPU.

use crate::config::config;
use crate::emit;
use crate::maps::{add, control};
use crate::netns::{self, Start};
use crate::owner;
use crate::read::read;
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use ctwatch_common::Cause;
use ctwatch_common::classify::missed;

/// First argument: 0 finds the caller's netns, 1 takes its present counts as the base, 2 takes it as new,
/// 3 owns up to losses of one cause (third argument) whose packets were missed on this CPU.
#[inline(always)]
pub fn run(ctx: &RawTracePointContext) -> i32 {
    let Some(control) = control() else { return 1 };
    let what: u64 = ctx.arg(0);
    // SAFETY: the helper has no preconditions; the pointer goes into the map's value.
    unsafe { core::ptr::write_volatile(&raw mut (*control).jiffies, bpf_jiffies64()) };
    if what == 0 {
        owner::find_orig_ax();
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
        settle(ctx, net, ctx.arg(2));
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
/// skipped) is counted without a tuple, so that the totals stay right. One cause a run keeps the program small.
#[inline(always)]
fn settle(ctx: &RawTracePointContext, net: u64, number: u64) {
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, Start::NotYet) else { return };
    // SAFETY: this CPU's own map value.
    unsafe {
        let missed = missed(netns::counters((*state).stat), (*state).accounted);
        let accounted = &raw mut (*state).accounted;
        let (cause, count) = if number == Cause::ChainTooLong as u64 {
            add(&raw mut (*accounted).chaintoolong, missed.chaintoolong);
            add(&raw mut (*accounted).insert_failed, missed.chaintoolong);
            (Cause::ChainTooLong, missed.chaintoolong)
        } else if number == Cause::Clash as u64 {
            add(&raw mut (*accounted).drop, missed.clash);
            add(&raw mut (*accounted).insert_failed, missed.clash);
            (Cause::Clash, missed.clash)
        } else if number == Cause::Dying as u64 {
            add(&raw mut (*accounted).insert_failed, missed.dying);
            (Cause::Dying, missed.dying)
        } else if number == Cause::Evicted as u64 {
            add(&raw mut (*accounted).early_drop, missed.evicted);
            (Cause::Evicted, missed.evicted)
        } else if config!(by_kfree_skb) != 0 {
            add(&raw mut (*accounted).drop, missed.drop);
            (Cause::TableFull, missed.drop)
        } else {
            // The init_conntrack pair counts these without looking at the kernel's counter.
            return;
        };
        if count != 0 {
            emit::count_unattributed((*state).id, cause, u64::from(count));
            debug!(ctx, "netns {}: {} losses of cause {} were missed", inum, count, cause as u8);
        }
    }
}
