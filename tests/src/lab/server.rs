//! Servers of one host: who is asked says its name, its port and whom it sees. One thread waits for all sockets.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Proto, Room};
use crate::sys;

/// A connection that says nothing is closed after this.
const IDLE: Duration = Duration::from_secs(3);

/// Ends with its value.
pub struct Server {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Server {
    /// Listens on all ports of all addresses, each socket bound to its address: answers come from where was asked.
    pub fn start(room: &Room, name: &str, addresses: &[IpAddr], ports: &[(Proto, u16)]) -> Result<Self> {
        let (stop, stopped) = UnixStream::pair().context("a pair of sockets")?;
        let name = name.to_owned();
        let thread = room.run(|| {
            let mut sockets = Vec::new();
            for address in addresses {
                for (proto, port) in ports {
                    let at = SocketAddr::new(*address, *port);
                    let socket = match proto {
                        Proto::Tcp => sys::listening_tcp(at).map(Socket::Tcp),
                        Proto::Udp => sys::bound_udp(at).map(Socket::Udp),
                    };
                    sockets.push(socket.with_context(|| format!("{name} listening at {at}/{proto}"))?);
                }
            }
            let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("waiting for sockets")?;
            for (index, socket) in sockets.iter().enumerate() {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
                match socket {
                    Socket::Tcp(socket) => {
                        socket.set_nonblocking(true)?;
                        poll.add(socket, event)?;
                    }
                    Socket::Udp(socket) => {
                        socket.set_nonblocking(true)?;
                        poll.add(socket, event)?;
                    }
                }
            }
            poll.add(&stopped, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP, u64::MAX))?;
            Ok(thread::spawn(move || {
                let _stopped = stopped;
                serve(&name, &sockets, &poll);
            }))
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(name: &str, sockets: &[Socket], poll: &Epoll) {
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let Ok(ready) = poll.wait(&mut events, EpollTimeout::NONE) else { continue };
        for event in &events[..ready] {
            let Some(socket) = usize::try_from(event.data()).ok().and_then(|index| sockets.get(index)) else {
                return;
            };
            match socket {
                Socket::Tcp(listener) => {
                    while let Ok((stream, peer)) = listener.accept() {
                        let port = listener.local_addr().map_or(0, |at| at.port());
                        let answer = words(name, port, peer);
                        thread::spawn(move || talk(stream, &answer));
                    }
                }
                Socket::Udp(socket) => {
                    let mut question = [0; 64];
                    while let Ok((length, peer)) = socket.recv_from(&mut question) {
                        // Another server's late answer: two of them would never stop.
                        if question[..length] != *b"?" {
                            continue;
                        }
                        let port = socket.local_addr().map_or(0, |at| at.port());
                        // What can't be sent is for the client to miss.
                        let _ = socket.send_to(words(name, port, peer).as_bytes(), peer);
                    }
                }
            }
        }
    }
}

fn words(name: &str, port: u16, peer: SocketAddr) -> String {
    format!("{name} port {port} sees {}", peer.ip())
}

fn talk(mut stream: TcpStream, answer: &str) {
    let mut question = [0; 1];
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(IDLE));
    while stream.read_exact(&mut question).is_ok() {
        let mut line = answer.as_bytes().to_vec();
        line.push(b'\n');
        if stream.write_all(&line).is_err() {
            return;
        }
    }
}
