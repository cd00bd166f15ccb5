//! Cells of CSV files. Spreadsheets run what begins with one of a few characters: such a cell gets an apostrophe in front,
//! as OWASP's "CSV injection" has it. Where a spreadsheet splits at other separators than commas, that holds for each part.

use super::escape::{harmless, name};
use super::json::{push_escaped, visible};

/// What makes a cell a formula, and the same characters at full width.
const STARTS: &[char] = &['=', '+', '-', '@', '＝', '＋', '－', '＠'];
/// Where others than us split a line. Tabs and line breaks are escaped before.
const SEPARATORS: &[char] = &[';', '|'];

/// A name.
pub(super) fn name_cell(text: &str) -> String {
    guarded(&name(text, usize::MAX))
}

/// A sentence of ctwatch's, in which names are escaped.
#[must_use]
pub fn sentence_cell(text: &str) -> String {
    guarded(&harmless(text))
}

/// JSON: it stays JSON of the same meaning. What is none is shown as a sentence.
#[must_use]
pub fn json_cell(text: &str) -> String {
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return sentence_cell(text);
    }
    let text = text.trim();
    if is_number(text) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    // Separators stand in strings only, and so does what comes right behind them. All of it may be one string.
    let mut is_start = text.starts_with('"');
    for letter in visible(text).chars() {
        if is_start && STARTS.contains(&letter) {
            push_escaped(&mut out, letter);
        } else {
            out.push(letter);
        }
        is_start = SEPARATORS.contains(&letter) || (is_start && [' ', '"', '\\', '\''].contains(&letter));
    }
    out
}

fn guarded(text: &str) -> String {
    if is_number(text) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 1);
    for part in text.split_inclusive(SEPARATORS) {
        let shown = part.trim_start_matches([' ', '"', '\'']);
        // An apostrophe that stands there already isn't ours, and a spreadsheet may swallow it.
        if shown.starts_with(STARTS) {
            out.push('\'');
        }
        out.push_str(part);
    }
    out
}

/// "-1", "+2.5", "-1e-7"
fn is_number(text: &str) -> bool {
    let unsigned = |text| str::strip_prefix(text, ['-', '+']).unwrap_or(text);
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (digits, power) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    if !is_digits(unsigned(power)) {
        return false;
    }
    let digits = unsigned(digits);
    match digits.split_once('.') {
        Some((whole, part)) => is_digits(whole) && is_digits(part),
        None => is_digits(digits),
    }
}

/// Whether a spreadsheet that splits at any usual separator takes a part of this for a formula.
#[cfg(test)]
pub(super) fn runs(cell: &str) -> bool {
    !is_number(cell)
        && cell
            .split([';', '|', '\t', '\n', '\r'])
            .any(|part| part.trim_start_matches([' ', '"']).starts_with(STARTS))
}
