//! Recordings: one SQLite file that keeps what enters `state`, so that it can enter again.
//! Crash-safe, bounded in size, readable by any SQLite while it is written; docs/recording.md has it all.

pub mod anonymize;
mod census;
mod digest;
mod event;
pub mod files;
pub mod full;
pub mod lines;
mod listing;
mod lock;
mod open;
pub mod reader;
pub mod rebuild;
pub mod recorder;
pub mod replay;
pub mod rows;
mod run;
pub mod sampler;
mod schema;
pub mod scribe;
pub mod span;
mod sparse;
pub mod sysctls;
mod thin;
pub mod tick;
pub mod track;
pub mod trigger;
pub mod writer;

pub use full::DiskFull;
pub use lock::Lock;
pub use open::Fault;
pub use reader::Recording;
pub use thin::{RetentionLimits, Thinner};
pub use writer::Writer;

/// The number of the file's layout: `PRAGMA user_version`.
pub const SCHEMA: i64 = 1;
/// "ctwr": tells a recording from other SQLite files.
pub const APPLICATION_ID: i64 = 0x6374_7772;
