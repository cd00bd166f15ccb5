//! What people read: a line on stderr. Whoever read it may have gone, and that is no reason to end anything.
//! The only way to stderr, as `eprintln!` panics where it can't write. Nothing in a line acts on a terminal.

use std::fmt::Display;
use std::io::Write as _;

use crate::foreign::harmless;

/// Writes a line, or nothing where nobody reads it. More lines are indented: they are no messages of their own.
pub fn line(text: impl Display) {
    // In one piece, so that lines of several threads don't mix.
    let _ = std::io::stderr().lock().write_all((one_message(&text.to_string()) + "\n").as_bytes());
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
