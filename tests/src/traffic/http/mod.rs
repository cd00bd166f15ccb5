//! An open loop: requests begin at a fixed rate, whatever becomes of those before. A closed loop, such as wrk's, slows down
//! when the table is full, and so hides the demand. One thread, no waiting anywhere but in epoll; a late start is shown.

mod connection;
mod report;
mod response;
mod sources;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

pub use report::{Percentiles, Report, Second};
pub use sources::of_url;

use connection::{Connection, Step};
use report::Books;

/// Requests begun before events are looked at again.
const AT_ONCE: u64 = 64;

/// What to send, and how often.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub to: SocketAddr,
    /// The path asked for.
    pub path: String,
    /// Requests a second.
    pub rate: f64,
    /// How long requests begin.
    pub seconds: f64,
    /// A request that takes longer has failed; its connection is closed.
    pub timeout: Duration,
    /// Requests a connection carries; 1 is a new connection for each.
    pub per_connection: u32,
    /// When each request really began.
    pub begun: Begun,
}

/// When requests really began: whoever was kept from it makes up for it later. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Begun(Arc<Mutex<Vec<Instant>>>);

impl Begun {
    fn note(&self, at: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(at);
    }

    /// The lowest and the highest rate, requests/s, over so long a window, wherever it lies between these two.
    pub fn rates(&self, from: Instant, until: Instant, window: Duration) -> (f64, f64) {
        /// From one window to the next.
        const STEP: Duration = Duration::from_millis(100);
        let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rates = (f64::MAX, 0.0_f64);
        let mut start = from;
        loop {
            let within = begun.iter().filter(|at| (start..start + window).contains(at)).count();
            let rate = within as f64 / window.as_secs_f64();
            rates = (rates.0.min(rate), rates.1.max(rate));
            start += STEP;
            if start + window > until {
                return rates;
            }
        }
    }
}

impl Load {
    /// A new connection for each request to the root of a server, with 3 s for each.
    pub fn new(to: SocketAddr, rate: f64, seconds: f64) -> Self {
        Self {
            to,
            path: "/".to_owned(),
            rate,
            seconds,
            timeout: Duration::from_secs(3),
            per_connection: 1,
            begun: Begun::default(),
        }
    }

    /// Runs it to the end of the last request.
    pub fn run(&self) -> Result<Report> {
        ensure!(
            self.rate > 0.0 && self.seconds > 0.0 && self.per_connection > 0,
            "a load needs a rate and a time"
        );
        Run::new(self)?.finish()
    }

    fn due(&self, index: u64) -> Duration {
        Duration::from_secs_f64(index as f64 / self.rate)
    }
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
struct Request {
    due: Duration,
    /// Its number, so that a deadline doesn't meet a later request on the same connection.
    index: u64,
}

struct Run<'a> {
    load: &'a Load,
    epoll: Epoll,
    began: Instant,
    total: u64,
    next: u64,
    in_flight: usize,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    idle: VecDeque<usize>,
    /// All requests have the same time to live, so the first to begin is the first to be over.
    deadlines: VecDeque<(Duration, usize, u64)>,
    books: Books,
}

impl<'a> Run<'a> {
    fn new(load: &'a Load) -> Result<Self> {
        let total = (load.rate * load.seconds).round() as u64;
        Ok(Self {
            load,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?,
            total,
            next: 0,
            in_flight: 0,
            slots: Vec::new(),
            free: Vec::new(),
            idle: VecDeque::new(),
            deadlines: VecDeque::new(),
            books: Books::new(load.rate, load.seconds, (0..total).map(|index| load.due(index))),
            began: Instant::now(),
        })
    }

    fn finish(mut self) -> Result<Report> {
        let mut events = vec![EpollEvent::empty(); 512];
        while self.next < self.total || self.in_flight > 0 {
            let behind = self.begin_what_is_due();
            self.give_up_what_is_overdue();
            let timeout = if behind { Duration::ZERO } else { self.until_next() };
            // Whole milliseconds, rounded up: to spin through the last one would take the CPU from the server.
            let timeout = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            let timeout = EpollTimeout::try_from(timeout).context("a timeout")?;
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("waiting for connections"),
            };
            for event in &events[..count] {
                self.advance(event.data() as usize);
            }
        }
        Ok(self.books.close())
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// True if more is due already.
    fn begin_what_is_due(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            let due = self.load.due(self.next);
            let now = self.now();
            if self.next >= self.total || due > now {
                return false;
            }
            let request = Request { due, index: self.next };
            self.next += 1;
            self.books.started(due, now);
            self.load.begun.note(self.began + now);
            self.begin(request, now);
        }
        true
    }

    fn begin(&mut self, request: Request, now: Duration) {
        self.in_flight += 1;
        self.books.in_flight(self.in_flight);
        let slot = loop {
            // The one that has waited longest, if the server hasn't closed it.
            let Some(slot) = self.idle.pop_front() else { break None };
            if self.slots[slot].is_some() {
                break Some(slot);
            }
        };
        let slot = match slot {
            Some(slot) => slot,
            None => match self.connect() {
                Ok(slot) => slot,
                Err(reason) => return self.failed(reason, now),
            },
        };
        self.deadlines.push_back((request.due + self.load.timeout, slot, request.index));
        let last = self.load.per_connection;
        if let Some(connection) = &mut self.slots[slot] {
            connection.send(request, &self.load.path, self.load.to, last);
        }
        self.advance(slot);
    }

    fn connect(&mut self) -> Result<usize, String> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        match Connection::open(self.load.to, &self.epoll, slot as u64) {
            Ok(connection) => {
                self.books.connected();
                self.slots[slot] = Some(connection);
                Ok(slot)
            }
            Err(reason) => {
                self.free.push(slot);
                Err(reason)
            }
        }
    }

    /// Does what a connection is ready for.
    fn advance(&mut self, slot: usize) {
        loop {
            let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
            let step = connection.advance();
            let now = self.began.elapsed();
            match step {
                Step::Waits => return,
                Step::Answered { request, status, over } => {
                    self.in_flight -= 1;
                    if status == 200 {
                        self.books.answered(request.due, now);
                    } else {
                        self.books.failed(format!("http_{status}"), now);
                    }
                    if over {
                        continue;
                    }
                    self.idle.push_back(slot);
                    return;
                }
                Step::Failed(reason) => {
                    self.failed(reason, now);
                    return self.close(slot);
                }
                Step::Closed => return self.close(slot),
            }
        }
    }

    fn failed(&mut self, reason: String, now: Duration) {
        self.in_flight -= 1;
        self.books.failed(reason, now);
    }

    fn close(&mut self, slot: usize) {
        // Its descriptor leaves epoll by being closed.
        self.slots[slot] = None;
        self.idle.retain(|idle| *idle != slot);
        self.free.push(slot);
    }

    fn give_up_what_is_overdue(&mut self) {
        let now = self.now();
        while let Some((deadline, slot, index)) = self.deadlines.front().copied() {
            if deadline > now {
                return;
            }
            self.deadlines.pop_front();
            let Some(connection) = &self.slots[slot] else { continue };
            if let Some(reason) = connection.overdue(index) {
                self.failed(reason.to_owned(), now);
                self.close(slot);
            } else if connection.is_closing(index) {
                self.close(slot);
            }
        }
    }

    fn until_next(&self) -> Duration {
        let due = (self.next < self.total).then(|| self.load.due(self.next));
        let deadline = self.deadlines.front().map(|(deadline, ..)| *deadline);
        due.into_iter().chain(deadline).min().map_or(Duration::ZERO, |next| next.saturating_sub(self.now()))
    }
}

#[cfg(test)]
mod tests;
