//! The names that both tools use for protocols, flags, states and ICMP types, and addresses as numbers.
//! A name that isn't here is unknown: no guess is made.

use std::net::IpAddr;

use super::ir::state;
use super::ranges::Ranges;
use crate::model::Protocol;

/// The number of an IP protocol by name or number.
pub fn protocol(name: &str) -> Option<u8> {
    match name {
        "ipv6-icmp" | "icmp6" => Some(Protocol::ICMPV6.0),
        _ => Protocol::from_name(name).map(|protocol| protocol.0).or_else(|| name.parse().ok()),
    }
}

/// A TCP flag.
pub fn tcp_flag(name: &str) -> Option<u8> {
    const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    FLAGS.iter().position(|known| name.eq_ignore_ascii_case(known)).map(|bit| 1 << bit)
}

/// A conntrack state.
pub fn state(name: &str) -> Option<u8> {
    Some(match name.to_ascii_lowercase().as_str() {
        "invalid" => state::INVALID,
        "established" => state::ESTABLISHED,
        "related" => state::RELATED,
        "new" => state::NEW,
        "untracked" => state::UNTRACKED,
        _ => return None,
    })
}

/// The ICMP and ICMPv6 types worth knowing here, by nft's and iptables' names, or by number.
pub fn icmp_type(name: &str) -> Option<u8> {
    Some(match name {
        "echo-reply" => 0,
        "destination-unreachable" => 3,
        "echo-request" => 8,
        "time-exceeded" => 11,
        "packet-too-big" => 2,
        "nd-router-solicit" => 133,
        "nd-router-advert" => 134,
        "nd-neighbor-solicit" => 135,
        "nd-neighbor-advert" => 136,
        _ => return name.parse().ok(),
    })
}

/// An address as a number.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The addresses of a network.
pub fn network(address: IpAddr, bits: u8) -> Option<Ranges> {
    let net = ipnet::IpNet::new(address, bits).ok()?;
    Some(Ranges::span(number(net.network()), number(net.broadcast())))
}
