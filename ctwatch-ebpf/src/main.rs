//! Entry points of the eBPF programs: each names its hook and hands over to a file in `hooks/`.
//! Nothing is decided here.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "xadd without its result is the only atomic that 5.10 knows")]

use aya_ebpf::macros::{kprobe, kretprobe, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext, RetProbeContext, TracePointContext};

mod config;
mod emit;
mod hooks;
mod maps;
mod marks;
mod netns;
mod owner;
mod packet;
mod percpu;
mod read;
mod withheld;

/// Every dropped packet ends here; conntrack's are freed by `nf_hook_slow`, or behind one of the other doors.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb(ctx: RawTracePointContext) -> i32 {
    hooks::kfree_skb::first(&ctx);
    0
}

/// The same from 7.0 on, where a raw tracepoint program can be preempted and misses the packets freed meanwhile. Through
/// perf it can't be: perf_trace_kfree_skb disables preemption (include/trace/perf.h).
#[tracepoint]
pub fn kfree_skb_held(ctx: TracePointContext) -> u32 {
    hooks::kfree_skb::held(&ctx);
    0
}

/// From 5.16 on the kernel skips a program that interrupts itself (bpf_prog.active): this twin takes over then.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb_twin(ctx: RawTracePointContext) -> i32 {
    hooks::kfree_skb::twin(&ctx);
    0
}

/// Never attached: user space runs it on each CPU to register namespaces and to reconcile counts.
#[raw_tracepoint(tracepoint = "sync")]
pub fn sync(ctx: RawTracePointContext) -> i32 {
    hooks::sync::run(&ctx)
}

/// The table was full: did `early_drop` find a victim?
#[kretprobe]
pub fn early_drop_return(ctx: RetProbeContext) -> u32 {
    hooks::early_drop::on_return(&ctx);
    0
}

/// An entry is removed.
#[kprobe]
pub fn nf_ct_delete(ctx: ProbeContext) -> u32 {
    hooks::nf_ct_delete::on_entry(&ctx, true);
    0
}

/// An entry is removed; with `--no-inserts` only victims of `early_drop` are of interest.
#[kprobe]
pub fn nf_ct_delete_victims(ctx: ProbeContext) -> u32 {
    hooks::nf_ct_delete::on_entry(&ctx, false);
    0
}

/// A new flow reaches the table.
#[kprobe]
pub fn nf_conntrack_confirm(ctx: ProbeContext) -> u32 {
    hooks::nf_conntrack_confirm::on_entry(&ctx);
    0
}

/// The collector of expired entries starts …
#[kprobe]
pub fn gc_worker(ctx: ProbeContext) -> u32 {
    hooks::gc_worker::on_entry(&ctx);
    0
}

/// … and is done.
#[kretprobe]
pub fn gc_worker_return(ctx: RetProbeContext) -> u32 {
    hooks::gc_worker::on_return(&ctx);
    0
}

/// A new flow clashes with another of the same tuple …
#[kprobe]
pub fn nf_ct_resolve_clash(ctx: ProbeContext) -> u32 {
    hooks::insert::on_clash(&ctx);
    0
}

/// … and whether it got into the table.
#[kretprobe]
pub fn nf_ct_resolve_clash_return(ctx: RetProbeContext) -> u32 {
    hooks::insert::on_clash_resolved(&ctx);
    0
}

/// Someone other than a packet inserts an entry …
#[kprobe]
pub fn nf_conntrack_hash_check_insert(ctx: ProbeContext) -> u32 {
    hooks::insert::on_created(&ctx);
    0
}

/// … and whether it got into the table.
#[kretprobe]
pub fn nf_conntrack_hash_check_insert_return(ctx: RetProbeContext) -> u32 {
    hooks::insert::on_created_return(&ctx);
    0
}

/// A helper wants to expect a connection: was there room?
#[kretprobe]
pub fn expect_related_return(ctx: RetProbeContext) -> u32 {
    hooks::expect::on_return(&ctx);
    0
}

/// Network namespaces are destroyed.
#[kprobe]
pub fn nf_conntrack_pernet_exit(ctx: ProbeContext) -> u32 {
    hooks::pernet_exit::on_entry(&ctx);
    0
}

/// `--cause invalid`: every packet …
#[kprobe]
pub fn nf_conntrack_in(ctx: ProbeContext) -> u32 {
    hooks::nf_conntrack_in::on_entry(&ctx);
    0
}

/// … and whether it passes untracked.
#[kretprobe]
pub fn nf_conntrack_in_return(ctx: RetProbeContext) -> u32 {
    hooks::nf_conntrack_in::on_return(&ctx);
    0
}

/// The other way to see a full table: every new flow's arguments …
#[kprobe]
pub fn init_conntrack(ctx: ProbeContext) -> u32 {
    hooks::init_conntrack::on_entry(&ctx);
    0
}

/// … and whether it got an entry.
#[kretprobe]
pub fn init_conntrack_return(ctx: RetProbeContext) -> u32 {
    hooks::init_conntrack::on_return(&ctx);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel allows GPL-only helpers (bpf_probe_read_kernel) to programs that declare this.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
