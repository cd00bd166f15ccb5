//! Which addresses are this netns's own: what tells a flow to it from a flow through it.
//! Read once per census; nothing here decides what an address means.

use std::net::IpAddr;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::model::LocalAddress;

/// The addresses of the netns this thread is in.
pub fn local_addresses() -> Result<Vec<LocalAddress>> {
    let found = getifaddrs().context("listing the addresses of a netns (getifaddrs)")?;
    Ok(found
        .filter_map(|interface| {
            let address = ip(interface.address.as_ref()?)?;
            let mask = interface.netmask.as_ref().and_then(ip);
            Some(LocalAddress {
                address,
                prefix: mask.map_or_else(|| full(address), ones),
                on_loopback: interface.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                broadcast: interface.broadcast.as_ref().and_then(ip),
            })
        })
        .collect())
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
}

fn ones(mask: IpAddr) -> u8 {
    match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones() as u8,
        IpAddr::V6(mask) => mask.to_bits().count_ones() as u8,
    }
}

const fn full(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_can_be_listed_and_a_loopback_one_has_its_network() {
        let found = local_addresses().expect("getifaddrs works");
        for address in found.iter().filter(|found| found.address == IpAddr::from([127, 0, 0, 1])) {
            assert!(address.on_loopback);
            assert_eq!(address.prefix, 8);
        }
    }
}
