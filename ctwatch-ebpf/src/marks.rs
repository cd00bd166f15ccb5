//! Marks connect what early_drop returned, or a helper was told, with the packet that is dropped a moment later in the same
//! context.
//! A context is known by its stack: nested softirqs run on another one, and a preempted task keeps its own.

use crate::config::config;
use crate::maps::{CPU, Cpu, MARKS, Mark, control};
use crate::netns;
use crate::percpu::{as_number, this_cpu};
use crate::read::read;
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_map_lookup_percpu_elem};
use ctwatch_common::config::{SEARCHED_CPUS, STACK_ALIGN};

/// Stack pointers of one context are this close to each other; stacks are 16 KB each.
const NEAR: u64 = 3072;
/// In jiffies (0.1 s at HZ=1000, 0.4 s at HZ=250). An older mark is of a context that dropped no packet (ctnetlink; act_ct
/// of 5.10 and 6.1, which lets a refused packet go on).
const OLD: u64 = 100;

/// Where the caller's stack is. A function of its own with a small frame: from 6.13 on the kernel gives programs
/// with a large one a private stack, which would say nothing about the context.
#[inline(never)]
pub fn here(cpu: *mut Cpu) -> u64 {
    // SAFETY: the caller's record.
    unsafe { in_this_frame(cpu) }
}

/// [`here`] for a function whose own frame is small: less than 64 bytes (BPF_PRIV_STACK_MIN_SIZE, kernel/bpf/verifier.c).
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
unsafe fn in_this_frame(cpu: *mut Cpu) -> u64 {
    let mut local = 0u64;
    // SAFETY: the caller's.
    unsafe { as_number(cpu, (&raw mut local).cast()) }
}

/// Whether two stack pointers belong to one context.
#[inline(always)]
fn is_near(a: u64, b: u64) -> bool {
    a.wrapping_sub(b).wrapping_add(NEAR) < 2 * NEAR
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() }
}

/// Leaves a mark for the context with this stack pointer: early_drop found no victim for its packet.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn leave(cpu: *mut Cpu, stack: u64) {
    // SAFETY: the caller's.
    unsafe { leave_among(&raw mut (*cpu).marks, stack) }
}

/// # Safety
/// `marks` must be in this CPU's record.
#[inline(always)]
unsafe fn leave_among(marks: *mut [Mark; MARKS], stack: u64) {
    let now = now();
    // SAFETY: the caller's.
    unsafe {
        for index in 0..MARKS {
            let mark = &raw mut (*marks)[index];
            if (*mark).stack == 0
                || is_near((*mark).stack, stack)
                || now - (*mark).since > OLD
                || index == MARKS - 1
            {
                *mark = Mark { stack, since: now };
                return;
            }
        }
    }
}

/// The marks on this CPU.
#[derive(Clone, Copy)]
pub struct Found {
    /// Which one is this context's.
    index: u32,
    /// Whether this context has one.
    pub mine: bool,
    /// How many other contexts have one.
    pub others: u32,
}

const MINE: u64 = 1 << 16;

/// Looks for this context's mark. It stays until [`clear`], after its loss is accounted for: an interrupt in between
/// must see either the mark or the account, or it would claim this loss as its own.
#[inline(always)]
pub fn find() -> Found {
    let found = find_mark();
    Found {
        index: (found >> 8) as u32 & (MARKS as u32 - 1),
        mine: found & MINE != 0,
        others: found as u32 & 0xff,
    }
}

/// [`find`], packed into a number. A global function: its result is an unknown number to the verifier, so the states of
/// the marks don't multiply the paths through the caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_mark() -> u64 {
    let Some(cpu) = this_cpu() else { return 0 };
    let mut found = 0;
    // SAFETY: this CPU's own map value, and a frame that holds little more than what is taken the address of.
    unsafe {
        let stack = in_this_frame(cpu);
        let marks = &raw mut (*cpu).marks;
        for index in 0..MARKS {
            let mark = &raw mut (*marks)[index];
            if (*mark).stack == 0 {
                continue;
            }
            if is_near((*mark).stack, stack) {
                found |= MINE | (index as u64) << 8;
            } else if now() - (*mark).since > OLD {
                (*mark).stack = 0;
            } else {
                found += 1;
            }
        }
    }
    found
}

/// The record of a CPU; null if there is none. Only where the configuration says `preempts`: 5.10 has no helper for it.
#[inline(always)]
pub fn cpu_of(number: u32) -> *mut Cpu {
    let key = 0u32;
    // SAFETY: the map and a live key.
    let record = unsafe {
        bpf_map_lookup_percpu_elem((&raw const CPU).cast_mut().cast(), (&raw const key).cast(), number)
    };
    record.cast()
}

/// The CPU on which this context, a task's, left its mark before it was migrated here. The mark is removed. Only where
/// the configuration says `preempts`.
#[inline(always)]
pub fn take_from_another(cpu: *mut Cpu) -> Option<u32> {
    take_among_others(cpu, |other| {
        // SAFETY: a pointer into the map's value is only computed.
        unsafe { &raw mut (*other).marks }
    })
}

