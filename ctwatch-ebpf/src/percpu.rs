//! This CPU's record, and where the kernel keeps this CPU's copy of per-CPU data.
//! The offset is found without symbols: the address of an element of our own per-CPU map, less the map's per-CPU base.

use crate::config::config;
use crate::maps::{CPU, Cpu, OFFSETS};
use crate::read::read;
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;

/// This CPU's record.
#[inline(always)]
pub fn this_cpu() -> Option<*mut Cpu> {
    CPU.get_ptr_mut(0)
}

/// What to add to a per-CPU pointer to reach this CPU's copy (this_cpu_off).
#[inline(always)]
pub fn offset() -> Option<u64> {
    let cpu = this_cpu()?;
    // SAFETY: this CPU's own map value.
    unsafe {
        if (*cpu).offset != 0 {
            return Some((*cpu).offset);
        }
        let map = as_number(cpu, (&raw const CPU).cast());
        let own = as_number(cpu, cpu.cast_const().cast());
        let base: u64 = read(map + u64::from(config!(bpf_array_pptrs)));
        if base == 0 {
            return None;
        }
        (*cpu).offset = own.wrapping_sub(base);
        // For summing over all CPUs.
        if let Some(offset) = OFFSETS.get_ptr_mut(bpf_get_smp_processor_id()) {
            *offset = (*cpu).offset;
        }
        Some((*cpu).offset)
    }
}

/// An address as a number: a pointer that went through memory comes back as one.
///
/// # Safety
/// `cpu` must be this CPU's record.
#[inline(always)]
pub unsafe fn as_number(cpu: *mut Cpu, address: *const core::ffi::c_void) -> u64 {
    // SAFETY: the caller's; volatile, or the compiler would keep the pointer.
    unsafe {
        let scratch = &raw mut (*cpu).scratch;
        core::ptr::write_volatile(scratch.cast::<*const core::ffi::c_void>(), address);
        core::ptr::read_volatile(scratch)
    }
}
