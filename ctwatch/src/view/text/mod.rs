//! Reports for a terminal 80 columns wide.

use jiff::tz::TimeZone;

/// How text looks on this terminal.
#[derive(Clone, Debug)]
pub struct Look {
    /// Escape codes for colour may be used.
    pub color: bool,
    /// For the clock at the start of lines.
    pub time_zone: TimeZone,
}
