//! The lines `ctwatch record` prints and passes to the command it runs: the contract of docs/schema/.
//! Within one schema number fields are only added, never renamed or given another meaning.

use jiff::Timestamp;
use serde::Serialize;

use super::trigger::Measured;
use crate::contract::{Counted, Unexplained, is_zero, millis};
use crate::foreign::Foreign;
use crate::model::{Backend, KernelCounters};

/// One line.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// A file was opened and is being written.
    Recording {
        /// When.
        #[serde(serialize_with = "millis")]
        time: Timestamp,
        /// The file.
        file: Foreign,
        /// The file's schema.
        schema: i64,
        /// Version of ctwatch.
        version: Foreign,
        /// The backend.
        backend: Backend,
        /// Why this one, and what it can't see.
        backend_reason: Option<Foreign>,
    },
    /// A trigger fired.
    Incident {
        /// When: the end of the tick it fired in.
        #[serde(serialize_with = "millis")]
        time: Timestamp,
        /// The file.
        file: Foreign,
        /// The N of `ctwatch report FILE --incident N`; `None` if the incident isn't in the file.
        incident: Option<i64>,
        /// As given with `--when`.
        condition: String,
        /// The tick's number in the file.
        tick: i64,
        /// What was measured.
        measured: Measured,
    },
    /// A file was closed.
    Recorded {
        /// When.
        #[serde(serialize_with = "millis")]
        time: Timestamp,
        /// The file.
        file: Foreign,
        /// Why.
        reason: &'static str,
        /// The file's size.
        bytes: u64,
        /// The -wal with the last part of the recording, left because somebody is reading it: copy both.
        #[serde(skip_serializing_if = "Option::is_none")]
        wal: Option<Foreign>,
        /// Incidents since recording began, over all files; the same goes for the fields below.
        incidents: u64,
        /// Seconds recorded.
        duration_s: f64,
        /// Losses by cause.
        counted: Counted,
        /// The kernel's counters.
        kernel_counters: KernelCounters,
        /// Events that did not fit the ring buffer.
        lost_events: u64,
        /// What the kernel counted and ctwatch did not.
        unexplained: Unexplained,
        /// Lines that were not written to stdout before this one, as nobody read them in time.
        #[serde(skip_serializing_if = "is_zero")]
        unwritten_lines: u64,
    },
}
