//! JSON without a character that acts on a terminal: it stands as \uXXXX, which is the same JSON.
//! serde_json does so below U+0020 only.

use std::io;

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::signs::is_hidden;

/// Compact, as serde_json's own.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        out.write_all(visible(text).as_bytes())
    }

    /// JSON that is there already.
    fn write_raw_fragment<W: io::Write + ?Sized>(&mut self, out: &mut W, json: &str) -> io::Result<()> {
        out.write_all(visible(json).as_bytes())
    }
}

/// JSON, or a part of it. What is hidden stands in strings only; what breaks lines stands outside only, where it says nothing.
pub(super) fn visible(json: &str) -> std::borrow::Cow<'_, str> {
    if json.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return json.into();
    }
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '\n' | '\r' | '\t' => out.push(' '),
            hidden if is_hidden(hidden) => push_escaped(&mut out, hidden),
            shown => out.push(shown),
        }
    }
    out.into()
}

pub(super) fn push_escaped(out: &mut String, letter: char) {
    for unit in letter.encode_utf16(&mut [0; 2]) {
        out.push_str(&format!("\\u{unit:04x}"));
    }
}

/// Writes a value as JSON on one line.
///
/// # Errors
/// It can't be written.
pub fn write_json(out: impl io::Write, value: &(impl Serialize + ?Sized)) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(out, Visible))
}

/// A value as JSON on one line.
///
/// # Errors
/// It can't be put into JSON.
pub fn to_json(value: &(impl Serialize + ?Sized)) -> serde_json::Result<String> {
    let mut out = Vec::new();
    write_json(&mut out, value)?;
    // serde_json writes UTF-8 only.
    Ok(String::from_utf8_lossy(&out).into_owned())
}
