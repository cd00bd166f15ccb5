//! Which characters can't be shown as they are, and how many columns the others take.
//! The ranges are Unicode 16's, by its general categories; a character that a later one adds takes a column and is shown.

use unicode_width::UnicodeWidthChar as _;

/// Cc, Cf, Zl, Zp, Zs but the space, Co, noncharacters, Default_Ignorable_Code_Point, and letters that look like nothing.
const HIDDEN: &[(u32, u32)] = &[
    (0x0000, 0x001f),
    (0x007f, 0x00a0),
    (0x00ad, 0x00ad),
    (0x034f, 0x034f),
    (0x0600, 0x0605),
    (0x061c, 0x061c),
    (0x06dd, 0x06dd),
    (0x070f, 0x070f),
    (0x0890, 0x0891),
    (0x08e2, 0x08e2),
    (0x115f, 0x1160),
    (0x1680, 0x1680),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x2000, 0x200f),
    (0x2028, 0x202f),
    (0x205f, 0x206f),
    (0x2800, 0x2800),
    (0x3000, 0x3000),
    (0x3164, 0x3164),
    (0xe000, 0xf8ff),
    (0xfdd0, 0xfdef),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfffb),
    (0xfffe, 0xffff),
    (0x1_10bd, 0x1_10bd),
    (0x1_10cd, 0x1_10cd),
    (0x1_3430, 0x1_343f),
    (0x1_bca0, 0x1_bca3),
    (0x1_d159, 0x1_d159),
    (0x1_d173, 0x1_d17a),
    (0xe_0000, 0xe_0fff),
    (0xf_0000, 0x10_ffff),
];

/// Whether nobody sees it, or sees by it something else than is there: control characters, marks of direction, invisible
/// ones, spaces that aren't the space, private ones.
#[must_use]
pub fn is_hidden(letter: char) -> bool {
    // The last two of each plane are no characters.
    let code = u32::from(letter);
    let after = HIDDEN.partition_point(|(from, _)| *from <= code);
    code & 0xfffe == 0xfffe || after.checked_sub(1).is_some_and(|at| code <= HIDDEN[at].1)
}

/// Whether it stands on what is before it.
pub(super) fn is_mark(letter: char) -> bool {
    !letter.is_ascii() && letter.width() == Some(0)
}

/// Columns of a terminal that text takes which has no control characters.
#[must_use]
pub fn columns(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.chars().map(of_char).sum() }
}

pub(super) fn of_char(letter: char) -> usize {
    letter.width().unwrap_or(1)
}
