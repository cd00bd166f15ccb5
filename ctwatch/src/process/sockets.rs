//! The socket tables of one netns (/proc/net/tcp and its like): which socket takes what comes to an address and port.
//! Only listening TCP and SCTP sockets and unconnected UDP sockets count; the others have packets of their own. Whoever lives in
//! the netns may have any number of them, so each look has a limit, and what it didn't get to see is unknown.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::path::Path;

use crate::files::lists;
pub use crate::files::lists::{Extent, Limit};
use crate::model::Protocol;

/// TCP_LISTEN and, of an unconnected UDP socket, TCP_CLOSE (include/net/tcp_states.h).
const LISTEN: u8 = 0x0A;
const UNCONNECTED: u8 = 0x07;

/// Where a packet goes: protocol, address and port.
pub type To = (Protocol, IpAddr, u16);

/// Who takes a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// The socket with this inode number.
    Socket(u64),
    /// No socket of this netns.
    Nobody,
    /// Not all sockets were looked at, or they can't be.
    Unknown,
}

/// Which sockets take packets to these addresses and ports. `folder`: /proc/…/net in that netns. Each table is read once.
#[must_use]
pub fn receivers(folder: &Path, to: &[To], limit: &mut Limit) -> Vec<Recipient> {
    let mut by_port: HashMap<(Protocol, u16), Vec<usize>> = HashMap::new();
    for (index, (proto, _, port)) in to.iter().enumerate() {
        by_port.entry((*proto, *port)).or_default().push(index);
    }
    let mut best: Vec<Option<(BindMatch, u64)>> = vec![None; to.len()];
    let mut unseen: Vec<Protocol> = Vec::new();
    for proto in [Protocol::TCP, Protocol::UDP, Protocol::SCTP]
        .into_iter()
        .filter(|proto| to.iter().any(|(wanted, ..)| wanted == proto))
    {
        let mut consider = |at: Option<IpAddr>, port: u16, inode: u64| {
            for index in by_port.get(&(proto, port)).map_or(&[][..], Vec::as_slice) {
                let Some(fit) = at.map_or(Some(BindMatch::Everything), |at| fit(at, to[*index].1)) else {
                    continue;
                };
                if inode != 0 && best[*index].is_none_or(|(known, _)| fit < known) {
                    best[*index] = Some((fit, inode));
                }
            }
        };
        let extent = match proto {
            Protocol::SCTP => each_row(&folder.join("sctp/eps"), limit, |line| {
                if let Some((port, inode)) = endpoint(line) {
                    consider(None, port, inode);
                }
                ControlFlow::Continue(())
            }),
            _ => each_listening(folder, proto, limit, |address, port, inode| {
                consider(Some(address), port, inode);
            }),
        };
        unseen.extend((extent == Extent::Cut).then_some(proto));
    }
    best.into_iter()
        .zip(to)
        .map(|(best, (proto, ..))| match best {
            Some((BindMatch::Exact, inode)) => Recipient::Socket(inode),
            // One that fits better may have come later.
            _ if unseen.contains(proto) => Recipient::Unknown,
            Some((_, inode)) => Recipient::Socket(inode),
            None => Recipient::Nobody,
        })
        .collect()
}

/// Shows address, port and inode number of every socket that takes new connections, or packets from anybody.
pub fn each_listening(
    folder: &Path,
    proto: Protocol,
    limit: &mut Limit,
    mut each: impl FnMut(IpAddr, u16, u64),
) -> Extent {
    let (name, state) = if proto == Protocol::UDP { ("udp", UNCONNECTED) } else { ("tcp", LISTEN) };
    each_socket(folder, name, limit, |line| {
        let Some(socket) = socket(line) else { return ControlFlow::Continue(()) };
        if socket.state == state && socket.inode != 0 {
            each(socket.address, socket.port, socket.inode);
        }
        // Listening sockets come first (tcp_get_idx, net/ipv4/tcp_ipv4.c): the rest may be a million lines.
        if proto == Protocol::UDP || socket.state == LISTEN {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })
}

/// A socket that is connected, or about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Its own port.
    pub port: u16,
    /// The other end's address.
    pub peer: IpAddr,
    /// The other end's port.
    pub peer_port: u16,
    /// Its inode number.
    pub inode: u64,
}

/// Shows every connected socket that somebody holds: TIME_WAIT and orphans have no holder any more.
pub fn each_connected(
    folder: &Path,
    proto: Protocol,
    limit: &mut Limit,
    mut each: impl FnMut(Connected) -> ControlFlow<()>,
) -> Extent {
    let name = if proto == Protocol::UDP { "udp" } else { "tcp" };
    each_socket(folder, name, limit, |line| connected(line).map_or(ControlFlow::Continue(()), &mut each))
}

