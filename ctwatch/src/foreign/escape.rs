//! Escapes: of names, so that what is shown tells what it was, and of sentences, whose backslashes stay.
//! Both leave nothing that acts on a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::bytes;
use super::signs::{is_hidden, is_mark, of_char};

/// Marks on one letter that are shown as such; more of them climb over the lines above.
const MARKS: usize = 3;

/// One character as it is shown.
enum Sign {
    AsItIs(char),
    Escaped(String),
}

impl Sign {
    fn columns(&self) -> usize {
        match self {
            Self::AsItIs(letter) => of_char(*letter),
            Self::Escaped(text) => text.len(),
        }
    }

    fn push_to(&self, out: &mut String) {
        match self {
            Self::AsItIs(letter) => out.push(*letter),
            Self::Escaped(text) => out.push_str(text),
        }
    }
}

/// Each character as it is shown. `marks` are those that may follow at first.
fn signs(text: &str, doubles_backslashes: bool) -> impl Iterator<Item = Sign> {
    let mut room_for_marks = 0;
    text.chars().map(move |letter| {
        let (sign, room) = match letter {
            '\n' => (Sign::Escaped("\\n".to_owned()), 0),
            '\r' => (Sign::Escaped("\\r".to_owned()), 0),
            '\t' => (Sign::Escaped("\\t".to_owned()), 0),
            '\\' if doubles_backslashes => (Sign::Escaped("\\\\".to_owned()), 0),
            // A mark on a space or on punctuation changes what that looks like.
            _ if letter.is_ascii() && !letter.is_ascii_control() => {
                (Sign::AsItIs(letter), if letter.is_ascii_alphanumeric() { MARKS } else { 0 })
            }
            _ => match bytes::byte(letter) {
                Some(byte) => (Sign::Escaped(format!("\\x{byte:02x}")), 0),
                None if letter.is_ascii() => (Sign::Escaped(format!("\\x{:02x}", u32::from(letter))), 0),
                None if is_hidden(letter) || (is_mark(letter) && room_for_marks == 0) => {
                    (Sign::Escaped(format!("\\u{{{:x}}}", u32::from(letter))), 0)
                }
                None if is_mark(letter) => (Sign::AsItIs(letter), room_for_marks - 1),
                None => (Sign::AsItIs(letter), MARKS),
            },
        };
        room_for_marks = room;
        sign
    })
}

/// A name, so that it can be told what it was; where it is longer than so many columns, its beginning and "…".
pub(super) fn name(text: &str, longest: usize) -> String {
    // Most names are plain, and plain ones are as they are shown.
    if text.len() <= longest && text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'\\') {
        return text.to_owned();
    }
    bounded(signs(text, true), longest)
}

fn bounded(signs: impl Iterator<Item = Sign>, longest: usize) -> String {
    let (mut out, mut taken, mut cut_at, mut cut_taken) = (String::new(), 0, 0, 0);
    for sign in signs {
        let more = sign.columns();
        if taken + more > longest {
            out.truncate(cut_at);
            // Nothing fits but what says that something is missing.
            if cut_taken < longest {
                out.push('…');
            }
            return out;
        }
        taken += more;
        sign.push_to(&mut out);
        if taken < longest {
            (cut_at, cut_taken) = (out.len(), taken);
        }
    }
    out
}

/// A sentence on one line in which nothing acts on a terminal. What is so already stays as it is.
#[must_use]
pub fn harmless(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    signs(text, false).for_each(|sign| sign.push_to(&mut out));
    if out == text { Cow::Borrowed(text) } else { Cow::Owned(out) }
}

/// The same where ctwatch put colours on: ESC [ numbers m stay.
#[must_use]
pub fn harmless_painted(text: &str) -> Cow<'_, str> {
    if !text.contains('\u{1b}') {
        return harmless(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\u{1b}') {
        out.push_str(&harmless(&rest[..at]));
        let colour = colour(&rest[at..]);
        match colour {
            Some(length) => out.push_str(&rest[at..at + length]),
            None => {
                let _ = write!(out, "\\x1b");
            }
        }
        rest = &rest[at + colour.unwrap_or(1)..];
    }
    out.push_str(&harmless(rest));
    Cow::Owned(out)
}

/// The length of the code for a colour that this begins with.
fn colour(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|letter: char| !letter.is_ascii_digit() && letter != ';')?;
    numbers[end..].starts_with('m').then_some(end + 3)
}
