//! `ctwatch advise`: from what was measured to what would fix it, with numbers, risks and commands.
//! Pure: measuring and reading the machine happen elsewhere, and nothing here changes a system.

pub mod census;
mod distinct;
pub mod measure;
pub mod model;
pub mod phase;
pub mod target;
pub mod whatif;
