//! Flows as `C -> tcp 192.0.2.1 8080 from 198.51.100.9` says them, tried with sockets.
//! A flow passes when each question is answered, in both directions and more than once.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Entry, HOST, Place};
use crate::sys;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Proto {
    /// By the name that all tools use.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Which flows of a port, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// From itself to itself.
    Loopback,
    /// From others to itself.
    In,
    /// From itself to others.
    Out,
}

/// What is asked to be exempt: `8080/tcp/in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The service's port.
    pub port: u16,
    /// Its protocol.
    pub proto: Proto,
    /// Which way.
    pub side: Side,
}

impl FromStr for Piece {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split('/');
        let mut part = || parts.next().with_context(|| format!("{text} is no PORT/PROTO/SIDE"));
        Ok(Self {
            port: part()?.parse().with_context(|| format!("the port of {text}"))?,
            proto: Proto::from_name(part()?).with_context(|| format!("the protocol of {text}"))?,
            side: match part()? {
                "lo" => Side::Loopback,
                "in" => Side::In,
                "out" => Side::Out,
                other => bail!("{other} in {text} is none of lo, in, out"),
            },
        })
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Loopback => "lo",
            Side::In => "in",
            Side::Out => "out",
        };
        write!(f, "{}/{}/{side}", self.port, self.proto)
    }
}

/// A flow to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client's host.
    pub who: String,
    /// The protocol.
    pub proto: Proto,
    /// Where it asks.
    pub to: SocketAddr,
    /// The client's address, if not what its route gives.
    pub from: Option<IpAddr>,
    /// The client's port, if not any.
    pub from_port: Option<u16>,
    /// So many connections are open before the one that counts.
    pub held: u32,
    /// Questions on one socket.
    pub questions: u32,
    /// Whom the server has to see.
    pub seen_as: Option<IpAddr>,
}

impl FromStr for Flow {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (who, rest) = text.split_once(" -> ").with_context(|| format!("no ` -> ` in {text}"))?;
        let mut words = rest.split_whitespace();
        let mut word = |what: &str| words.next().with_context(|| format!("no {what} in {text}"));
        let proto = word("protocol")?;
        let proto = Proto::from_name(proto).with_context(|| format!("{proto} in {text} is no protocol"))?;
        let address: IpAddr = word("address")?.parse().with_context(|| format!("the address in {text}"))?;
        let port = word("port")?.parse().with_context(|| format!("the port in {text}"))?;
        let mut flow = Self {
            who: who.to_owned(),
            proto,
            to: SocketAddr::new(address, port),
            from: None,
            from_port: None,
            held: 0,
            questions: usual_questions(proto),
            seen_as: None,
        };
        while let Some(key) = words.next() {
            let value = words.next().with_context(|| format!("nothing behind {key} in {text}"))?;
            let wrong = || format!("{key} {value} in {text}");
            match key {
                "from" if value.contains(['.', ':']) => flow.from = Some(value.parse().with_context(wrong)?),
                "from" => flow.from_port = Some(value.parse().with_context(wrong)?),
                "after" => flow.held = value.parse().with_context(wrong)?,
                "asking" => flow.questions = value.parse().with_context(wrong)?,
                "seen" => flow.seen_as = Some(value.parse().with_context(wrong)?),
                _ => bail!("{key} in {text} is none of from, after, asking, seen"),
            }
        }
        Ok(flow)
    }
}

/// A resolver's client asks once and goes.
fn usual_questions(proto: Proto) -> u32 {
    if proto == Proto::Tcp { 2 } else { 1 }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {} {}", self.who, self.proto, self.to.ip(), self.to.port())?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(port) = self.from_port {
            write!(f, " from {port}")?;
        }
        if self.held > 0 {
            write!(f, " after {}", self.held)?;
        }
        if self.questions != usual_questions(self.proto) {
            write!(f, " asking {}", self.questions)?;
        }
        Ok(())
    }
}

/// What became of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The last answer: "host port 8080 sees 192.0.2.2"; none if any question had none.
    pub answer: Option<String>,
    /// The client's own end.
    pub from: Option<SocketAddr>,
}

impl Flow {
    /// Whether the flow, as its client sees it, is one of those that the piece is about.
    pub fn is_of(&self, piece: &Piece, own: &[IpAddr]) -> bool {
        let to_own = own.contains(&self.to.ip());
        let side = match (self.who == HOST, to_own) {
            (true, true) => Side::Loopback,
            (true, false) => Side::Out,
            (false, true) => Side::In,
            (false, false) => return false,
        };
        (self.proto, self.to.port(), side) == (piece.proto, piece.port, piece.side)
    }

    /// Whether the entry is this flow's, opened by either end, when the client's end was `from`.
    pub fn has(&self, entry: &Entry, from: SocketAddr) -> bool {
        let ends = (entry.src, entry.dst);
        entry.proto == self.proto && (ends == (from, self.to) || ends == (self.to, from))
    }

