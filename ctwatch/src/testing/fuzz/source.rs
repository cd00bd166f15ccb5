//! Values made of an input's bytes, extremes more often than not. What has ended gives zeros.

use jiff::Timestamp;

use crate::model::WallMono;

/// What is left of an input.
pub(super) struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of so many.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn number(&mut self) -> i64 {
        let kind = self.byte();
        let small = i64::from(self.byte());
        match kind % 8 {
            0 => small,
            1 => -small,
            2 => i64::MAX - small,
            3 => i64::MIN + small,
            4 => i64::from(u32::MAX) - 128 + small,
            5 => i64::from(i32::MAX) - 128 + small,
            6 => small * 1_000_000,
            _ => self.array().map_or(0, i64::from_le_bytes),
        }
    }

    pub fn unsigned(&mut self) -> u64 {
        self.number().cast_unsigned()
    }

    pub fn small(&mut self) -> u32 {
        self.number() as u32
    }

    pub fn optional<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (found, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*found)
    }

    /// Up to 255 bytes, whatever they are.
    pub fn text(&mut self) -> String {
        let length = usize::from(self.byte()).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    /// Any time that there is, the first and the last one more often than others.
    pub fn time(&mut self) -> Timestamp {
        let us = self.number();
        let end = if us < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Timestamp::from_microsecond(us).unwrap_or(end)
    }

    pub fn moment(&mut self) -> WallMono {
        WallMono { time: self.time(), mono_us: self.number() }
    }
}
