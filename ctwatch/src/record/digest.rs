//! Checksums of what rows mean, not of how SQLite stores them.
//! A bit flipped in the file shows as a row whose checksum doesn't match.

use crate::model::WallMono;

/// A CRC-32 of numbers and texts.
#[derive(Clone, Debug, Default)]
pub struct Digest(crc32fast::Hasher);

impl Digest {
    /// Adds a number.
    pub fn int(&mut self, value: i64) -> &mut Self {
        self.0.update(&value.to_le_bytes());
        self
    }

    /// Adds a moment: both clocks.
    pub fn instant(&mut self, at: &WallMono) -> &mut Self {
        self.int(at.time.as_microsecond()).int(at.mono_us)
    }

    /// Adds several numbers.
    pub fn ints(&mut self, values: &[i64]) -> &mut Self {
        for value in values {
            self.int(*value);
        }
        self
    }

    /// Adds a number that may be unknown.
    pub fn optional(&mut self, value: Option<i64>) -> &mut Self {
        self.int(i64::from(value.is_some())).int(value.unwrap_or(0))
    }

    /// Adds a text with its length, so that two successive texts can't be confused with others.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.int(text.len() as i64).0.update(text.as_bytes());
        self
    }

    /// Adds a text that may be unknown.
    pub fn optional_text(&mut self, text: Option<&str>) -> &mut Self {
        self.int(i64::from(text.is_some())).text(text.unwrap_or_default())
    }

    /// The checksum.
    #[must_use]
    pub fn finish(&self) -> u32 {
        self.0.clone().finalize()
    }
}
