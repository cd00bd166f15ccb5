//! What people read: a line on stderr. Whoever read it may have gone or have stopped reading, and that is no reason to end
//! anything or to wait. The only way to stderr, as `eprintln!` panics where it can't write. Nothing in a line acts on a
//! terminal.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::foreign::harmless;
use crate::outlet::Outlet;

/// How long the end waits for a reader who takes nothing,
const STUCK: Duration = Duration::from_millis(500);
/// and for one who takes a little at a time.
const SLOW: Duration = Duration::from_secs(2);

struct Lines {
    outlet: Outlet,
    /// Lines of which the reader was told that they are missing.
    told: u64,
}

/// `None` where no thread could be started.
static LINES: OnceLock<Option<Mutex<Lines>>> = OnceLock::new();

/// Writes a line, or nothing where nobody reads it. More lines are indented: they are no messages of their own. In one piece, so that lines of several threads don't mix.
pub fn line(text: impl Display) {
    let text = one_message(&text.to_string());
    let start = || Some(Mutex::new(Lines { outlet: Outlet::stderr().ok()?, told: 0 }));
    match LINES.get_or_init(start) {
        Some(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).say(&text),
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
        let mut lines = String::new();
        if left_out > self.told && meter.has_room() {
            lines = format!("{} lines are missing here: nobody read them\n", left_out - self.told);
            self.told = left_out;
        }
        lines.push_str(&format!("{text}\n"));
        let _ = self.outlet.write_all(lines.as_bytes()).and_then(|()| self.outlet.flush());
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
