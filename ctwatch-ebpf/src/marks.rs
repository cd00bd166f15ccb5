//! Marks tie what early_drop returned to the packet that is dropped a moment later in the same context.
//! A context is known by its stack: nested softirqs run on another one, and a preempted task takes its own along.

use crate::maps::{Cpu, MARKS, Mark};
use crate::netns::number;
use aya_ebpf::helpers::generated::bpf_jiffies64;

/// Frames of one context lie this close; stacks are 16 KB each.
const NEAR: u64 = 3072;
/// A mark this old belongs to a context that went another way (ctnetlink, OVS). At least 0.4 s.
const OLD: u64 = 100;

/// Where the caller's stack is. A function of its own with a small frame: from 6.13 on the kernel gives programs
/// with a large one a private stack, which would say nothing about the context.
#[inline(never)]
pub fn here() -> u64 {
    let mut local = 0u64;
    number((&raw mut local).cast()).unwrap_or(0)
}

#[inline(always)]
fn is_near(a: u64, b: u64) -> bool {
    a.wrapping_sub(b).wrapping_add(NEAR) < 2 * NEAR
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() }
}

/// Leaves a mark for the context with this stack pointer.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn leave(cpu: *mut Cpu, stack: u64) {
    let now = now();
    // SAFETY: the caller's.
    unsafe {
        let marks = &raw mut (*cpu).marks;
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

/// What the marks on this CPU say.
#[derive(Clone, Copy)]
pub struct Found {
    /// This context has one, here; else [`MARKS`].
    pub index: u32,
    /// This context has one.
    pub mine: bool,
    /// How many other contexts have one.
    pub others: u32,
}

/// Looks for this context's mark. It stays until [`clear`], after its loss is accounted for: an interrupt in between
/// must see either the mark or the account, or it would take this loss for its own.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn find(cpu: *mut Cpu) -> Found {
    let mut found = Found { index: MARKS as u32, mine: false, others: 0 };
    let stack = here();
    let now = now();
    // SAFETY: the caller's.
    unsafe {
        let marks = &raw mut (*cpu).marks;
        for index in 0..MARKS {
            let mark = &raw mut (*marks)[index];
            if (*mark).stack == 0 {
                continue;
            }
            if is_near((*mark).stack, stack) {
                found.mine = true;
                found.index = index as u32;
            } else if now - (*mark).since > OLD {
                (*mark).stack = 0;
            } else {
                found.others += 1;
            }
        }
    }
    found
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
            core::ptr::write_volatile(
                &raw mut (*cpu).marks[(found.index & (MARKS as u32 - 1)) as usize].stack,
                0,
            )
        };
    }
}
