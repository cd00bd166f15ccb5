//! What people read: a line on stderr. Whoever read it may have gone, and that is no reason to end anything.
//! The only way to stderr, as `eprintln!` panics where it can't write.

use std::fmt::Display;
use std::io::Write as _;

/// Writes a line, or nothing where nobody reads it.
pub fn line(text: impl Display) {
    // In one piece, so that lines of several threads don't mix.
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}
