//! Text from outside: whatever a process, a container, a file, a rule or a recording calls itself. It is shown only escaped.
//! One type, which has no other way to a screen; and a net for sentences in which such text may stand already.

mod bytes;
mod escape;
mod json;
mod signs;
mod spreadsheet;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use bytes::bytes_of;
pub use escape::{harmless, harmless_painted};
pub use json::{to_json, write_json};
pub use signs::{columns, is_hidden};
pub use spreadsheet::{json_cell, sentence_cell};

/// What a screen gets of one piece of text from outside, columns.
const LONGEST: usize = 512;

/// Text that ctwatch didn't write.
///
/// It is kept as it came. A byte NN that is no UTF-8 is kept as the private character U+10FFNN, so that nothing is lost and
/// all that takes text takes it. Whoever prints it prints it escaped, so that it is on one line, moves no cursor, hides nothing
/// and turns no text around:
///
/// | shown | for |
/// |---|---|
/// | `\\` | a backslash |
/// | `\n` `\r` `\t` | these |
/// | `\x1b` | other control characters of ASCII |
/// | `\xff` | a byte (from 80 on) that is no UTF-8 |
/// | `\u{202e}` | what can't be seen, changes the direction of text, or stands on what is before it |
///
/// What is shown tells what it was. More than 512 columns end in "…".
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Foreign(Box<str>);

impl Foreign {
    /// Its length in bytes, as it came.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// From the kernel's bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes::to_text(bytes).into())
    }

    /// As it came: for keys, files and programs, never for a screen.
    #[must_use]
    pub const fn raw(&self) -> &str {
        &self.0
    }

    /// As it came.
    #[must_use]
    pub fn into_raw(self) -> String {
        self.0.into()
    }

    /// There is nothing in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether somebody who types this means it: what can't be typed is typed as it is shown.
    #[must_use]
    pub fn is_called(&self, typed: &str) -> bool {
        *self == *typed || self.within(LONGEST) == *typed
    }

    /// What is shown of it if there are so many columns.
    #[must_use]
    pub fn within(&self, columns: usize) -> String {
        escape::name(&self.0, columns)
    }

    /// A sentence of ctwatch's that comes back from a recording: names in it were escaped before, so backslashes stay.
    #[must_use]
    pub fn sentence(&self) -> Cow<'_, str> {
        harmless(&self.0)
    }

    /// As a cell of a CSV file: escaped, in full, and nothing that a spreadsheet runs.
    #[must_use]
    pub fn cell(&self) -> String {
        spreadsheet::name_cell(&self.0)
    }
}

impl fmt::Display for Foreign {
    /// A width counts columns; a precision is the most of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.within(f.precision().unwrap_or(LONGEST));
        let missing = f.width().unwrap_or(0).saturating_sub(columns(&shown));
        let before = match f.align() {
            Some(fmt::Alignment::Right) => missing,
            Some(fmt::Alignment::Center) => missing / 2,
            Some(fmt::Alignment::Left) | None => 0,
        };
        write!(f, "{:before$}{shown}{:after$}", "", "", after = missing - before)
    }
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.within(LONGEST).replace('"', "\\\""))
    }
}

impl From<&str> for Foreign {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Foreign {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&OsStr> for Foreign {
    fn from(text: &OsStr) -> Self {
        Self::from_bytes(text.as_bytes())
    }
}

impl PartialEq<str> for Foreign {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<String> for Foreign {
    fn eq(&self, other: &String) -> bool {
        *self == **other
    }
}

impl PartialEq<&str> for Foreign {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

/// JSON has its own escapes: see [`to_json`].
impl Serialize for Foreign {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Foreign {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

/// Names in one row.
const IN_A_ROW: usize = 8;

/// Several names in a row: "nginx, php-fpm". Processes take any name, and any number of names: of many, the first.
#[must_use]
pub fn joined(names: &[Foreign]) -> String {
    let (shown, others) = names.split_at(names.len().min(IN_A_ROW));
    let shown = shown.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if others.is_empty() { shown } else { format!("{shown} and {} more", others.len()) }
}

/// Paths are text from outside, too.
pub trait Shown {
    /// To be printed.
    fn shown(&self) -> Foreign;
}

impl Shown for Path {
    fn shown(&self) -> Foreign {
        self.as_os_str().into()
    }
}

impl Shown for OsStr {
    fn shown(&self) -> Foreign {
        self.into()
    }
}

#[cfg(test)]
mod tests;
