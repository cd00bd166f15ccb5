//! ICMP and ICMPv6 through raw sockets: echo requests, and errors about flows that never were.
//! Raw sends, like UDP ones, answer EPERM when a LOCAL_OUT hook drops them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};

use crate::sys;

/// A raw ICMP (or ICMPv6) socket; std's UdpSocket is only its safe wrapper for sendto.
pub struct Icmp {
    socket: UdpSocket,
    v4: bool,
}

impl Icmp {
    /// Opens the socket for the family of `to`.
    pub fn open(to: IpAddr) -> Result<Self> {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
            IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        };
        let fd = sys::socket(family, libc::SOCK_RAW, protocol).context("a raw ICMP socket")?;
        Ok(Self { socket: fd.into(), v4: to.is_ipv4() })
    }

    /// Sends one echo request.
    pub fn echo(&self, to: IpAddr, id: u16, sequence: u16) -> io::Result<usize> {
        let mut packet = vec![if self.v4 { 8 } else { 128 }, 0, 0, 0];
        packet.extend(id.to_be_bytes());
        packet.extend(sequence.to_be_bytes());
        packet.extend(b"conntrack?");
        self.send(to, packet)
    }

    /// Sends "port unreachable" about a UDP packet nobody sent: conntrack calls that invalid, and lets it pass.
    pub fn unreachable_about_nothing(&self, to: Ipv4Addr) -> io::Result<usize> {
        let mut packet = vec![3, 3, 0, 0, 0, 0, 0, 0];
        let mut inner = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0];
        inner.extend(to.octets());
        inner.extend(Ipv4Addr::new(203, 0, 113, 9).octets());
        let sum = checksum(&inner);
        inner[10..12].copy_from_slice(&sum.to_be_bytes());
        inner.extend([0x9c, 0x41, 0x9c, 0x42, 0, 8, 0, 0]);
        packet.extend(inner);
        self.send(to.into(), packet)
    }

    fn send(&self, to: IpAddr, mut packet: Vec<u8>) -> io::Result<usize> {
        if self.v4 {
            // For IPv6 the kernel fills the checksum in.
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.socket.send_to(&packet, SocketAddr::from((to, 0)))
    }
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
