//! Messages of NETLINK_NETFILTER and their attributes, written and taken apart.
//! What they mean is up to the subsystem that they go to.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::sys;

/// include/uapi/linux/netlink.h
pub const NLM_F_REQUEST: u16 = 0x1;
/// The same: an answer is wanted.
pub const NLM_F_ACK: u16 = 0x4;
/// The same: an error, or with number 0 an acknowledgement.
pub const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;

/// `struct nlmsghdr`, and with it `struct nfgenmsg`.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;

/// A socket of the calling thread's netns.
pub fn open() -> Result<OwnedFd> {
    sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
        .context("opening a NETLINK_NETFILTER socket")
}

/// Appends a message whose attributes `fill` writes. `resource` is res_id of `struct nfgenmsg`.
pub fn message(
    out: &mut Vec<u8>,
    (kind, flags): (u16, u16),
    family: i32,
    resource: u16,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([0; 8]);
    // NFNETLINK_V0 is 0.
    out.extend([family as u8, 0]);
    out.extend(resource.to_be_bytes());
    fill(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Appends an attribute.
pub fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute that `fill` fills with others.
pub fn nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    attribute(out, kind | NLA_F_NESTED, &[]);
    fill(out);
    let length = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// Takes the next message: its type and what follows `struct nlmsghdr`.
pub fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let body = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// The error number that a message of type NLMSG_ERROR brings; 0 is an acknowledgement.
pub fn error_of(body: &[u8]) -> Option<i32> {
    Some(-i32::from_ne_bytes(body.get(..4)?.try_into().ok()?))
}

/// The value of an attribute in the body of a subsystem's message.
pub fn find(body: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = body.get(HEADERS - HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        if u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) == wanted {
            return rest.get(4..length);
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_wherever_it_stands() {
        let mut written = Vec::new();
        message(&mut written, (7, NLM_F_REQUEST), libc::AF_INET, 3, |out| {
            attribute(out, 9, &[1, 2, 3, 4, 5]);
            nested(out, 2, |out| attribute(out, 1, &[6]));
        });
        let mut rest = written.as_slice();
        let (kind, body) = next_message(&mut rest).expect("one message");
        assert_eq!((kind, rest.len()), (7, 0));
        assert_eq!(find(body, 9), Some(&[1, 2, 3, 4, 5][..]));
        assert_eq!(find(body, 2 | NLA_F_NESTED).map(<[u8]>::len), Some(8));
        assert_eq!(find(body, 5), None);
        assert_eq!(next_message(&mut rest), None);
        assert_eq!(error_of(&(-22_i32).to_ne_bytes()), Some(22));
    }
}