/// Rows of both families, below their headers.
fn each_socket(
    folder: &Path,
    name: &str,
    limit: &mut Limit,
    mut each: impl FnMut(&str) -> ControlFlow<()>,
) -> Extent {
    let whole = [name.to_owned(), format!("{name}6")]
        .map(|file| each_row(&folder.join(file), limit, &mut each) == Extent::Whole);
    if whole == [true; 2] { Extent::Whole } else { Extent::Cut }
}

fn each_row(file: &Path, limit: &mut Limit, mut each: impl FnMut(&str) -> ControlFlow<()>) -> Extent {
    let mut is_header = true;
    let read = lists::each_line(file, limit, |line| {
        if std::mem::take(&mut is_header) { ControlFlow::Continue(()) } else { each(line) }
    });
    match read {
        Ok(extent) => extent,
        // A kernel without that protocol or family.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Extent::Whole,
        Err(_) => Extent::Cut,
    }
}

pub(crate) fn connected(line: &str) -> Option<Connected> {
    let (peer, peer_port) = line.split_ascii_whitespace().nth(2)?.split_once(':')?;
    let peer_port = u16::from_str_radix(peer_port, 16).ok()?;
    let own = (peer_port != 0).then(|| socket(line)).flatten()?;
    let peer = address(peer)?.to_canonical();
    (own.inode != 0).then_some(Connected { port: own.port, peer, peer_port, inode: own.inode })
}

/// How well a socket's address fits, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BindMatch {
    Exact,
    /// Any address of this family.
    Family,
    /// An IPv6 socket that takes IPv4 too, or a table that doesn't tell addresses.
    Everything,
}

fn fit(at: IpAddr, to: IpAddr) -> Option<BindMatch> {
    let at = match at {
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(at, IpAddr::V4),
        IpAddr::V4(_) => at,
    };
    if at == to {
        Some(BindMatch::Exact)
    } else if !at.is_unspecified() {
        None
    } else if at.is_ipv4() == to.is_ipv4() {
        Some(BindMatch::Family)
    } else {
        (at.is_ipv6()).then_some(BindMatch::Everything)
    }
}

pub(crate) struct Socket {
    address: IpAddr,
    port: u16,
    state: u8,
    inode: u64,
}

/// "  0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 12345 …"
pub(crate) fn socket(line: &str) -> Option<Socket> {
    let mut words = line.split_ascii_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    let state = words.nth(1)?;
    let inode = words.nth(5)?;
    Some(Socket {
        address: self::address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        state: u8::from_str_radix(state, 16).ok()?,
        inode: inode.parse().ok()?,
    })
}

