//! Addresses in one comparable form, and those that belong to a netns.
//! The one place that knows how an address is kept.

use std::net::IpAddr;

/// An IP address in 16 bytes: IPv4 as `::ffff:a.b.c.d`, which no packet carries as IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub u128);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        })
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        IpAddr::V6(address.0.into()).to_canonical()
    }
}

/// An address that belongs to a netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// It.
    pub address: IpAddr,
    /// Bits that its network has in common.
    pub prefix: u8,
    /// It is on a loopback device, where IPv4 counts the whole network as local.
    pub on_loopback: bool,
    /// What reaches all hosts of its network.
    pub broadcast: Option<IpAddr>,
}
