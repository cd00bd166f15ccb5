//! Checksums over what rows mean, not over how SQLite stores it.
//! A bit that flipped in the file shows as a row whose checksum is another one.

use crate::model::WallMono;

/// A CRC-32 over numbers and texts.
#[derive(Clone, Debug, Default)]
pub struct Digest(crc32fast::Hasher);

impl Digest {
    /// Takes in a number.
    pub fn int(&mut self, value: i64) -> &mut Self {
        self.0.update(&value.to_le_bytes());
        self
    }

    /// Takes in an instant: both clocks.
    pub fn instant(&mut self, at: &WallMono) -> &mut Self {
        self.int(at.time.as_microsecond()).int(at.mono_us)
    }

    /// Takes in several.
    pub fn ints(&mut self, values: &[i64]) -> &mut Self {
        for value in values {
            self.int(*value);
        }
        self
    }

    /// Takes in a number that may be unknown.
    pub fn optional(&mut self, value: Option<i64>) -> &mut Self {
        self.int(i64::from(value.is_some())).int(value.unwrap_or(0))
    }

    /// Takes in a text with its length, so that two texts in a row don't run into each other.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.int(text.len() as i64).0.update(text.as_bytes());
        self
    }

    /// Takes in a text that may be unknown.
    pub fn optional_text(&mut self, text: Option<&str>) -> &mut Self {
        self.int(i64::from(text.is_some())).text(text.unwrap_or_default())
    }

    /// The checksum.
    #[must_use]
    pub fn finish(&self) -> u32 {
        self.0.clone().finalize()
    }
}
