//! Run by user space (BPF_PROG_TEST_RUN), never attached: registers a netns on this CPU, or reconciles its counts.
//! It runs with interrupts as the kernel left them, so what it notes is exact for this CPU.

use crate::config::config;
use crate::emit;
use crate::maps::{OFFSETS, add, control};
use crate::marks;
use crate::netns::{self, Baseline};
use crate::owner;
use crate::percpu;
use crate::read::read;
use crate::withheld;
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use ctwatch_common::Cause;
use ctwatch_common::classify::missed;
use ctwatch_common::slot::Control;
use ctwatch_common::sync::SyncOp;

/// Does what the arguments say (see [`SyncOp`]); 0 if that was possible.
#[inline(always)]
pub fn run(ctx: &RawTracePointContext) -> i32 {
    let Some(control) = control() else { return 1 };
    let Some(op) = SyncOp::from_u64(ctx.arg(0)) else { return 1 };
    // SAFETY: the helper has no preconditions; the pointer goes into the map's value.
    unsafe { core::ptr::write_volatile(&raw mut (*control).jiffies, bpf_jiffies64()) };
    let baseline = match op {
        SyncOp::Locate => return locate(control, ctx.arg(1)),
        SyncOp::Reconcile => {
            reconcile(ctx, ctx.arg(1), ctx.arg(2));
            return 0;
        }
        SyncOp::NoteOffset => return note_offset(ctx.arg(1)),
        SyncOp::BaselineCurrent => Baseline::Current,
        SyncOp::BaselineZero => Baseline::Zero,
    };
    register(ctx, ctx.arg(1), baseline)
}

/// Leaves address and id of a netns in the control page: of this one, or of the calling thread's.
#[inline(always)]
fn locate(control: *mut Control, net: u64) -> i32 {
    owner::find_orig_ax();
    // SAFETY: the helper has no preconditions; the pointer goes into the map's value.
    unsafe {
        let net: u64 = if net == 0 {
            let task = bpf_get_current_task();
            let nsproxy: u64 = read(task + u64::from(config!(task_nsproxy)));
            if nsproxy == 0 { 0 } else { read(nsproxy + u64::from(config!(nsproxy_net))) }
        } else {
            net
        };
        core::ptr::write_volatile(&raw mut (*control).sync_net, net);
        let id = netns::current_id(netns::inum(net));
        core::ptr::write_volatile(&raw mut (*control).sync_id, u64::from(id));
        i32::from(net == 0)
    }
}

/// Notes where a CPU that is offline has its per-CPU data.
#[inline(always)]
fn note_offset(cpu: u64) -> i32 {
    if config!(per_cpu_offset) == 0 {
        return 1;
    }
    let Some(offset) = OFFSETS.get_ptr_mut(cpu as u32) else { return 1 };
    let found: u64 = read(config!(per_cpu_offset) + 8 * cpu);
    // SAFETY: a pointer into the map's value.
    unsafe { *offset = found };
    i32::from(found == 0)
}

/// Makes a netns known on this CPU.
#[inline(always)]
fn register(ctx: &RawTracePointContext, net: u64, baseline: Baseline) -> i32 {
    let inum = netns::inum(net);
    let Some(state) = netns::lookup(net, inum, baseline) else { return 1 };
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

/// Counts, without a tuple, losses that the kernel counted on this CPU and no program saw (the task migrated during a
/// drop, or a probe was skipped), so that the totals stay right. One cause per run keeps the program small.
#[inline(always)]
fn reconcile(ctx: &RawTracePointContext, net: u64, cause: u64) {
    let inum = netns::inum(net);
    // A CPU that came up meanwhile and whose losses were all missed has no record yet.
    let baseline = if netns::has_counted(net) { Baseline::Zero } else { Baseline::Unset };
    let Some(state) = netns::lookup(net, inum, baseline) else { return };
    // SAFETY: this CPU's own map values.
    unsafe {
        if let Some(cpu) = percpu::this_cpu() {
            marks::void(cpu);
            if withheld::is_waiting(cpu) {
                // Whoever left the mark has not dropped a packet, or does so only after this.
                withheld::settle(0);
            }
        }
        let missed = missed(netns::counters((*state).stat), (*state).accounted);
        let accounted = &raw mut (*state).accounted;
        let (cause, count) = if cause == Cause::ChainTooLong as u64 {
            add(&raw mut (*accounted).chaintoolong, missed.chaintoolong);
            add(&raw mut (*accounted).insert_failed, missed.chaintoolong);
            (Cause::ChainTooLong, missed.chaintoolong)
        } else if cause == Cause::Clash as u64 {
            add(&raw mut (*accounted).drop, missed.clash);
            add(&raw mut (*accounted).insert_failed, missed.clash);
            (Cause::Clash, missed.clash)
        } else if cause == Cause::Dying as u64 {
            add(&raw mut (*accounted).insert_failed, missed.dying);
            (Cause::Dying, missed.dying)
        } else if cause == Cause::Evicted as u64 {
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
