//! UDP senders: sendto() answers EPERM for exactly those packets a LOCAL_OUT hook dropped.
//! One thread sends from one CPU; no receiver is needed and none is assumed.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::Tally;
use crate::sys;

/// What one sender does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Destinations, taken in turn.
    pub to: Vec<SocketAddr>,
    /// Rounds over all destinations.
    pub rounds: u32,
    /// A fresh source port every so many rounds (0: one source port for all).
    pub fresh_source_every: u32,
    /// A pause after each round.
    pub pause: Duration,
}

impl Plan {
    /// `rounds` rounds at full speed, with a fresh source port every 16 rounds.
    pub fn new(to: Vec<SocketAddr>, rounds: u32) -> Self {
        Self { to, rounds, fresh_source_every: 16, pause: Duration::ZERO }
    }
}

/// Sends as planned from the calling thread.
pub fn send(plan: &Plan) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut sockets = sockets()?;
    for round in 0..plan.rounds {
        if plan.fresh_source_every > 0 && round > 0 && round % plan.fresh_source_every == 0 {
            sockets = self::sockets()?;
        }
        for to in &plan.to {
            let socket = if to.is_ipv4() { &sockets.0 } else { &sockets.1 };
            tally.book(to.port(), socket.send_to(b"conntrack?", to))?;
        }
        if !plan.pause.is_zero() {
            thread::sleep(plan.pause);
        }
    }
    Ok(tally)
}

/// Sends as planned from a thread bound to each CPU, all at once, and returns the sum of their books.
pub fn send_on_every_cpu(plan: &Plan) -> Result<Tally> {
    thread::scope(|scope| {
        let senders: Vec<_> = (0..sys::cpus())
            .map(|cpu| {
                scope.spawn(move || {
                    sys::pin(cpu)?;
                    send(plan)
                })
            })
            .collect();
        let mut sum = Tally::default();
        for sender in senders {
            sum.add(&sender.join().map_err(|_| anyhow!("a sender panicked"))??);
        }
        Ok(sum)
    })
}

fn sockets() -> Result<(UdpSocket, UdpSocket)> {
    Ok((
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a UDP socket")?,
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("a UDPv6 socket")?,
    ))
}
