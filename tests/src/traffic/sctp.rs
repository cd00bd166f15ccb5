//! SCTP INIT through a raw socket, so that the sctp module isn't needed; also bare TCP segments for invalid flags.
//! Packets are handmade and answered by nobody.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result};

use super::icmp::checksum;
use crate::sys;

/// Opens a raw socket for SCTP in the family of `to`.
pub fn open(to: IpAddr) -> Result<UdpSocket> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let fd = sys::socket(family, libc::SOCK_RAW, libc::IPPROTO_SCTP).context("a raw SCTP socket")?;
    Ok(fd.into())
}

/// Sends one INIT chunk.
pub fn init(socket: &UdpSocket, to: IpAddr, sport: u16, dport: u16) -> io::Result<usize> {
    let mut packet = Vec::new();
    packet.extend(sport.to_be_bytes());
    packet.extend(dport.to_be_bytes());
    packet.extend([0; 8]); // verification tag 0, checksum to come
    packet.extend([1, 0, 0, 20]); // INIT, no flags, length 20
    packet.extend(0x1234_5678_u32.to_be_bytes()); // initiate tag
    packet.extend(65_536_u32.to_be_bytes()); // receiver window
    packet.extend([0, 10, 0, 10]); // streams out and in
    packet.extend(1_u32.to_be_bytes()); // initial TSN
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    socket.send_to(&packet, SocketAddr::from((to, 0)))
}

/// Sends a TCP segment with SYN and FIN, which conntrack calls invalid, between two loopback ports.
pub fn tcp_syn_fin(socket: &UdpSocket, sport: u16, dport: u16) -> io::Result<usize> {
    let mut segment = Vec::new();
    segment.extend(sport.to_be_bytes());
    segment.extend(dport.to_be_bytes());
    segment.extend([0; 8]);
    segment.extend([0x50, 0x03, 0xff, 0xff, 0, 0, 0, 0]);
    let mut summed =
        Vec::from([127, 0, 0, 1, 127, 0, 0, 1, 0, libc::IPPROTO_TCP as u8, 0, segment.len() as u8]);
    summed.extend(&segment);
    let sum = checksum(&summed);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    socket.send_to(&segment, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))
}

/// Opens a raw TCP socket for [`tcp_syn_fin`].
pub fn open_tcp() -> Result<UdpSocket> {
    let fd = sys::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP).context("a raw TCP socket")?;
    Ok(fd.into())
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc32c_of_the_check_string() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
