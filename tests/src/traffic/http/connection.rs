//! One connection of the load and what it waits for: to be connected, to send, to read, to be used again, to end.
//! It never blocks, and what goes wrong is a reason, not an error: failing requests are what is measured.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, getsockopt, recv, send, sockopt};

use super::response::{Progress, Response};
use super::{Request, sources};
use crate::sys;

/// Ports tried when one is taken.
const TRIES: u32 = 100;

enum State {
    Connecting,
    Sending,
    Reading,
    /// Between two requests.
    Idle,
    /// Answered: the server closes it.
    Closing,
}

/// What came of advancing a connection.
pub(super) enum Step {
    /// It isn't ready.
    Waits,
    /// A request is done.
    Answered {
        /// Which.
        request: Request,
        /// The answer's status.
        status: u16,
        /// The connection carries no further one.
        over: bool,
    },
    /// Its request failed.
    Failed(String),
    /// It ended between requests, as it may.
    Closed,
}

pub(super) struct Connection {
    socket: OwnedFd,
    state: State,
    request: Option<Request>,
    /// The last one, for its deadline.
    index: u64,
    out: Vec<u8>,
    sent: usize,
    response: Response,
    carried: u32,
    last: bool,
}

impl Connection {
    /// Begins to connect, from a source of its own.
    pub(super) fn open(to: SocketAddr, epoll: &Epoll, token: u64) -> Result<Self, String> {
        let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = sys::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)
            .map_err(|error| format!("no_socket: {error}"))?;
        // Somebody may be listening on a port of 0.0.0.0.
        let bound =
            (0..TRIES).any(|_| sources::next(to).is_none_or(|from| sources::bind(&socket, from).is_ok()));
        if !bound {
            return Err("no_port".to_owned());
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(reason("connect", error)),
        }
        let ready = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(&socket, EpollEvent::new(ready, token)).map_err(|error| reason("epoll", error))?;
        Ok(Self {
            socket,
            state: State::Connecting,
            request: None,
            index: 0,
            out: Vec::new(),
            sent: 0,
            response: Response::default(),
            carried: 0,
            last: false,
        })
    }

    /// Gives it a request; `of` is how many it may carry in all.
    pub(super) fn send(&mut self, request: Request, path: &str, to: SocketAddr, of: u32) {
        self.carried += 1;
        self.last = self.carried >= of;
        let connection = if self.last { "close" } else { "keep-alive" };
        self.out =
            format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: {connection}\r\n\r\n").into_bytes();
        self.sent = 0;
        self.response = Response::default();
        self.request = Some(request);
        self.index = request.index;
        if matches!(self.state, State::Idle) {
            self.state = State::Sending;
        }
    }

    /// Why its request `index` is too late, if it still waits for it.
    pub(super) fn overdue(&self, index: u64) -> Option<&'static str> {
        let waits = self.request.is_some_and(|request| request.index == index);
        waits.then_some(if matches!(self.state, State::Connecting) {
            "connect_timeout"
        } else {
            "response_timeout"
        })
    }

    /// Whether it only waits for the server to close it after request `index`.
    pub(super) fn is_closing(&self, index: u64) -> bool {
        matches!(self.state, State::Closing) && self.index == index
    }

    /// Goes on as far as it can.
    pub(super) fn advance(&mut self) -> Step {
        loop {
            match self.state {
                State::Connecting => match self.connected() {
                    Ok(true) => self.state = State::Sending,
                    Ok(false) => return Step::Waits,
                    Err(error) => return Step::Failed(reason("connect", error)),
                },
                State::Sending => {
                    match send(self.socket.as_raw_fd(), &self.out[self.sent..], MsgFlags::MSG_NOSIGNAL) {
                        Ok(count) => {
                            self.sent += count;
                            if self.sent == self.out.len() {
                                self.state = State::Reading;
                            }
                        }
                        Err(Errno::EAGAIN | Errno::EINTR) => return Step::Waits,
                        Err(error) => return Step::Failed(reason("send", error)),
                    }
                }
                State::Reading | State::Idle | State::Closing => match self.read() {
                    Some(step) => return step,
                    None => continue,
                },
            }
        }
    }

    fn connected(&self) -> Result<bool, Errno> {
        let error = getsockopt(&self.socket, sockopt::SocketError)?;
        if error != 0 {
            return Err(Errno::from_raw(error));
        }
        match nix::sys::socket::getpeername::<SockaddrStorage>(self.socket.as_raw_fd()) {
            Ok(_) => Ok(true),
            Err(Errno::ENOTCONN) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self) -> Option<Step> {
        let mut buffer = [0; 8192];
        let progress = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => return Some(Step::Waits),
            Err(Errno::EINTR) => return None,
            Err(error) => {
                return Some(if self.request.is_some() {
                    Step::Failed(reason("read", error))
                } else {
                    Step::Closed
                });
            }
            Ok(0) if self.request.is_none() => return Some(Step::Closed),
            Ok(0) => self.response.end(),
            // Nothing is owed between two requests.
            Ok(_) if self.request.is_none() => return Some(Step::Closed),
            Ok(count) => self.response.take(&buffer[..count]),
        };
        match progress {
            Progress::Open => None,
            Progress::Broken => Some(Step::Failed("closed_early".to_owned())),
            Progress::Whole(status) => {
                let request = self.request.take()?;
                self.state = if self.last { State::Closing } else { State::Idle };
                Some(Step::Answered { request, status, over: self.last })
            }
        }
    }
}

/// "connect_refused", "read_reset", or the error's own name.
fn reason(doing: &str, error: Errno) -> String {
    match error {
        Errno::ECONNREFUSED => format!("{doing}_refused"),
        Errno::ECONNRESET | Errno::EPIPE => format!("{doing}_reset"),
        Errno::EADDRNOTAVAIL => "no_port".to_owned(),
        other => format!("{doing}_{other:?}").to_ascii_lowercase(),
    }
}
