//! Formatting for people: numbers, lengths of time, sizes, widths, line breaks, colours.
//! It knows no data of ours, so that every view and every message can use it.

mod duration;
mod layout;
mod near;
pub mod shell;
mod size;
mod style;

pub use duration::{duration, short_duration, took};
pub use layout::{COLUMNS, counted, left, percent, rate, right, shorten, signed, thousands, width, wrap};
pub use near::{did_you_mean, nearest};
pub use size::mib;
pub use style::{ALERT, FAINT, OK, PLAIN, Paint, TextOptions, WARN};
