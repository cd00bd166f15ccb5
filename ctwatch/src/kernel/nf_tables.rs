//! Which tables nf_tables has, and the number of their last change: what shows that nobody listed a rule set where nft
//! isn't installed, or that it must be listed again. Rules themselves are read by the tools that made them.

use std::fmt;

use anyhow::{Context, Result, bail};

use super::netlink::{self, Next};
use super::roots::Roots;
use crate::foreign::Foreign;

/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, include/uapi/linux/netfilter/nf_tables.h, 6.12.
const GET_TABLE: u16 = 10 << 8 | 1;
/// NFT_MSG_NEWTABLE
const NEW_TABLE: u16 = 10 << 8;
/// NFTA_TABLE_NAME
const NAME: u16 = 1;

/// NFT_MSG_GETGEN and NFT_MSG_NEWGEN
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// NFTA_GEN_ID
const GENERATION_ID: u16 = 1;

/// Whose packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// arp, bridge, netdev.
    Other,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Other => "another family",
        })
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
}

/// The tables of the netns this thread is in.
///
/// # Errors
/// If the kernel refuses (CAP_NET_ADMIN is needed), or has no nf_tables.
pub fn tables() -> Result<Vec<Table>> {
    let mut found = Vec::new();
    netlink::dump_here(GET_TABLE, libc::AF_UNSPEC as u8, &[], |datagram| add(datagram, &mut found))
        .context("listing the tables of nf_tables")?;
    Ok(found)
}

fn add(datagram: &[u8], found: &mut Vec<Table>) -> Result<Next> {
    for (kind, body) in netlink::messages(datagram) {
        match kind {
            netlink::DONE => return Ok(Next::Stop),
            netlink::ERROR => return Err(netlink::refusal(body).into()),
            NEW_TABLE => {
                // struct nfgenmsg; NFPROTO_*
                let family = match body.first() {
                    Some(1) => Family::Inet,
                    Some(2) => Family::Ip,
                    Some(10) => Family::Ip6,
                    _ => Family::Other,
                };
                let name = name(body.get(4..).unwrap_or_default()).context("a table without a name")?;
                found.push(Table { family, name });
            }
            _ => {}
        }
    }
    Ok(Next::Go)
}

fn name(attributes: &[u8]) -> Option<String> {
    let (_, value) = netlink::attributes(attributes).find(|(kind, _)| *kind == NAME)?;
    Some(Foreign::from_bytes(value.strip_suffix(&[0]).unwrap_or(value)).into_raw())
}

/// The generation of the rules in the netns this thread is in, which every change raises; `None` where nf_tables is not a loaded module.
///
/// # Errors
/// The kernel refused or didn't answer.
pub fn generation(roots: &Roots) -> Result<Option<u32>> {
    if !roots.sys("module/nf_tables").exists() {
        return Ok(None);
    }
    let answer =
        netlink::ask_here(GET_GENERATION, 0).context("asking for the generation of nftables' rules")?;
    for (kind, body) in netlink::messages(&answer) {
        match kind {
            netlink::ERROR => return Err(netlink::refusal(body).into()),
            NEW_GENERATION => return generation_in(body).map(Some).context("an answer without a generation"),
            _ => {}
        }
    }
    bail!("the kernel told no generation of nftables' rules");
}

/// struct nfgenmsg, then attributes.
fn generation_in(body: &[u8]) -> Option<u32> {
    let (_, value) = netlink::attributes(body.get(4..)?).find(|(kind, _)| *kind == GENERATION_ID)?;
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = (16 + body.len() as u32).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(body);
        out
    }

    #[test]
    fn tables_are_named_and_an_error_is_one() {
        let mut body = vec![10, 0, 0, 0];
        // A flag before the name, which ends with a zero.
        body.extend([8, 0, 2, 0, 0, 0, 0, 0]);
        body.extend([9, 0, 1, 0]);
        body.extend(b"mine\0\0\0\0");
        let mut found = Vec::new();
        assert!(matches!(add(&message(NEW_TABLE, &body), &mut found), Ok(Next::Go)));
        assert_eq!(found, [Table { family: Family::Ip6, name: "mine".to_owned() }]);
        assert!(matches!(add(&message(netlink::DONE, &[0; 4]), &mut found), Ok(Next::Stop)));
        let refused = (-libc::EPERM).to_ne_bytes();
        assert!(add(&message(netlink::ERROR, &refused), &mut found).is_err());
        assert!(add(&message(NEW_TABLE, &[2, 0, 0, 0, 40, 0]), &mut found).is_err(), "cut short");
    }

    #[test]
    fn the_generation_is_one_of_several_attributes() {
        let mut body = vec![0, 0, 0, 7];
        for (kind, value) in [(3_u16, b"nft\0".as_slice()), (GENERATION_ID, &7_u32.to_be_bytes())] {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        }
        assert_eq!(generation_in(&body), Some(7));
        assert_eq!(generation_in(&body[..12]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            generation_in(&bytes);
        }
    }
}