#[inline(always)]
fn take_among_others(cpu: *mut Cpu, marks_of: impl Fn(*mut Cpu) -> *mut [Mark; MARKS]) -> Option<u32> {
    let stack = here(cpu);
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let own: u64 = read(task + u64::from(config!(task_stack)));
    if stack.wrapping_sub(own) >= STACK_ALIGN {
        // Softirqs and interrupts don't migrate.
        return None;
    }
    for number in 0..SEARCHED_CPUS {
        if number >= config!(cpus) {
            break;
        }
        let other = cpu_of(number);
        if other.is_null() {
            break;
        }
        let marks = marks_of(other);
        for index in 0..MARKS {
            // SAFETY: another CPU's map value; a stack is its task's alone, so nobody else takes this mark.
            unsafe {
                let mark = &raw mut (*marks)[index];
                let Mark { stack: left, since } = core::ptr::read_volatile(mark);
                if left != 0 && is_near(left, stack) && now() - since <= OLD && is_proof(since, other) {
                    core::ptr::write_volatile(&raw mut (*mark).stack, 0);
                    return Some(number);
                }
            }
        }
    }
    None
}

/// Whether what was noted at that time on that CPU proves a loss that counts, whatever the counters here say. Not if the kernel's
/// count may be part of a baseline, or was reconciled meanwhile: a preempted task frees its packet as late as it likes.
///
/// # Safety
/// `cpu` must be a CPU's record.
#[inline(always)]
pub unsafe fn is_proof(since: u64, cpu: *mut Cpu) -> bool {
    let watching = netns::watching();
    // SAFETY: the caller's.
    watching != 0
        && since > watching
        && since > unsafe { core::ptr::read_volatile(&raw const (*cpu).reconciled) }
}

/// [`is_proof`] of this context's mark.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn mine_is_proof(cpu: *mut Cpu, found: Found) -> bool {
    // SAFETY: the caller's; the index is masked.
    unsafe {
        is_proof(
            core::ptr::read_volatile(&raw const (*cpu).marks[found.index as usize & (MARKS - 1)].since),
            cpu,
        )
    }
}

/// Has nothing that was noted on this CPU until now be proof: what the kernel has counted is being reconciled.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn void(cpu: *mut Cpu) {
    // SAFETY: the caller's.
    unsafe { core::ptr::write_volatile(&raw mut (*cpu).reconciled, now()) };
}

/// Notes that this context has evicted an entry, so that the new flow it did so for can be named.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn evicted(cpu: *mut Cpu, stack: u64, at: u64) {
    // SAFETY: the caller's.
    unsafe {
        (*cpu).evicting_stack = stack;
        (*cpu).evicting_at = at;
    }
}

/// When this context evicted an entry, if it just did: its new flow is being confirmed. The note is removed, so that only
/// one flow is named.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn take_eviction(cpu: *mut Cpu, stack: u64) -> Option<u64> {
    // SAFETY: the caller's.
    unsafe {
        let evicting = (*cpu).evicting_stack;
        if evicting == 0 || !is_near(evicting, stack) {
            return None;
        }
        (*cpu).evicting_stack = 0;
        Some((*cpu).evicting_at)
    }
}

/// Leaves a mark for a context whose helper found no room for an expectation.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn expectation_refused(cpu: *mut Cpu, stack: u64) {
    // SAFETY: the caller's; a pointer into the map's value.
    unsafe {
        leave_among(&raw mut (*cpu).expecting, stack);
        if let Some(control) = control() {
            core::ptr::write_volatile(&raw mut (*control).expectation_refused, now());
        }
    }
}

/// Whether this context's helper has just found no room for an expectation, here or, if it is a task, where it was before it
/// was migrated. The mark is removed: a helper drops one packet. Nearly always one word is read.
#[inline(always)]
pub fn take_refused_expectation() -> bool {
    let Some(control) = control() else { return false };
    // SAFETY: a pointer into the map's value.
    let last = unsafe { core::ptr::read_volatile(&raw const (*control).expectation_refused) };
    // Some helpers let the packet pass all the same: their marks are left behind.
    last != 0 && now() - last <= OLD && (take_expectation_here() != 0 || take_expectation_elsewhere() != 0)
}

/// A global function, like [`find_mark`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_expectation_here() -> u64 {
    let Some(cpu) = this_cpu() else { return 0 };
    // SAFETY: this CPU's own map value, and a frame that holds little more than what is taken the address of.
    unsafe {
        let stack = in_this_frame(cpu);
        let marks = &raw mut (*cpu).expecting;
        for index in 0..MARKS {
            let mark = &raw mut (*marks)[index];
            if (*mark).stack != 0 && is_near((*mark).stack, stack) {
                (*mark).stack = 0;
                return u64::from(now() - (*mark).since <= OLD);
            }
        }
    }
    0
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_expectation_elsewhere() -> u64 {
    let Some(cpu) = this_cpu() else { return 0 };
    if config!(preempts) == 0 {
        return 0;
    }
    // SAFETY: a pointer into the map's value is only computed.
    let taken = take_among_others(cpu, |other| unsafe { &raw mut (*other).expecting });
    u64::from(taken.is_some())
}

/// Removes this context's mark.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn clear(cpu: *mut Cpu, found: Found) {
    if found.mine {
        // SAFETY: the caller's; the index is masked.
        unsafe {
            core::ptr::write_volatile(&raw mut (*cpu).marks[found.index as usize & (MARKS - 1)].stack, 0)
        };
    }
}
