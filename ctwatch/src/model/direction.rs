//! Where a flow goes, seen from the netns that tracks it: by which of its ends are that netns's own addresses.
//! Nothing is guessed from ports or devices; an entry holds neither devices nor hooks.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{Address, LocalAddress, TableEntry};

/// Where a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From this netns to itself.
    Loopback,
    /// From elsewhere to this netns.
    In,
    /// From this netns to elsewhere.
    Out,
    /// From elsewhere to elsewhere.
    Forwarded,
}

impl Direction {
    /// By number.
    pub const ALL: [Self; 4] = [Self::Loopback, Self::In, Self::Out, Self::Forwarded];

    /// Its spelling in JSON and text.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::In => "in",
            Self::Out => "out",
            Self::Forwarded => "forwarded",
        }
    }

    /// The direction with this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|direction| direction.name() == name)
    }
}

/// The addresses of a netns.
#[derive(Clone, Debug)]
pub struct Locals {
    addresses: HashSet<Address>,
    /// What all hosts of a network hear.
    broadcasts: HashSet<Address>,
    /// Whole networks on a loopback device.
    networks: Vec<IpNet>,
}

impl Default for Locals {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Locals {
    /// Those, and what is local everywhere.
    #[must_use]
    pub fn new(found: &[LocalAddress]) -> Self {
        let mut addresses = HashSet::from([Address::from(IpAddr::from(Ipv6Addr::LOCALHOST))]);
        let mut broadcasts = HashSet::new();
        let mut networks = vec![IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))];
        for LocalAddress { address, prefix, on_loopback, broadcast } in found {
            addresses.insert((*address).into());
            broadcasts.extend(broadcast.map(Address::from));
            // fib_add_ifaddr, net/ipv4/fib_frontend.c: a network on a loopback device is local as a whole.
            // Elsewhere its last address is a broadcast, whether or not one was set (prefixes shorter than 31; up to 7.3).
            let IpAddr::V4(v4) = *address else { continue };
            let Ok(network) = Ipv4Net::new(v4, *prefix) else { continue };
            if *on_loopback {
                networks.push(IpNet::V4(network.trunc()));
            } else if *prefix < 31 {
                broadcasts.insert(IpAddr::V4(network.broadcast()).into());
            }
        }
        networks.dedup();
        Self { addresses, broadcasts, networks }
    }

    /// Where this entry's flow goes. The far end is the reply's source: what the destination became after NAT.
    #[must_use]
    pub fn direction(&self, entry: &TableEntry) -> Direction {
        let is_for_many = is_for_many(entry.reply_src) || self.broadcasts.contains(&entry.reply_src);
        match (self.holds(entry.src), self.holds(entry.reply_src)) {
            (true, true) => Direction::Loopback,
            // What many hosts are meant to hear leaves by a device of theirs, though its sender may hear it, too.
            (true, false) if is_for_many && Self::is_on_loopback(entry.src) => Direction::Loopback,
            (true, false) => Direction::Out,
            (false, true) => Direction::In,
            // It isn't forwarded by this host either.
            (false, false) if is_for_many => Direction::In,
            (false, false) => Direction::Forwarded,
        }
    }

    /// Nothing with such a source leaves this host.
    fn is_on_loopback(address: Address) -> bool {
        IpAddr::from(address).is_loopback()
    }

    fn holds(&self, address: Address) -> bool {
        self.addresses.contains(&address) || {
            let address = IpAddr::from(address);
            address.is_ipv4() && self.networks.iter().any(|network| network.contains(&address))
        }
    }
}

fn is_for_many(address: Address) -> bool {
    match IpAddr::from(address) {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direction(src: &str, reply_src: &str) -> Direction {
        let local = |address: &str, prefix, on_loopback, broadcast: Option<&str>| LocalAddress {
            address: address.parse().unwrap(),
            prefix,
            on_loopback,
            broadcast: broadcast.map(|address| address.parse().unwrap()),
        };
        let locals = Locals::new(&[
            local("127.0.0.1", 8, true, None),
            local("10.1.0.1", 16, true, None),
            local("192.0.2.7", 24, false, Some("192.0.2.255")),
            local("203.0.113.70", 26, false, None),
            local("198.18.0.2", 31, false, None),
            local("fd00::7", 64, false, None),
        ]);
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        locals.direction(&TableEntry {
            src: address(src),
            reply_src: address(reply_src),
            ..TableEntry::default()
        })
    }

    #[test]
    fn a_flow_is_judged_by_which_of_its_ends_are_local() {
        use Direction::{Forwarded, In, Loopback, Out};
        for (src, reply_src, expected) in [
            ("127.0.0.1", "127.0.0.53", Loopback),
            ("192.0.2.7", "192.0.2.7", Loopback),
            ("::1", "::1", Loopback),
            ("192.0.2.7", "198.51.100.1", Out),
            ("fd00::7", "fd00::8", Out),
            ("198.51.100.1", "192.0.2.7", In),
            ("198.51.100.1", "10.1.200.200", In),
            ("198.51.100.1", "172.17.0.2", Forwarded),
            ("fd00::8", "fd00::9", Forwarded),
        ] {
            assert_eq!(direction(src, reply_src), expected, "{src} -> {reply_src}");
        }
    }

    #[test]
    fn what_many_hosts_hear_is_not_forwarded() {
        assert_eq!(direction("192.0.2.9", "192.0.2.255"), Direction::In);
        assert_eq!(direction("203.0.113.71", "203.0.113.127"), Direction::In, "without brd");
        assert_eq!(direction("203.0.113.70", "203.0.113.127"), Direction::Out);
        assert_eq!(direction("203.0.113.71", "203.0.113.126"), Direction::Forwarded);
        assert_eq!(direction("192.0.2.9", "198.18.0.3"), Direction::Forwarded, "the other end of a /31");
        assert_eq!(direction("192.0.2.9", "224.0.0.251"), Direction::In);
        assert_eq!(direction("0.0.0.0", "255.255.255.255"), Direction::In);
        assert_eq!(direction("fe80::1", "ff02::fb"), Direction::In);
        assert_eq!(direction("192.0.2.7", "224.0.0.251"), Direction::Out);
    }

    #[test]
    fn loopback_is_what_travels_over_lo_alone() {
        for out in ["192.0.2.255", "255.255.255.255", "224.0.0.251"] {
            assert_eq!(direction("192.0.2.7", out), Direction::Out, "{out}");
        }
        assert_eq!(direction("fd00::7", "ff02::fb"), Direction::Out);
        assert_eq!(direction("127.0.0.1", "127.255.255.255"), Direction::Loopback);
        assert_eq!(direction("127.0.0.1", "224.0.0.1"), Direction::Loopback);
    }
}
