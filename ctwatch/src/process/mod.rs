//! What /proc and cgroupfs say of processes, sockets and containers.
//! Hearsay from processes that may lie: names are only shown, numbers only looked up.

pub mod cgroup;
pub mod claim;
pub mod container;
pub mod handle;
pub mod procfs;
pub mod sockets;
