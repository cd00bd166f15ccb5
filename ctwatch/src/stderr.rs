//! What people read: a line on stderr. Whoever read it may have gone or have stopped reading, and that is no reason to end
//! anything or to wait. The only way to stderr, as `eprintln!` panics where it can't write. Nothing in a line acts on a
//! terminal.

mod progress;

use std::fmt::Display;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::foreign::harmless;
use crate::outlet::Outlet;
use crate::text::width;
pub use progress::Progress;

/// How long the end waits for a reader who takes nothing,
const STUCK: Duration = Duration::from_millis(500);
/// and for one who takes a little at a time.
const SLOW: Duration = Duration::from_secs(2);

struct Lines {
    outlet: Outlet,
    /// Lines of which the reader was told that they are missing.
    told: u64,
    /// Columns of what stands in the last line for the moment.
    passing: usize,
}

/// `None` where no thread could be started.
static LINES: OnceLock<Option<Mutex<Lines>>> = OnceLock::new();

fn lines() -> Option<MutexGuard<'static, Lines>> {
    let start = || Some(Mutex::new(Lines { outlet: Outlet::stderr().ok()?, told: 0, passing: 0 }));
    let lines = LINES.get_or_init(start).as_ref()?;
    Some(lines.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Writes a line, or nothing where nobody reads it. More lines are indented: they are no messages of their own. In one piece, so that lines of several threads don't mix.
pub fn line(text: impl Display) {
    let text = one_message(&text.to_string());
    match lines() {
        Some(mut lines) => lines.say(&text),
        None => drop(std::io::stderr().lock().write_all(format!("{text}\n").as_bytes())),
    }
}

/// Waits until all lines are written, but not for a reader who takes none.
pub fn settle() {
    if let Some(Some(lines)) = LINES.get() {
        let meter = lines.lock().unwrap_or_else(PoisonError::into_inner).outlet.meter();
        let _ = meter.settle(STUCK, SLOW);
    }
}

impl Lines {
    fn say(&mut self, text: &impl Display) {
        let meter = self.outlet.meter();
        let left_out = meter.left_out();
        let mut lines = self.without_passing();
        if left_out > self.told && meter.has_room() {
            lines.push_str(&match left_out - self.told {
                1 => "1 line is missing here: nobody read it\n".to_owned(),
                missing => format!("{missing} lines are missing here: nobody read them\n"),
            });
            self.told = left_out;
        }
        lines.push_str(&format!("{text}\n"));
        self.put(&lines);
    }

    /// Shows something until the next line, or until it is taken away. All earlier output must have been read.
    fn pass(&mut self, text: &str) {
        if self.outlet.meter().is_idle() {
            let columns = width(text);
            let rest = self.passing.saturating_sub(columns);
            self.put(&format!("\r{text}{:rest$}", ""));
            self.passing = columns;
        }
    }

    /// What makes the last line empty again.
    fn without_passing(&mut self) -> String {
        match std::mem::take(&mut self.passing) {
            0 => String::new(),
            columns => format!("\r{:columns$}\r", ""),
        }
    }

    fn put(&mut self, text: &str) {
        let _ = self.outlet.write_all(text.as_bytes()).and_then(|()| self.outlet.flush());
    }
}

fn one_message(text: &str) -> String {
    let lines: Vec<_> = text.trim_end_matches('\n').split('\n').map(harmless).collect();
    lines.join("\n    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_from_the_next_and_acts_on_nothing() {
        assert_eq!(one_message("error: a\u{1b}[2J\r\u{202e}"), "error: a\\x1b[2J\\r\\u{202e}");
        assert_eq!(one_message("error: verifier\nerror: forged\n"), "error: verifier\n    error: forged");
        assert_eq!(one_message("no netns \\n: é"), "no netns \\n: é");
    }
}
