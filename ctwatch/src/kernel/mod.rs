//! What the running kernel is like: its BTF, its symbols, its release, what it allows.
//! Nothing here loads or attaches anything; /proc and /sys roots are arguments, so fixtures can stand in.

pub mod btf;
pub mod preflight;
pub mod roots;
pub mod symbols;
