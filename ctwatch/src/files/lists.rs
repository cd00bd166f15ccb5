//! Lists of the kernel's whose length others decide: routes, devices, sockets of somebody's netns. They are read line by line and
//! up to a limit; nothing is kept here. A list that was cut says so, as nothing follows from what isn't in it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::foreign::Foreign;

/// No line of such a list is that long.
const LINE: u64 = 64 << 10;

/// What lists that belong together may take, all of them.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    until: Instant,
    bytes: u64,
}

/// How much of a list was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Extent {
    /// All of it, or as much as was wanted.
    Whole,
    /// The limit came first.
    Cut,
}

impl Limit {
    /// From now on.
    #[must_use]
    pub fn new(time: Duration, bytes: u64) -> Self {
        Self { until: Instant::now() + time, bytes }
    }

    /// The same, but no longer than this from now on.
    #[must_use]
    pub fn at_most(self, time: Duration) -> Self {
        Self { until: self.until.min(Instant::now() + time), ..self }
    }

    /// When the time is over.
    #[must_use]
    pub const fn until(&self) -> Instant {
        self.until
    }

    /// The time is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// Shows each line without its end, until there are no more or `each` has seen enough.
///
/// # Errors
/// It can't be opened or read.
pub fn each_line(
    path: &Path,
    limit: &mut Limit,
    mut each: impl FnMut(&str) -> ControlFlow<()>,
) -> io::Result<Extent> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut file).take(LINE).read_until(b'\n', &mut line)? as u64;
        if length == 0 {
            return Ok(Extent::Whole);
        }
        let is_end = line.pop_if(|last| *last == b'\n').is_some();
        if limit.is_over() || length > limit.bytes || (!is_end && length == LINE) {
            return Ok(Extent::Cut);
        }
        limit.bytes -= length;
        // Names of devices may be of any bytes.
        let seen = match std::str::from_utf8(&line) {
            Ok(text) => each(text),
            Err(_) => each(Foreign::from_bytes(&line).raw()),
        };
        if seen.is_break() {
            return Ok(Extent::Whole);
        }
    }
}

/// A list as one text; `None` if it was cut.
///
/// # Errors
/// As [`each_line`].
pub fn text(path: &Path, limit: &mut Limit) -> io::Result<Option<String>> {
    let mut all = String::new();
    let extent = each_line(path, limit, |line| {
        all.push_str(line);
        all.push('\n');
        ControlFlow::Continue(())
    })?;
    Ok((extent == Extent::Whole).then_some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn list(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_list_is_read_to_its_end_and_several_share_a_limit() {
        let file = list(b"one\ntwo\xff\nthree");
        let mut limit = Limit::new(MINUTE, 30);
        let mut seen = Vec::new();
        let extent = each_line(file.path(), &mut limit, |line| {
            seen.push(Foreign::from(line).to_string());
            ControlFlow::Continue(())
        });
        assert_eq!(extent.unwrap(), Extent::Whole);
        assert_eq!(seen, ["one", "two\\xff", "three"]);
        assert!(text(file.path(), &mut limit).unwrap().is_some_and(|text| text.ends_with("three\n")));
        assert_eq!(text(file.path(), &mut limit).unwrap(), None, "nothing is left for a third time");
        assert!(text(Path::new("/nowhere"), &mut limit).is_err());
    }

    #[test]
    fn a_list_that_takes_too_long_or_has_an_endless_line_is_cut() {
        let file = list(b"one\ntwo\n");
        assert_eq!(text(file.path(), &mut Limit::new(Duration::ZERO, 1 << 20)).unwrap(), None);
        let endless = list(&[b'x'; 2 * LINE as usize]);
        assert_eq!(text(endless.path(), &mut Limit::new(MINUTE, 1 << 20)).unwrap(), None);
        // Without an end: zeros have no lines.
        assert_eq!(text(Path::new("/dev/zero"), &mut Limit::new(MINUTE, 1 << 20)).unwrap(), None);
    }

    #[test]
    fn whoever_has_seen_enough_ends_it() {
        let file = list(b"one\ntwo\n");
        let mut limit = Limit::new(MINUTE, 4);
        let extent = each_line(file.path(), &mut limit, |_| ControlFlow::Break(()));
        assert_eq!(extent.unwrap(), Extent::Whole);
    }
}
