//! Between the code that prints and a descriptor that may take nothing for as long as it likes (a pipe nobody reads, a stopped
//! terminal, a full disk): a bounded queue and a thread. No caller waits for the reader; lines that
//! find no room are left out whole, and counted.

mod queue;

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use queue::Queue;

/// Lines are handed over in pieces of about this size.
const CHUNK: usize = 64 << 10;

/// What may wait for the reader of stdout.
const STDOUT_LIMIT: usize = 4 << 20;
/// The same for stderr.
const STDERR_LIMIT: usize = 256 << 10;
/// While the reader is slow but reads, so much of a second may be spent waiting for it.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where lines go in. Bytes wait here until they are flushed or are many; only whole lines are handed over.
#[derive(Debug)]
pub struct Outlet {
    queue: Arc<Queue>,
    pending: Vec<u8>,
}

impl Outlet {
    /// To stdout, for one who must not wait.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn stdout() -> io::Result<Self> {
        Self::to(io::stdout(), "stdout", STDOUT_LIMIT, PATIENCE)
    }

    /// To stderr. Nobody waits for its reader, not even a moment.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn stderr() -> io::Result<Self> {
        Self::to(io::stderr(), "stderr", STDERR_LIMIT, Duration::ZERO)
    }

    fn to(
        out: impl std::os::fd::AsFd + Send + 'static,
        name: &str,
        limit: usize,
        patience: Duration,
    ) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(limit, patience));
        let of_thread = Arc::clone(&queue);
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(128 << 10)
            .spawn(move || of_thread.pump(|bytes| write_some(out.as_fd(), bytes)))?;
        Ok(Self { queue, pending: Vec::new() })
    }

    /// Tells what becomes of what was handed over.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.queue))
    }

    /// Hands over the first so many of the bytes that wait.
    fn hand_over(&mut self, length: usize) {
        let rest = self.pending.split_off(length);
        self.queue.put(std::mem::replace(&mut self.pending, rest));
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK
            && let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n')
        {
            self.hand_over(end + 1);
        }
        self.queue.failure().map_or(Ok(bytes.len()), Err)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.hand_over(self.pending.len());
        }
        self.queue.failure().map_or(Ok(()), Err)
    }
}

/// What became of the lines that were handed over.
#[derive(Clone, Debug)]
pub struct Meter(Arc<Queue>);

impl Meter {
    /// Lines that were left out.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.0.left_out()
    }

    /// Whether the reader keeps up, or does again: what is handed over now will not be left out.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.0.has_room()
    }

    /// Whether all is written that was handed over: there is a reader, and it waits for more.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.is_idle()
    }

    /// Why nothing will be written any more.
    #[must_use]
    pub fn failure(&self) -> Option<io::Error> {
        self.0.failure()
    }

    /// Why nothing can be written now, if that is known and may pass; each time it comes up once.
    #[must_use]
    pub fn take_trouble(&self) -> Option<io::Error> {
        self.0.take_trouble()
    }

    /// From here on nothing is left out for want of room: it is the last that will be said.
    pub fn accept_all(&self) {
        self.0.accept_all();
    }

    /// Waits until all is written, for as long as anything is and at most this long; a reader who takes nothing for `stuck`
    /// is not waited for. Returns how many lines were never written, those left out before included.
    #[must_use]
    pub fn settle(&self, stuck: Duration, at_most: Duration) -> u64 {
        self.0.settle(stuck, at_most)
    }
}

/// One write, which may block. The description may be shared with others, so it is left as it is; whoever made it
/// non-blocking has us wait here.
fn write_some(out: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        match nix::unistd::write(out, bytes) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(out, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            written => return Ok(written?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, pipe};
    use std::time::Instant;

    const STUCK: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(20);

    fn line(number: usize) -> String {
        format!("{{\"line\":{number},\"filler\":\"{}\"}}\n", "x".repeat(200))
    }

    #[test]
    fn a_reader_that_stops_costs_whole_lines_and_they_are_counted() {
        let (reader, writer) = pipe().unwrap();
        let mut outlet = Outlet::to(writer, "test", 256 << 10, Duration::ZERO).unwrap();
        let meter = outlet.meter();
        let began = Instant::now();
        for number in 0..10_000 {
            outlet.write_all(line(number).as_bytes()).unwrap();
        }
        outlet.flush().unwrap();
        assert!(began.elapsed() < LONG, "nobody waits for the reader");
        let left_out = meter.left_out();
        assert!((6_000..10_000).contains(&left_out), "{left_out}");
        assert!(!meter.has_room());
        let unwritten = meter.settle(STUCK, LONG);
        assert!(unwritten > left_out, "{unwritten} of which {left_out} were left out before");
        // It comes back.
        let lines = std::thread::spawn(move || BufReader::new(reader).lines().map(Result::unwrap).collect());
        let until = Instant::now() + LONG;
        while !meter.has_room() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        outlet.write_all(b"{\"line\":\"last\"}\n").unwrap();
        outlet.flush().unwrap();
        assert_eq!(meter.settle(LONG, LONG), left_out, "what waited is written after all");
        drop(outlet);
        meter.0.close();
        let lines: Vec<String> = lines.join().unwrap();
        assert_eq!(lines.len() as u64, 10_001 - left_out);
        assert!(lines.iter().all(|line| line.starts_with("{\"line\":") && line.ends_with('}')));
        assert_eq!(lines.last().unwrap(), "{\"line\":\"last\"}");
    }

    #[test]
    fn a_slow_reader_is_waited_for_a_little() {
        let (reader, writer) = pipe().unwrap();
        let mut outlet = Outlet::to(writer, "test", 128 << 10, LONG).unwrap();
        let lines = std::thread::spawn(move || BufReader::new(reader).lines().count());
        for number in 0..20_000 {
            outlet.write_all(line(number).as_bytes()).unwrap();
        }
        outlet.flush().unwrap();
        assert_eq!(outlet.meter().settle(LONG, LONG), 0);
        outlet.queue.close();
        assert_eq!(lines.join().unwrap(), 20_000);
    }

    #[test]
    fn a_reader_that_went_is_an_error_of_the_next_write() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut outlet = Outlet::to(writer, "test", 128 << 10, Duration::ZERO).unwrap();
        outlet.write_all(b"line\n").unwrap();
        let _ = outlet.flush();
        let until = Instant::now() + LONG;
        let error = loop {
            match outlet.flush() {
                Err(error) => break error,
                Ok(()) => assert!(Instant::now() < until, "it never fails"),
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(outlet.meter().settle(LONG, LONG), 1);
    }

    #[test]
    fn a_full_disk_is_waited_for_and_told() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut outlet = Outlet::to(full, "test", 128 << 10, Duration::ZERO).unwrap();
        outlet.write_all(b"line\nanother\n").unwrap();
        outlet.flush().unwrap();
        assert_eq!(outlet.meter().settle(STUCK, LONG), 2);
        let trouble = outlet.meter().take_trouble().unwrap();
        assert_eq!(trouble.kind(), io::ErrorKind::StorageFull);
        assert!(outlet.meter().take_trouble().is_none(), "once");
        outlet.flush().unwrap();
    }
}
