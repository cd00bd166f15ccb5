//! Which process sent a packet, where that is certain. `current` is trusted only if the code runs on that task's own stack.
//! A SYN is retransmitted from a timer's softirq, on another stack: its socket must have been noted before.

use crate::config::config;
use crate::maps::{ANY, SOCKETS, control};
use crate::marks::here;
use crate::percpu::this_cpu;
use crate::read::read;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_comm};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task};
use ctwatch_common::config::STACK_ALIGN;
use ctwatch_common::event::{LossEvent, OwnerPart};

/// include/linux/sched.h
const PF_KTHREAD: u32 = 0x0020_0000;
/// sizeof(struct pt_regs) and its orig_ax, x86-64 (arch/x86/include/asm/ptrace.h).
const PT_REGS: u64 = 168;
const ORIG_AX: u64 = 120;
/// __NR_bpf, x86-64.
const BPF: u64 = 321;
const TCP: u8 = 6;
const SCTP: u8 = 132;

/// Whether this code runs for a user process: on the stack of its own task, in a system call. An interrupt that hits user
/// mode runs on that stack too, and so may the softirq after it (x86: `run_sysvec_on_irqstack_cond`); then the top of the
/// stack holds the interrupt's registers, with a negative number in place of the system call's.
#[inline(always)]
fn runs_for_a_process() -> bool {
    let (Some(cpu), Some(control)) = (this_cpu(), control()) else { return false };
    // SAFETY: a pointer into the map's value.
    let orig_ax = unsafe { (*control).orig_ax };
    if orig_ax == 0 {
        return false;
    }
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let flags: u32 = read(task + u64::from(config!(task_flags)));
    let stack: u64 = read(task + u64::from(config!(task_stack)));
    flags & PF_KTHREAD == 0
        && here(cpu).wrapping_sub(stack) < STACK_ALIGN
        && read::<u64>(stack + orig_ax).cast_signed() >= 0
}

/// Finds where the stack holds the number of the system call, from within bpf(): in the `struct pt_regs` at its top, above
/// which kernels that know FRED leave 16 bytes (TOP_OF_KERNEL_STACK_PADDING, arch/x86/include/asm/thread_info.h).
#[inline(always)]
pub fn find_orig_ax() {
    let Some(control) = control() else { return };
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let stack: u64 = read(task + u64::from(config!(task_stack)));
    for gap in [0, 16] {
        let at = STACK_ALIGN - gap - PT_REGS + ORIG_AX;
        if read::<u64>(stack + at) == BPF {
            // SAFETY: a pointer into the map's value.
            unsafe { core::ptr::write_volatile(&raw mut (*control).orig_ax, at) };
        }
    }
}

/// The current process.
///
/// # Safety
/// `to` must be valid for writes.
#[inline(always)]
unsafe fn current(to: *mut OwnerPart) {
    // SAFETY: the caller's.
    unsafe {
        (*to).cgroup = bpf_get_current_cgroup_id();
        (*to).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*to).reserved = 0;
        bpf_get_current_comm((&raw mut (*to).name).cast(), 16);
    }
}

/// Ports and protocol of a flow in one number, by which a noted socket is recognized.
#[inline(always)]
pub fn flow(event: &LossEvent) -> u64 {
    u64::from(event.sport) << 16 | u64::from(event.dport) | u64::from(event.proto) << 32
}

/// Whether the kernel retransmits packets of this protocol by itself.
#[inline(always)]
fn retransmits(flow: u64) -> bool {
    matches!((flow >> 32) as u8, TCP | SCTP)
}

/// The sender of a locally sent packet; false if it is not certain. `by_sender` is false where another process lets the
/// packet go on. On a stack frame of its own: the caller's is nearly full.
///
/// # Safety
/// `to` must point into a reserved record.
#[inline(never)]
pub unsafe fn of_packet(socket: u64, flow: u64, by_sender: bool, to: *mut OwnerPart) -> bool {
    if by_sender && runs_for_a_process() {
        // SAFETY: the caller's.
        unsafe { current(to) };
        note_socket(socket, flow);
        return true;
    }
    if socket == 0 || !retransmits(flow) {
        return false;
    }
    let Some(noted) = SOCKETS.get_ptr(&socket) else { return false };
    // SAFETY: a pointer into the map's value.
    unsafe {
        if (*noted).flow != flow {
            return false;
        }
        core::ptr::copy_nonoverlapping(&raw const (*noted).owner, to, 1);
    }
    true
}

/// Notes the owner of a socket, if the code runs for its process.
#[inline(always)]
pub fn note(socket: u64, flow: u64) {
    if socket != 0 && retransmits(flow) && runs_for_a_process() {
        note_socket(socket, flow);
    }
}

#[inline(always)]
fn note_socket(socket: u64, flow: u64) {
    if socket == 0 || !retransmits(flow) {
        return;
    }
    let Some(cpu) = this_cpu() else { return };
    // SAFETY: this CPU's own map value. Only code on a task's own stack gets here, so nothing that interrupts it writes
    // there.
    unsafe {
        let noted = &raw mut (*cpu).noted;
        (*noted).flow = flow;
        current(&raw mut (*noted).owner);
        let _ = SOCKETS.insert(&socket, &*noted, ANY);
    }
}
