//! What `ctwatch record` prints, and gives to the command it runs: the contract of docs/schema/.
//! Fields are added, never renamed or given another meaning within one schema number.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::trigger::Measured;
use crate::contract::{Counted, Unexplained, millis};
use crate::model::KernelCounters;

/// One line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// A file is open, and is being written.
    Recording {
        /// When.
        #[serde(serialize_with = "millis")]
        time: Timestamp,
        /// The file.
        file: PathBuf,
        /// Its schema.
        schema: i64,
        /// Version of ctwatch.
        version: String,
        /// How it watches.
        backend: &'static str,
        /// Why so, and what can't be seen.
        backend_reason: Option<String>,
    },
    /// A trigger fired.
    Incident {
        /// When: the end of the tick it fired in.
        #[serde(serialize_with = "millis")]
        time: Timestamp,
        /// The file.
        file: PathBuf,
        /// The N of `ctwatch report FILE --incident N`; none if it isn't in the file.
        incident: Option<i64>,
        /// As given with `--when`.
        condition: String,
        /// The tick's number in the file.
        tick: i64,
        /// What was measured.
        measured: Measured,
    },
    /// A file is closed.
    Recorded {
        /// When.
        #[serde(serialize_with = "millis")]
        time: Timestamp,
        /// The file.
        file: PathBuf,
        /// Why.
        reason: &'static str,
        /// Its size.
        bytes: u64,
        /// What holds the last part of it: somebody reads the file, so copy both.
        #[serde(skip_serializing_if = "Option::is_none")]
        wal: Option<PathBuf>,
        /// Incidents since recording began, over all files; so for all that follow.
        incidents: u64,
        /// Seconds recorded.
        duration_s: f64,
        /// Losses by cause.
        counted: Counted,
        /// The kernel's counters.
        kernel_counters: KernelCounters,
        /// Events that did not fit the ring buffer.
        lost_events: u64,
        /// What the kernel counted and ctwatch didn't.
        unexplained: Unexplained,
    },
}
