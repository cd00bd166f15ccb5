//! The kernel side: loads the eBPF object, attaches it, reads its maps. The only user of aya.
//! It decides nothing about what is shown.

pub mod attach;
mod banks;
pub(crate) mod decode;
pub mod diagnostics;
pub mod doors;
mod grace;
mod kprobe;
pub mod object;
pub mod offsets;
pub mod plan;
pub mod refusal;
pub mod room;
pub mod shapes;
pub mod shared;
pub mod sync;

pub use attach::Probe;
