//! Packets of known number to known places; each sender counts what the kernel refused it.
//! A sender may not know what ctwatch says, nor hide an error that isn't the refusal it counts.

pub mod http;
pub mod icmp;
pub mod sctp;
pub mod syn;
pub mod tcp;
pub mod udp;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};

/// What became of the sends to one destination port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The kernel took the packet.
    pub accepted: u64,
    /// EPERM: a hook at LOCAL_OUT dropped it.
    pub refused: u64,
}

/// Sends per destination port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<u16, Sent>);

impl Tally {
    /// Books one send.
    pub fn book(&mut self, port: u16, outcome: io::Result<usize>) -> Result<()> {
        let sent = self.0.entry(port).or_default();
        match outcome {
            Ok(_) => sent.accepted += 1,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => sent.refused += 1,
            Err(error) => return Err(error).with_context(|| format!("sending to port {port}")),
        }
        Ok(())
    }

    /// Adds another sender's books.
    pub fn add(&mut self, other: &Self) {
        for (port, sent) in &other.0 {
            let sum = self.0.entry(*port).or_default();
            sum.accepted += sent.accepted;
            sum.refused += sent.refused;
        }
    }

    /// Refused sends per port, ports without one left out.
    pub fn refused(&self) -> BTreeMap<u16, u64> {
        self.0.iter().filter(|(_, sent)| sent.refused > 0).map(|(port, sent)| (*port, sent.refused)).collect()
    }

    /// Accepted sends per port, ports without one left out.
    pub fn accepted(&self) -> BTreeMap<u16, u64> {
        self.0
            .iter()
            .filter(|(_, sent)| sent.accepted > 0)
            .map(|(port, sent)| (*port, sent.accepted))
            .collect()
    }

    /// All refused sends.
    pub fn total_refused(&self) -> u64 {
        self.0.values().map(|sent| sent.refused).sum()
    }

    /// All accepted sends.
    pub fn total_accepted(&self) -> u64 {
        self.0.values().map(|sent| sent.accepted).sum()
    }
}

/// 127.0.0.1 and ::1 at each port.
pub fn loopback(ports: &[u16]) -> Vec<SocketAddr> {
    ports
        .iter()
        .flat_map(|port| {
            [SocketAddr::from((Ipv4Addr::LOCALHOST, *port)), SocketAddr::from((Ipv6Addr::LOCALHOST, *port))]
        })
        .collect()
}
