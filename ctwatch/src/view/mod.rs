//! How reports look. A view never changes state and never waits; where it writes to is its creator's choice.
//! One file per output format over the same reports.

pub mod json;
pub mod sh;
pub mod text;

use std::io;

use crate::advise::report::Advice;
use crate::contract::breakdown::TableReport;
use crate::contract::{Check, End, Event, Notice, Start, Tick};

/// One output format.
pub trait View {
    /// Watching begins.
    ///
    /// # Errors
    /// Writing failed, for this and all other methods; a closed pipe is `BrokenPipe`.
    fn start(&mut self, start: &Start) -> io::Result<()>;
    /// An interval is over.
    fn tick(&mut self, tick: &Tick) -> io::Result<()>;
    /// A single packet. May stay in a buffer until the next tick or [`View::flush`].
    fn event(&mut self, event: &Event) -> io::Result<()>;
    /// Something the reader should know.
    fn notice(&mut self, notice: &Notice) -> io::Result<()>;
    /// Watching is over.
    fn end(&mut self, end: &End) -> io::Result<()>;
    /// The answer of `ctwatch advise`.
    fn advice(&mut self, report: &Advice) -> io::Result<()>;
    /// The answer to `ctwatch check`.
    fn check(&mut self, check: &Check) -> io::Result<()>;
    /// The answer of `ctwatch table`.
    fn table(&mut self, report: &TableReport) -> io::Result<()>;
    /// Writes out what is buffered.
    fn flush(&mut self) -> io::Result<()>;
}
