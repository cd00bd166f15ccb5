//! Recordings: one SQLite file that keeps what enters `state`, so that it can enter again.
//! Crash-safe, bounded in size, readable by any SQLite while it is written; docs/recording.md has it all.

pub mod anonymize;
mod census;
mod columns;
pub mod delta_decoder;
pub mod delta_encoder;
mod digest;
mod event;
pub mod files;
pub mod full;
pub mod lines;
mod listing;
mod lock;
mod open;
pub mod reader;
pub mod recorder;
pub mod replay;
mod retention;
pub mod rows;
mod run;
pub mod sampler;
mod schema;
pub mod span;
mod sparse;
pub mod sysctls;
pub mod tick;
pub mod trigger;
pub mod writer;
pub mod writer_thread;

pub use full::DiskFull;
pub use lock::Lock;
pub use open::Fault;
pub use reader::Recording;
pub use retention::{Retention, RetentionLimits};
pub use writer::Writer;

/// The number of the file's layout: `PRAGMA user_version`.
pub const SCHEMA: i64 = 1;
/// "ctwr": tells a recording from other SQLite files.
pub const APPLICATION_ID: i64 = 0x6374_7772;
