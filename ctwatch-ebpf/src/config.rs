//! The frozen configuration as the programs see it.
//! It is read one field at a time: the whole struct would not fit the stack.

use ctwatch_common::config::Config;

/// User space fills it in before the programs load.
#[repr(transparent)]
pub struct Frozen(pub Config);

// SAFETY: frozen before the first program runs.
unsafe impl Sync for Frozen {}

/// Offsets and switches of the running kernel.
#[unsafe(no_mangle)]
pub static CONFIG: Frozen = Frozen(ZERO);

const ZERO: Config = {
    // SAFETY: every field is an integer.
    unsafe { core::mem::zeroed() }
};

/// Reads a field as the verifier sees it: a constant that the compiler doesn't know.
#[inline(always)]
pub fn value<T: Copy>(field: &T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(field) }
}

/// One field of [`CONFIG`], by [`value`].
macro_rules! config {
    ($field:ident $([$index:literal])?) => {
        $crate::config::value(&$crate::config::CONFIG.0.$field $([$index])?)
    };
}
pub(crate) use config;
