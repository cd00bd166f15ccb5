//! The queue of an outlet: what waits, what was left out, and how the writing goes.
//! A writer waits for room only while the reader is known to read, and never long.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

/// In so much time, the patience may be used up once.
const SECOND: Duration = Duration::from_secs(1);
/// Between two attempts to write to a full disk.
const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
    patience: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// The first one is being written.
    chunks: VecDeque<Arc<Vec<u8>>>,
    /// Bytes of the first one that are written.
    done: usize,
    /// Bytes that wait, those being written included.
    bytes: usize,
    /// Bytes ever written: whether it moves tells a slow reader from one that has stopped.
    written: u64,
    left_out: u64,
    accepts_all: bool,
    failure: Option<Errno>,
    trouble: Option<Errno>,
    is_troubled: bool,
    is_closed: bool,
    waits: Waits,
}

/// How long was waited for the reader lately.
#[derive(Debug, Default)]
struct Waits {
    since: Option<Instant>,
    spent: Duration,
    /// What had been written when waiting was in vain.
    in_vain_at: Option<u64>,
}

impl Queue {
    pub fn new(limit: usize, patience: Duration) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), limit, patience }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts whole lines in, or leaves them out.
    pub fn put(&self, chunk: Vec<u8>) {
        let mut state = self.lock();
        if !self.fits(&state, chunk.len()) {
            state = self.wait_for_room(state, chunk.len());
        }
        if state.failure.is_some() || !self.fits(&state, chunk.len()) {
            state.left_out += lines(&chunk);
            return;
        }
        state.bytes += chunk.len();
        state.chunks.push_back(Arc::new(chunk));
        self.changed.notify_all();
    }

    fn fits(&self, state: &State, length: usize) -> bool {
        state.accepts_all || state.chunks.is_empty() || state.bytes + length <= self.limit
    }

    fn wait_for_room<'a>(&self, mut state: MutexGuard<'a, State>, length: usize) -> MutexGuard<'a, State> {
        let began = Instant::now();
        let written = state.written;
        if state.waits.in_vain_at == Some(written) {
            return state;
        }
        if state.waits.since.is_none_or(|since| began - since >= SECOND) {
            state.waits = Waits { since: Some(began), ..Waits::default() };
        }
        let left = self.patience.saturating_sub(state.waits.spent);
        while !self.fits(&state, length) && state.failure.is_none() {
            let remaining = left.saturating_sub(began.elapsed());
            if remaining.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, remaining).unwrap_or_else(PoisonError::into_inner).0;
        }
        let spent = began.elapsed();
        state.waits.spent += spent;
        state.waits.in_vain_at = (state.written == written && spent >= left).then_some(written);
        state
    }

    /// Writes what comes, until it is closed or writing fails for good.
    pub fn pump(&self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) {
        while let Some((chunk, done)) = self.next() {
            let result = write(piece(&chunk[done..])).and_then(|written| match written {
                0 => Err(Errno::EIO.into()),
                _ => Ok(written),
            });
            let mut state = self.lock();
            match result {
                Ok(written) => state.advance(written),
                Err(error) => {
                    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                    if !may_pass(errno) {
                        state.failure = Some(errno);
                        self.changed.notify_all();
                        return;
                    }
                    if !std::mem::replace(&mut state.is_troubled, true) {
                        state.trouble = Some(errno);
                    }
                    drop(state);
                    std::thread::sleep(RETRY);
                }
            }
            self.changed.notify_all();
        }
    }

    /// Waits for something to write; it stays in the queue until it is written. `None` once the queue is closed.
    fn next(&self) -> Option<(Arc<Vec<u8>>, usize)> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.chunks.front() {
                return Some((Arc::clone(chunk), state.done));
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn failure(&self) -> Option<io::Error> {
        self.lock().failure.map(io::Error::from)
    }

    pub fn take_trouble(&self) -> Option<io::Error> {
        self.lock().trouble.take().map(io::Error::from)
    }

    pub fn left_out(&self) -> u64 {
        self.lock().left_out
    }

    pub fn has_room(&self) -> bool {
        self.lock().bytes <= self.limit / 2
    }

    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.chunks.is_empty() && state.failure.is_none()
    }

    pub fn accept_all(&self) {
        self.lock().accepts_all = true;
    }

    /// The thread ends once all is written.
    #[cfg(test)]
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// See [`super::Meter::settle`].
    pub fn settle(&self, stuck: Duration, at_most: Duration) -> u64 {
        let end = Instant::now() + at_most;
        let mut state = self.lock();
        let (mut written, mut since) = (state.written, Instant::now());
        while !state.chunks.is_empty() && state.failure.is_none() {
            let now = Instant::now();
            if state.written != written {
                (written, since) = (state.written, now);
            }
            let until = end.min(since + stuck);
            if now >= until {
                break;
            }
            state = self.changed.wait_timeout(state, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
        let waiting: u64 = state.chunks.iter().map(|chunk| lines(chunk)).sum();
        let written = state.chunks.front().map_or(0, |chunk| lines(&chunk[..state.done]));
        state.left_out + waiting - written
    }
}

impl State {
    fn advance(&mut self, written: usize) {
        self.is_troubled = false;
        self.trouble = None;
        self.written += written as u64;
        self.bytes -= written;
        self.done += written;
        if self.chunks.front().is_some_and(|chunk| chunk.len() <= self.done) {
            self.chunks.pop_front();
            self.done = 0;
        }
    }
}

/// What is written at once: whole lines where they are short enough for the kernel to take them as one (pipe(7)). So the
/// process may end at any moment, and no such line is cut.
fn piece(bytes: &[u8]) -> &[u8] {
    let most = &bytes[..bytes.len().min(libc::PIPE_BUF)];
    match most.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => &most[..=end],
        None => most,
    }
}

/// Space may be made on a disk; a pipe whose reader went stays closed.
fn may_pass(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSPC | Errno::EDQUOT)
}

fn lines(chunk: &[u8]) -> u64 {
    chunk.iter().filter(|byte| **byte == b'\n').count() as u64
}
