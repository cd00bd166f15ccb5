//! The VRFs of the netns of this thread: which addresses are local is another question for each of them.
//! Names are what whoever made the devices has given them.

use std::time::Instant;

use anyhow::{Result, bail};

use super::netlink::{self, Next};
use crate::foreign::Foreign;

// include/uapi/linux/rtnetlink.h, if_link.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const KIND: &[u8] = b"vrf";
/// So many are named.
const NAMED: usize = 4;

/// Their names, the first few.
///
/// # Errors
/// The kernel can't be asked for them, or takes too long.
pub fn here(until: Instant) -> Result<Vec<String>> {
    // struct ifinfomsg, and the kind of the devices wanted: struct nlattr within struct nlattr.
    let kind = [&[8, 0][..], &IFLA_INFO_KIND.to_ne_bytes(), KIND, &[0]].concat();
    let wanted = [&[0; 16][..], &[12, 0], &IFLA_LINKINFO.to_ne_bytes(), &kind].concat();
    let mut found = Vec::new();
    netlink::dump_routes_here(RTM_GETLINK, &wanted, |datagram| {
        if Instant::now() >= until {
            bail!("the kernel takes too long to list devices");
        }
        add(datagram, &mut found)
    })?;
    Ok(found)
}

/// A kernel that knows no VRF tells of all devices.
fn add(datagram: &[u8], found: &mut Vec<String>) -> Result<Next> {
    for (kind, body) in netlink::messages(datagram) {
        match kind {
            netlink::DONE => return Ok(Next::Stop),
            netlink::ERROR => return Err(netlink::refusal(body).into()),
            RTM_NEWLINK => {
                let Some((_, attributes)) = body.split_first_chunk::<16>() else {
                    bail!("a device that is cut short");
                };
                let of = |wanted: u16| {
                    netlink::attributes(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
                };
                let text = |value: &'_ [u8]| Foreign::from_bytes(value.strip_suffix(&[0]).unwrap_or(value));
                let mut info = netlink::attributes(of(IFLA_LINKINFO).unwrap_or_default());
                let is_vrf = info.any(|(kind, value)| {
                    kind == IFLA_INFO_KIND && value.strip_suffix(&[0]).unwrap_or(value) == KIND
                });
                if is_vrf && found.len() < NAMED {
                    found.push(text(of(IFLA_IFNAME).unwrap_or_default()).into_raw());
                }
            }
            _ => {}
        }
    }
    Ok(Next::Go)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_vrf_is_told_from_other_devices() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
            out.extend(kind.to_ne_bytes());
            out.extend(value);
            out.resize(out.len().next_multiple_of(4), 0);
            out
        };
        let device = |name: &[u8], kind: &[u8]| {
            let info = attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, kind));
            let body = [&[0; 16][..], &attribute(IFLA_IFNAME, name), &info].concat();
            let mut out = (16 + body.len() as u32).to_ne_bytes().to_vec();
            out.extend(RTM_NEWLINK.to_ne_bytes());
            out.extend([0; 10]);
            out.extend(body);
            out
        };
        let mut found = Vec::new();
        add(&[device(b"eth0\0", b"veth\0"), device(b"mgmt\0", b"vrf\0")].concat(), &mut found).unwrap();
        assert_eq!(found, ["mgmt"]);
    }

    #[test]
    fn the_kernel_answers() {
        here(Instant::now() + Duration::from_secs(60)).expect("it lists devices");
        assert!(here(Instant::now()).is_err(), "no time");
    }
}
