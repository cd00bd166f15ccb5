//! What guests say while they run: side by side, so that each line names its guest, and kept for counting.
//! Not a word may be changed on the way.

use std::io::{self, Write};

/// Writes whole lines, each with the guest's name before it.
pub struct Prefixed<W: Write> {
    name: String,
    to: W,
    begun: Vec<u8>,
}

impl<W: Write> Prefixed<W> {
    /// Lines to `to`, each after `name`.
    pub fn new(name: &str, to: W) -> Self {
        Self { name: format!("{name:<7} "), to, begun: Vec::new() }
    }
}

impl<W: Write> Write for Prefixed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        if let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') {
            // In one piece: another guest may be writing, too.
            let mut piece = Vec::new();
            for line in self.begun[..=end].split_inclusive(|byte| *byte == b'\n') {
                piece.extend_from_slice(self.name.as_bytes());
                piece.extend_from_slice(line);
            }
            self.to.write_all(&piece)?;
            self.begun.drain(..=end);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Drop for Prefixed<W> {
    fn drop(&mut self) {
        if !self.begun.is_empty() {
            // Nobody is left to be told of an error.
            let _ = self.write_all(b"\n").and_then(|()| self.flush());
        }
    }
}

/// Passes everything on and keeps it.
pub struct Kept<'a> {
    to: &'a mut (dyn Write + Send),
    bytes: Vec<u8>,
}

impl<'a> Kept<'a> {
    /// Passes on to `to`.
    pub fn new(to: &'a mut (dyn Write + Send)) -> Self {
        Self { to, bytes: Vec::new() }
    }

    /// All that was written.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Write for Kept<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        self.to.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_names_its_guest_however_it_comes() {
        let mut out = Vec::new();
        let mut prefixed = Prefixed::new("vm-7", &mut out);
        for piece in ["ok a\nok", " b\n", "", "the e", "nd"] {
            prefixed.write_all(piece.as_bytes()).unwrap();
        }
        drop(prefixed);
        assert_eq!(String::from_utf8(out).unwrap(), "vm-7    ok a\nvm-7    ok b\nvm-7    the end\n");
    }
}
