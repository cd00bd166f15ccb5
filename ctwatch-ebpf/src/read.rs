//! Reading kernel memory. A failed read yields zeroes (the helper clears the destination), and zero means "unknown".
//! No struct layouts here: offsets come from `config`.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use core::mem::MaybeUninit;

use crate::config::config;

/// On x86-64 the return probe runs after the return address was popped.
const RETURN_ADDRESS: u64 = 8;
/// Offset of a tuple's last word, which holds port and protocol.
const TUPLE_LAST: u64 = 32;

/// The stack pointer at a function's entry: the key under which its arguments are kept until it returns.
#[inline(always)]
pub fn stack_at_entry(ctx: &ProbeContext) -> u64 {
    // SAFETY: the kernel's own registers.
    unsafe { (*ctx.regs).rsp }
}

/// The same, from the function's return.
#[inline(always)]
pub fn stack_at_its_entry(ctx: &RetProbeContext) -> u64 {
    // SAFETY: the kernel's own registers.
    unsafe { (*ctx.regs).rsp - RETURN_ADDRESS }
}

/// The word of an entry's original tuple that holds its protocol and service port.
#[inline(always)]
pub fn service_word(entry: u64) -> u64 {
    read(entry + u64::from(config!(ct_tuple)) + TUPLE_LAST)
}

/// Reads a value at a kernel address.
#[inline(always)]
pub fn read<T: Copy>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all of `value` whatever happens; T is plain data at every call site.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _);
        value.assume_init()
    }
}

/// Reads into the caller's memory.
///
/// # Safety
/// `to` must be valid for writes of `N * 8` bytes.
#[inline(always)]
pub unsafe fn read_words<const N: usize>(to: *mut [u64; N], address: u64) {
    // SAFETY: the caller's.
    unsafe {
        bpf_probe_read_kernel(to.cast(), (N * 8) as u32, address as *const _);
    }
}

/// Reads only the beginning of the caller's memory.
///
/// # Safety
/// `to` must be valid for writes of `length` bytes, a constant from `config`.
#[inline(always)]
pub unsafe fn read_bytes<const N: usize>(to: *mut [u64; N], length: u32, address: u64) {
    // SAFETY: the caller's.
    unsafe {
        bpf_probe_read_kernel(to.cast(), length, address as *const _);
    }
}

/// A field of a block that was read in one go.
///
/// # Safety
/// `offset` must be a constant from `config` with the whole field inside `block` (user space checks that).
#[inline(always)]
pub unsafe fn field<T: Copy, const N: usize>(block: *const [u64; N], offset: u32) -> T {
    // SAFETY: the caller's; the verifier knows the constant and checks it again.
    unsafe { core::ptr::read_volatile(block.cast::<u8>().add(offset as usize).cast::<T>()) }
}