/// Words of 32 bits in network order, printed as the machine's integers.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index * 8)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// " ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS": port and inode number (net/sctp/proc.c).
pub(crate) fn endpoint(line: &str) -> Option<(u16, u64)> {
    let mut words = line.split_ascii_whitespace();
    let port = words.nth(5)?.parse().ok()?;
    Some((port, words.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const TCP4: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     
   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000   112        0 21001 1 0000000000000000 100 0 0 10 0                     
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21002 1 0000000000000000 100 0 0 10 0                     
   2: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21003 1 0000000000000000 100 0 0 10 0                     
   3: 0100007F:A795 0100007F:18EB 01 00000000:00000000 00:00000000 00000000     0        0 21004 1 0000000000000000 20 4 30 10 -1                    
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 31001 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000001000000:18EB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   112        0 31002 1 0000000000000000 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 31003 1 0000000000000000 100 0 0 10 0
";
    const UDP4: &str = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops             
  285: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 41001 2 0000000000000000 0         
  300: 0100007F:D431 3500007F:0035 01 00000000:00000000 00:00000000 00000000  1000        0 41002 2 0000000000000000 0         
";
    const SCTP4: &str = "\
 ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS
0000000000000000 0000000000000000 2   10  24   9899      0 51001 0.0.0.0 
";

    fn unlimited() -> Limit {
        Limit::new(std::time::Duration::from_secs(60), 1 << 30)
    }

    fn tables() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sctp")).unwrap();
        for (name, text) in [("tcp", TCP4), ("tcp6", TCP6), ("udp", UDP4), ("sctp/eps", SCTP4)] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn receiver_of(proto: Protocol, to: &str, port: u16) -> Option<u64> {
        let folder = tables();
        match receivers(folder.path(), &[(proto, to.parse().unwrap(), port)], &mut unlimited())[..] {
            [Recipient::Socket(inode)] => Some(inode),
            [Recipient::Nobody] => None,
            ref other => panic!("{other:?}"),
        }
    }

    #[test]
    fn where_not_all_sockets_were_seen_nobody_is_not_an_answer() {
        let folder = tables();
        let to = |text: &str, port| (Protocol::TCP, text.parse().unwrap(), port);
        // Redis's own address comes first; a flood of others comes before the rest.
        let flood: String = (0..5000)
            .map(|n| format!("  {n}: 0200007F:{:04X} 00000000:0000 0A 0:0 0:0 0 0 0 {n}\n", n + 1))
            .collect();
        fs::write(folder.path().join("tcp"), TCP4.replacen("   1:", &format!("{flood}   1:"), 1)).unwrap();
        let wanted = [to("127.0.0.1", 6379), to("10.0.0.5", 80), to("127.0.0.1", 9)];
        let cut =
            receivers(folder.path(), &wanted, &mut Limit::new(std::time::Duration::from_secs(60), 10_000));
        assert_eq!(cut, [Recipient::Socket(21001), Recipient::Unknown, Recipient::Unknown]);
        let whole = receivers(folder.path(), &wanted, &mut unlimited());
        assert_eq!(whole, [Recipient::Socket(21001), Recipient::Socket(21002), Recipient::Nobody]);
        let late = receivers(folder.path(), &wanted, &mut Limit::new(std::time::Duration::ZERO, 1 << 30));
        assert_eq!(late, [Recipient::Unknown; 3]);
    }

    #[test]
    fn the_closest_address_takes_the_packet() {
        assert_eq!(receiver_of(Protocol::TCP, "127.0.0.1", 6379), Some(21001));
        assert_eq!(receiver_of(Protocol::TCP, "10.0.0.5", 6379), None, "it listens on loopback only");
        assert_eq!(receiver_of(Protocol::TCP, "127.0.0.1", 80), Some(21003));
        assert_eq!(receiver_of(Protocol::TCP, "10.0.0.5", 80), Some(21002));
        assert_eq!(receiver_of(Protocol::TCP, "::1", 80), None, "an IPv4 socket takes no IPv6");
    }

    #[test]
    fn an_ipv6_socket_may_take_ipv4() {
        assert_eq!(receiver_of(Protocol::TCP, "2001:db8::1", 443), Some(31001));
        assert_eq!(receiver_of(Protocol::TCP, "10.0.0.5", 443), Some(31001));
        assert_eq!(receiver_of(Protocol::TCP, "::1", 6379), Some(31002));
        assert_eq!(receiver_of(Protocol::TCP, "127.0.0.1", 8080), Some(31003), "bound to a mapped address");
    }

    #[test]
    fn connections_are_no_listeners() {
        assert_eq!(receiver_of(Protocol::TCP, "127.0.0.1", 0xA795), None);
        assert_eq!(receiver_of(Protocol::UDP, "127.0.0.1", 0xD431), None);
    }

    #[test]
    fn connections_are_shown_with_their_other_end() {
        let folder = tempfile::tempdir().unwrap();
        let time_wait =
            TCP4.replace("01 00000000:00000000 00:00000000 00000000     0        0 21004", "06 0 0 0 0 0 0");
        for (text, inodes) in [(TCP4, vec![21004]), (time_wait.as_str(), vec![])] {
            fs::write(folder.path().join("tcp"), text).unwrap();
            let mut found = Vec::new();
            let extent = each_connected(folder.path(), Protocol::TCP, &mut unlimited(), |connected| {
                found.push(connected);
                ControlFlow::Continue(())
            });
            assert_eq!(extent, Extent::Whole);
            assert_eq!(found.iter().map(|connected| connected.inode).collect::<Vec<_>>(), inodes);
            assert!(
                found.iter().all(|connected| connected.peer.is_loopback() && connected.peer_port == 6379)
            );
        }
        fs::write(folder.path().join("tcp6"), TCP6).unwrap();
        fs::write(folder.path().join("tcp"), TCP4).unwrap();
        let mut found = Vec::new();
        let extent = each_listening(folder.path(), Protocol::TCP, &mut unlimited(), |_, port, inode| {
            found.push((port, inode))
        });
        assert_eq!(extent, Extent::Whole);
        let of_port = |wanted| {
            found.iter().filter(|(port, _)| *port == wanted).map(|(_, inode)| *inode).collect::<Vec<_>>()
        };
        assert_eq!((of_port(80), of_port(6379)), (vec![21002, 21003], vec![21001, 31002]));
    }

    #[test]
    fn udp_and_sctp_have_their_own_tables() {
        assert_eq!(receiver_of(Protocol::UDP, "127.0.0.53", 53), Some(41001));
        assert_eq!(receiver_of(Protocol::SCTP, "10.0.0.5", 9899), Some(51001));
        assert_eq!(receiver_of(Protocol(47), "10.0.0.5", 0), None);
    }
}
