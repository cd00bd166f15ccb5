//! `ctwatch advise`: from what was measured to what would fix it, with numbers, risks and commands.
//! Pure but for `recorded`, which reads a recording: measuring happens elsewhere, and nothing here changes a system.

pub mod case;
pub mod demand;
pub mod dependency;
mod distinct;
pub mod facts;
pub mod gc;
pub mod items;
pub mod measure;
pub mod netns_commands;
pub mod owners;
pub mod recorded;
pub mod refused;
pub mod report;
pub mod rule_set;
pub mod target;
pub mod whatif;

use target::ServiceTarget;

/// A target as part of an id.
fn slug(target: &ServiceTarget) -> String {
    target.to_string().replace(['/', ' '], "-")
}
