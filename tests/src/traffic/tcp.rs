//! TCP connections that don't wait: a dropped SYN shows no error, the kernel sends it again after 1 s, 3 s, 7 s.
//! How many SYNs left is not known here; nft counters before conntrack's priority know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, connect, setsockopt, sockopt};

use crate::sys;

/// Listeners on every address at the given ports, IPv4 and IPv6.
pub fn listen(ports: &[u16]) -> Result<Vec<TcpListener>> {
    ports
        .iter()
        .flat_map(|port| {
            [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)].map(|ip| (ip, *port))
        })
        .map(|at| TcpListener::bind(at).with_context(|| format!("listening on {at:?}")))
        .collect()
}

/// Starts a connection without waiting. The SYN goes out, and again, while the socket is kept.
pub fn start(to: SocketAddr) -> Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).context("a TCP socket")?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error).with_context(|| format!("connecting to {to}")),
    }
}

/// Ends everything at once and for good: no FIN or SYN is sent again while counters are read one after another.
pub fn abort(connections: Vec<Vec<OwnedFd>>, listeners: Vec<TcpListener>) -> Result<()> {
    for socket in connections.iter().flatten() {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(socket, sockopt::Linger, &at_once).context("SO_LINGER")?;
    }
    drop(connections);
    drop(listeners);
    Ok(())
}
