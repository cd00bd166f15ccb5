//! Source addresses and ports that don't run out: each connection has a tuple of its own, as many clients' would be.
//! Only loopback, where every address of 127.0.0.0/8 is the host's; elsewhere the kernel chooses.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

/// Below what services use, and above.
const FIRST_PORT: u64 = 10_000;
const PORTS: u64 = 50_000;
/// Addresses from 127.77.0.1 on.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
const ADDRESSES: u64 = 1 << 16;

/// Tuples handed out by this process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Where the next connection to `to` comes from; none if that is the kernel's to choose.
pub fn next(to: SocketAddr) -> Option<SocketAddr> {
    to.ip().is_loopback().then_some(())?;
    if !to.is_ipv4() {
        return None;
    }
    Some(nth(u64::from(std::process::id()), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Two processes begin at different addresses: a tuple met twice would take over the other's entry, not add one.
fn nth(process: u64, index: u64) -> SocketAddr {
    /// A process may use so many addresses, three million tuples, before it gets to its neighbour's.
    const EACH: u64 = 61;
    let address = (process * EACH + index / PORTS) % ADDRESSES;
    let ip = Ipv4Addr::from(u32::from(FIRST) + address as u32);
    SocketAddr::from((ip, (FIRST_PORT + index % PORTS) as u16))
}

/// Binds a socket to its source.
pub fn bind(socket: &impl std::os::fd::AsRawFd, from: SocketAddr) -> Result<(), nix::errno::Errno> {
    nix::sys::socket::bind(socket.as_raw_fd(), &nix::sys::socket::SockaddrStorage::from(from))
}

/// The address a URL names: "http://127.0.0.1:8080/path" and its path.
pub fn of_url(url: &str) -> Result<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://").context("only http:// URLs with an address are known here")?;
    let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
    let to = place
        .parse()
        .or_else(|_| format!("{place}:80").parse())
        .with_context(|| format!("the address {place}"))?;
    Ok((to, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_tuple_comes_twice() {
        let tuples: BTreeSet<SocketAddr> = (0..120_000).map(|index| nth(7, index)).collect();
        assert_eq!(tuples.len(), 120_000);
        assert!(
            tuples.iter().all(|tuple| tuple.ip().is_loopback() && (10_000..60_000).contains(&tuple.port()))
        );
        assert!(!tuples.contains(&nth(8, 0)));
    }

    #[test]
    fn a_url_gives_address_and_path() {
        let of = |url| of_url(url).map(|(to, path)| format!("{to} {path}")).ok();
        assert_eq!(of("http://127.0.0.1/").as_deref(), Some("127.0.0.1:80 /"));
        assert_eq!(of("http://[::1]:8080/a/b").as_deref(), Some("[::1]:8080 /a/b"));
        assert_eq!(of("http://127.0.0.1").as_deref(), Some("127.0.0.1:80 /"));
        assert_eq!(of("https://127.0.0.1/"), None);
        assert_eq!(of("http://localhost/"), None);
    }
}
