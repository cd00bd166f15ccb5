//! Bytes as text from which they can be read back: the kernel's names hold any byte but NUL and, some of them, `/`.
//! A byte NN that is no UTF-8 becomes U+10FFNN; where the text has such a character itself, its four bytes do.

/// The private characters that stand for bytes.
const STAND_INS: std::ops::RangeInclusive<char> = '\u{10ff80}'..='\u{10ffff}';

pub(super) fn to_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if STAND_INS.contains(&letter) {
                text.extend(letter.encode_utf8(&mut [0; 4]).bytes().map(stand_in));
            } else {
                text.push(letter);
            }
        }
        text.extend(chunk.invalid().iter().copied().map(stand_in));
    }
    text
}

/// What is no UTF-8 has its highest bit set.
fn stand_in(byte: u8) -> char {
    char::from_u32(0x10_ff00 | u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// What a character of such text was.
#[must_use]
pub fn bytes_of(letter: char) -> Vec<u8> {
    byte(letter).map_or_else(|| letter.encode_utf8(&mut [0; 4]).as_bytes().to_vec(), |byte| vec![byte])
}

/// The byte that a character stands for.
pub(super) fn byte(letter: char) -> Option<u8> {
    STAND_INS.contains(&letter).then_some(letter as u32 as u8)
}
