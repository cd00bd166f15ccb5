//! The networks for whose addresses the netns of this thread takes packets, asked of the kernel by kind: it passes over a router's
//! million other routes itself, while its lists in /proc start over from the first route at every page.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, bail};

use super::netlink::{self, Next};

// include/uapi/linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTN_LOCAL: u8 = 2;
const RT_TABLE_LOCAL: u8 = 255;
const RTA_DST: u16 = 1;

/// "192.0.2.1/32" and the like, of one family.
///
/// # Errors
/// The kernel can't be asked so, takes too long, or there are more than `most`.
pub fn local_networks(is_ipv6: bool, until: Instant, most: usize) -> Result<Vec<String>> {
    let family = if is_ipv6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    // addrtype and fib ask for IPv4 in table local alone (__inet_dev_addr_type, net/ipv4/fib_frontend.c, 6.12), for IPv6 in all.
    let table = if is_ipv6 { 0 } else { RT_TABLE_LOCAL };
    // struct rtmsg
    let wanted = [family, 0, 0, 0, table, 0, 0, RTN_LOCAL, 0, 0, 0, 0];
    let mut found = Vec::new();
    netlink::dump_routes_here(RTM_GETROUTE, &wanted, |datagram| {
        let next = add(datagram, family, table, &mut found)?;
        if found.len() > most {
            bail!("there are more than {most} local networks");
        }
        if Instant::now() >= until {
            bail!("the kernel takes too long to list local networks");
        }
        Ok(next)
    })?;
    Ok(found)
}

fn add(datagram: &[u8], family: u8, table: u8, found: &mut Vec<String>) -> Result<Next> {
    for (kind, body) in netlink::messages(datagram) {
        match kind {
            netlink::DONE => return Ok(Next::Stop),
            netlink::ERROR => {
                let refusal = netlink::refusal(body);
                // No address was ever given, so that there is no such table.
                return if refusal.0 == libc::ENOENT { Ok(Next::Stop) } else { Err(refusal.into()) };
            }
            RTM_NEWROUTE => {
                let Some((&[of, bits, _, _, in_table, _, _, what, ..], attributes)) =
                    body.split_first_chunk::<12>()
                else {
                    bail!("a route that is cut short");
                };
                // A kernel that doesn't look at what is wanted tells of all.
                if what != RTN_LOCAL || of != family || (table != 0 && in_table != table) {
                    bail!("the kernel lists other routes than those that were asked for");
                }
                found.push(format!("{}/{bits}", destination(attributes, family)?));
            }
            _ => {}
        }
    }
    Ok(Next::Go)
}

fn destination(attributes: &[u8], family: u8) -> Result<IpAddr> {
    let value = netlink::attributes(attributes).find(|(kind, _)| *kind == RTA_DST).map(|(_, value)| value);
    Ok(match (value, i32::from(family)) {
        (None, libc::AF_INET) => IpAddr::from([0; 4]),
        (None, _) => IpAddr::from([0; 16]),
        (Some(value), libc::AF_INET) => IpAddr::from(<[u8; 4]>::try_from(value)?),
        (Some(value), _) => IpAddr::from(<[u8; 16]>::try_from(value)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn loopback_is_local_wherever_it_is_up() {
        let v4 = local_networks(false, soon(), 1 << 16).expect("the kernel tells");
        assert!(v4.contains(&"127.0.0.1/32".to_owned()) && v4.contains(&"127.0.0.0/8".to_owned()), "{v4:?}");
        assert!(local_networks(true, soon(), 1 << 16).is_ok_and(|v6| v6.iter().all(|one| one.contains(':'))));
        assert!(local_networks(false, soon(), 1).is_err(), "too many");
    }

    #[test]
    fn other_routes_than_those_wanted_are_no_answer() {
        let route = |table: u8, what: u8, attributes: &[u8]| {
            let body = [&[libc::AF_INET as u8, 32, 0, 0, table, 0, 0, what, 0, 0, 0, 0], attributes].concat();
            let mut out = (16 + body.len() as u32).to_ne_bytes().to_vec();
            out.extend(RTM_NEWROUTE.to_ne_bytes());
            out.extend([0; 10]);
            out.extend(body);
            out
        };
        let address = [8, 0, 1, 0, 192, 0, 2, 1];
        let mut found = Vec::new();
        let of = libc::AF_INET as u8;
        add(&route(RT_TABLE_LOCAL, RTN_LOCAL, &address), of, RT_TABLE_LOCAL, &mut found).expect("as wanted");
        assert_eq!(found, ["192.0.2.1/32"]);
        assert!(add(&route(254, RTN_LOCAL, &address), of, RT_TABLE_LOCAL, &mut found).is_err());
        assert!(add(&route(RT_TABLE_LOCAL, 1, &address), of, RT_TABLE_LOCAL, &mut found).is_err());
        let short = [6, 0, 1, 0, 1, 2, 0, 0];
        assert!(add(&route(RT_TABLE_LOCAL, RTN_LOCAL, &short), of, RT_TABLE_LOCAL, &mut found).is_err());
    }
}
