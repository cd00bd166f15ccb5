//! The parts of ctwatch, as a library so that tests and benchmarks reach them.
//! The binary is the product: this API has no stability promise.

pub mod cli;
pub mod error;
pub mod event;
pub mod state;
pub mod view;
