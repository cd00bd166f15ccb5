//! Single SYNs through raw sockets: no connection, no retransmission, so one packet and one answer of the kernel each.
//! Raw sends, like UDP ones, answer EPERM when a LOCAL_OUT hook drops them.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};

use super::Tally;
use crate::sys;

/// The source port of all of them.
const FROM: u16 = 40_000;

/// Sends one to each of these.
pub fn send(to: &[SocketAddr]) -> Result<Tally> {
    let mut tally = Tally::default();
    let (v4, v6) = (socket(libc::AF_INET)?, socket(libc::AF_INET6)?);
    for to in to {
        let socket = if to.is_ipv4() { &v4 } else { &v6 };
        // A raw socket takes a protocol number where others have a port; the port is in the header.
        let host: IpAddr = to.ip();
        tally.book(to.port(), socket.send_to(&header(to.port()), (host, 0)))?;
    }
    Ok(tally)
}

/// std's UdpSocket is only the safe wrapper for sendto.
fn socket(family: i32) -> Result<UdpSocket> {
    Ok(sys::socket(family, libc::SOCK_RAW, libc::IPPROTO_TCP).context("a raw TCP socket")?.into())
}

/// Conntrack checks sums of what comes in, not of what goes out (nf_conntrack_checksum), so there is none.
fn header(port: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[..2].copy_from_slice(&FROM.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    // The sequence number, the header's length in words, SYN, the window.
    header[4..8].copy_from_slice(&1_u32.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = 2;
    header[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    header
}
