//! Lines on a terminal. What reaches it is escaped where it is made; this is the net below that, for what slipped through.
//! Nothing but the codes of our own colours gets past it.

use std::fmt;
use std::io::{self, BufWriter, Write};

use crate::foreign::{harmless, harmless_painted};

/// Where a text view writes to.
#[derive(Debug)]
pub(super) struct Screen<W: Write> {
    out: BufWriter<W>,
    color: bool,
}

impl<W: Write> Screen<W> {
    pub fn new(out: W, color: bool) -> Self {
        Self { out: BufWriter::new(out), color }
    }

    /// For `writeln!`.
    pub fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        for line in text.to_string().split_inclusive('\n') {
            let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
            let text = if self.color { harmless_painted(text) } else { harmless(text) };
            self.out.write_all(text.as_bytes())?;
            self.out.write_all(end.as_bytes())?;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_colours_get_through() {
        for (color, shown) in
            [(true, "\u{1b}[31mx\u{1b}[0m\\x1b[2J\n"), (false, "\\x1b[31mx\\x1b[0m\\x1b[2J\n")]
        {
            let mut out = Vec::new();
            writeln!(Screen::new(&mut out, color), "\u{1b}[31mx\u{1b}[0m\u{1b}[2J").unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), shown);
        }
    }
}