    /// Tries it in the calling thread's netns.
    fn attempt(&self, patience: Duration) -> Result<Seen> {
        let mut held = Vec::new();
        for _ in 0..self.held {
            // Those before it may be refused as well.
            if let Ok(stream) = sys::connected_tcp(None, self.to, patience) {
                held.push(stream);
            }
        }
        let bind = match (self.from, self.from_port) {
            (None, None) => None,
            (from, port) => Some(SocketAddr::new(from.unwrap_or(sys::any(self.to.ip())), port.unwrap_or(0))),
        };
        match self.proto {
            Proto::Tcp => self.tcp(bind, patience),
            Proto::Udp => self.udp(bind, patience),
        }
    }

    fn tcp(&self, bind: Option<SocketAddr>, patience: Duration) -> Result<Seen> {
        let Ok(stream) = sys::connected_tcp(bind, self.to, patience) else {
            return Ok(Seen { answer: None, from: None });
        };
        let from = stream.local_addr().ok();
        if bind.is_some() {
            // Else the same ends can't be used again for a minute.
            sys::reset_on_close(&stream)?;
        }
        let _ = stream.set_read_timeout(Some(patience));
        let mut reader = BufReader::new(&stream);
        let mut answer = None;
        for _ in 0..self.questions {
            let mut line = String::new();
            let asked = (&stream).write_all(b"?").and_then(|()| reader.read_line(&mut line));
            if !asked.is_ok_and(|length| length > 0) {
                return Ok(Seen { answer: None, from });
            }
            answer = Some(line.trim_end().to_owned());
        }
        Ok(Seen { answer, from })
    }

    fn udp(&self, bind: Option<SocketAddr>, patience: Duration) -> Result<Seen> {
        let any = SocketAddr::new(sys::any(self.to.ip()), 0);
        let socket = sys::bound_udp(bind.unwrap_or(any)).with_context(|| format!("a socket for {self}"))?;
        socket.set_read_timeout(Some(patience))?;
        if socket.connect(self.to).is_err() {
            return Ok(Seen { answer: None, from: None });
        }
        let from = socket.local_addr().ok();
        let mut answer = None;
        for _ in 0..self.questions {
            let mut text = [0; 128];
            match socket.send(b"?").and_then(|_| socket.recv(&mut text)) {
                // A question is no answer: somebody asks from the port that is asked here.
                Ok(length) if text[..length] != *b"?" => {
                    answer = Some(String::from_utf8_lossy(&text[..length]).into_owned());
                }
                _ => return Ok(Seen { answer: None, from }),
            }
        }
        Ok(Seen { answer, from })
    }
}

/// Tries all flows at once.
pub fn measure(place: &Place, flows: &[Flow], patience: Duration) -> Result<Vec<Seen>> {
    thread::scope(|scope| {
        let mut running = Vec::new();
        for flow in flows {
            let room = place.room(&flow.who)?;
            running.push(scope.spawn(move || {
                room.enter()?;
                flow.attempt(patience)
            }));
        }
        let seen: Vec<Seen> = running
            .into_iter()
            .map(|thread| thread.join().expect("a flow's thread panicked"))
            .collect::<Result<_>>()?;
        ensure!(seen.len() == flows.len(), "a flow without an end");
        Ok(seen)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_and_pieces_are_read_as_they_are_written() {
        for text in [
            "C -> tcp 192.0.2.1 8080",
            "L -> udp 198.51.100.2 123 from 123",
            "L -> udp 198.51.100.2 53 asking 2",
            "C -> tcp 2001:db8::1 80 from 2001:db8::9 from 80 after 44",
        ] {
            assert_eq!(text.parse::<Flow>().unwrap().to_string(), text);
        }
        assert_eq!("53/udp/in".parse::<Piece>().unwrap().to_string(), "53/udp/in");
        assert!("C -> tcp 192.0.2.1".parse::<Flow>().is_err());
        assert!("C -> tcp 192.0.2.1 80 via x".parse::<Flow>().is_err());
    }

    #[test]
    fn a_piece_has_the_flows_of_its_side_alone() {
        let own: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
        let is_of =
            |flow: &str, piece: &str| flow.parse::<Flow>().unwrap().is_of(&piece.parse().unwrap(), &own);
        assert!(is_of("C -> tcp 192.0.2.1 80", "80/tcp/in"));
        assert!(!is_of("C -> tcp 192.0.2.7 80", "80/tcp/in"));
        assert!(is_of("host -> tcp 192.0.2.1 80", "80/tcp/lo"));
        assert!(!is_of("host -> tcp 192.0.2.1 80", "80/tcp/out"));
        assert!(is_of("host -> udp 192.0.2.7 53", "53/udp/out"));
    }
}
