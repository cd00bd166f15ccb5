//! `ctwatch advise`: from what was measured to what would fix it, with numbers, risks and commands.
//! Pure but for `recorded`, which reads a recording: measuring happens elsewhere, and nothing here changes a system.

pub mod case;
pub mod census;
mod distinct;
pub mod follow;
pub mod gc;
pub mod items;
pub mod measure;
pub mod model;
pub mod phase;
pub mod recorded;
pub mod report;
pub mod target;
pub mod whatif;

use target::Target;

/// A target as part of an id.
fn slug(target: &Target) -> String {
    target.to_string().replace('/', "-")
}

/// Bytes as a reader wants them.
#[must_use]
pub fn mib(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{:.0} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
