//! The parts of ctwatch, as a library so that tests and benchmarks reach them.
//! The binary is the product: this API has no stability promise.

// These panic where nobody reads.
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod advise;
pub mod children;
pub mod cli;
pub mod command;
pub mod conntrack;
pub mod contract;
pub mod error;
pub mod export;
pub mod files;
pub mod firewall;
pub mod foreign;
pub mod kernel;
pub mod listing;
pub mod machine;
pub mod memory;
pub mod model;
pub mod netns;
pub mod outlet;
pub mod owner;
pub mod postmortem;
pub mod probe;
pub mod process;
pub mod record;
#[cfg(test)]
mod rooms;
pub mod sandbox;
pub mod state;
pub mod stderr;
#[doc(hidden)]
pub mod testing;
pub mod text;
pub mod view;
pub mod watch;
