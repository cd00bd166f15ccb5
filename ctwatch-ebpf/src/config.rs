//! The frozen configuration as the programs see it.
//! Read one field at a time: a load of the whole struct would not fit the stack.

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

/// One field of [`CONFIG`], as a constant the verifier knows and the compiler doesn't.
macro_rules! config {
    ($field:ident $([$index:literal])?) => {
        // SAFETY: a plain read of an initialised static.
        unsafe { core::ptr::read_volatile(&raw const $crate::config::CONFIG.0.$field $([$index])?) }
    };
}
pub(crate) use config;
