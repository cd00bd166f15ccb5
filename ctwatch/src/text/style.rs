//! Colours, where the terminal wants them.
//! What a colour stands for is decided here, where it is used elsewhere.

use anstyle::{AnsiColor, Style};
use jiff::tz::TimeZone;

/// How text looks on this terminal.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Escape codes for colour may be used.
    pub color: bool,
    /// For the clock at the start of lines.
    pub time_zone: TimeZone,
}

/// A full table, and what was lost.
pub const ALERT: Style = AnsiColor::Red.on_default().bold();
/// What will soon be a problem.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// All is well.
pub const OK: Style = AnsiColor::Green.on_default();
/// What matters less.
pub const FAINT: Style = Style::new().dimmed();
/// As the terminal has it.
pub const PLAIN: Style = Style::new();

/// Puts colour on text, where colour is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Paint(pub bool);

impl Paint {
    /// The text in this style.
    #[must_use]
    pub fn on(self, style: Style, text: &str) -> String {
        if self.0 && style != PLAIN && !text.is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}
