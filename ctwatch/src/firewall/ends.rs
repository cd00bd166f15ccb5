//! Addresses and ports that the ends of flows have, as far as nothing is known of them.

use super::ir::Family;
use super::options;
use super::ranges::Ranges;
use crate::model::Protocol;

/// Ports that a client binds itself where a server trusts it for that: bindresvport(3), NFS, rsh.
const RESERVED: (u128, u128) = (512, 1023);
/// Linux's ephemeral ports unless set otherwise (inet_init_net, net/ipv4/af_inet.c, 6.12).
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// The networks of this family in which other hosts may be: unicast, and not the loopback network.
pub fn peers(family: Family) -> Ranges {
    let networks: &[&str] = match family {
        Family::V4 => return Ranges::span(1 << 24, (224 << 24) - 1).without(&loopback(family)),
        Family::V6 => &["64:ff9b::/32", "2000::/3", "fc00::/7", "fe80::/10"],
    };
    Ranges::of(networks.iter().flat_map(|text| network(text).intervals().to_vec()))
}

/// The loopback network of this family.
pub fn loopback(family: Family) -> Ranges {
    network(if family == Family::V4 { "127.0.0.0/8" } else { "::1/128" })
}

/// Addresses of this family that many hosts share, by what the routing table calls them. A net's own broadcast address is among the
/// peers', since nobody here knows the nets.
pub fn groups(family: Family) -> Vec<(&'static str, Ranges)> {
    match family {
        Family::V4 => {
            vec![("multicast", network("224.0.0.0/4")), ("broadcast", network("255.255.255.255/32"))]
        }
        Family::V6 => vec![("multicast", network("ff00::/8"))],
    }
}

fn network(text: &str) -> Ranges {
    options::network(text).expect("it is a network")
}

/// The ports of clients elsewhere, as far as they are not chosen to do harm.
pub fn remote_ports(proto: Protocol) -> Ranges {
    if proto == Protocol::UDP { Ranges::span(1, 65_535) } else { Ranges::span(RESERVED.0, 65_535) }
}

/// The ports of this host's own clients. A UDP server also sends from the port it listens on.
pub fn own_ports(proto: Protocol, ephemeral: Option<(u16, u16)>) -> Ranges {
    let (low, high) = ephemeral.unwrap_or(EPHEMERAL);
    if proto == Protocol::UDP {
        Ranges::span(1, 65_535)
    } else {
        Ranges::of([RESERVED, (low.into(), high.into())])
    }
}
