//! The generation of nf_tables' rules: a number that every change raises, so that nobody has to list them to see one.
//! Asks nothing of a kernel whose nf_tables isn't loaded, for asking would load it.

use anyhow::{Context as _, Result, bail};

use super::netlink::{ERROR, ask_here, messages, refusal};
use crate::kernel::roots::Roots;

// include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h
const SUBSYSTEM: u16 = 10;
const NEWGEN: u16 = SUBSYSTEM << 8 | 15;
const GETGEN: u16 = SUBSYSTEM << 8 | 16;
/// NFTA_GEN_ID
const GEN_ID: u16 = 1;

/// The generation in the netns this thread is in; `None` where nf_tables is not a loaded module.
///
/// # Errors
/// The kernel refused or didn't answer.
pub fn generation(roots: &Roots) -> Result<Option<u32>> {
    if !roots.sys("module/nf_tables").exists() {
        return Ok(None);
    }
    let answer = ask_here(GETGEN, 0).context("asking for the generation of nftables' rules")?;
    for (kind, body) in messages(&answer) {
        match kind {
            ERROR => return Err(refusal(body).into()),
            NEWGEN => return from_body(body).map(Some).context("an answer without a generation"),
            _ => {}
        }
    }
    bail!("the kernel told no generation of nftables' rules");
}

/// struct nfgenmsg, then attributes.
fn from_body(body: &[u8]) -> Option<u32> {
    let mut rest = body.get(4..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        if kind == GEN_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_generation_is_one_of_several_attributes() {
        let mut body = vec![0, 0, 0, 7];
        for (kind, value) in [(3_u16, b"nft\0".as_slice()), (GEN_ID, &7_u32.to_be_bytes())] {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        }
        assert_eq!(from_body(&body), Some(7));
        assert_eq!(from_body(&body[..12]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            from_body(&bytes);
        }
    }
}
