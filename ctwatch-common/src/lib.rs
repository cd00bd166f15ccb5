//! What the kernel side and the user side of ctwatch share: wire layouts, causes and pure decisions.
//! No I/O and no allocation here: every function runs on the host under test and in eBPF unchanged.
#![cfg_attr(not(test), no_std)]

pub mod cause;
pub mod classify;
pub mod config;
pub mod door;
pub mod event;
pub mod netns;
pub mod slot;
pub mod sync;

pub use cause::Cause;
