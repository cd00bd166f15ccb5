//! Recordings: one SQLite file with everything that enters `state`, so that it can be fed in again.
//! Crash-safe, limited in size, readable by any SQLite while it is being written; docs/recording.md has the details.

pub mod anonymize;
mod census;
mod column_types;
mod columns;
pub mod delta_decoder;
pub mod delta_encoder;
mod digest;
mod event;
mod fault;
pub mod files;
pub mod full;
mod kept_settings;
mod layout;
mod limits;
pub mod lines;
mod listing;
mod lock;
mod open;
mod query;
pub mod reader;
pub mod recorder;
mod regular;
pub mod replay;
mod retention;
pub mod rows;
pub mod rules;
mod run;
pub mod sampler;
mod schema;
pub mod span;
mod sparse;
mod stop;
pub mod sysctls;
pub mod tick;
pub mod timeline;
pub mod trigger;
mod unfit;
pub mod writer;
pub mod writer_thread;

pub use fault::Fault;
pub use full::DiskFull;
pub use limits::{NETNS, SLOTS, ticks_read};
pub use lock::Lock;
pub use reader::Recording;
pub use retention::{Retention, RetentionLimits};
pub use stop::stop_reading;
pub use unfit::Unfit;
pub use writer::Writer;

/// The version of the file format: `PRAGMA user_version`.
pub const SCHEMA: i64 = 1;
/// "ctwr": distinguishes a recording from other SQLite files.
pub const APPLICATION_ID: i64 = 0x6374_7772;
