//! The table of the thread's netns, read from /proc, and emptied. What ctwatch reads it by is not used here.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::Proto;
use crate::ctnetlink;

/// One entry: who opened it, and to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The protocol.
    pub proto: Proto,
    /// The source of its first packet.
    pub src: SocketAddr,
    /// The destination of its first packet, before translation.
    pub dst: SocketAddr,
}

/// All TCP and UDP entries of the thread's netns.
pub fn entries() -> Result<Vec<Entry>> {
    let text = fs::read_to_string("/proc/thread-self/net/nf_conntrack").context("reading the table")?;
    Ok(text.lines().filter_map(entry).collect())
}

fn entry(line: &str) -> Option<Entry> {
    let proto = Proto::from_name(line.split_whitespace().nth(2)?)?;
    let value = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let end = |address: &str, port: &str| {
        Some(SocketAddr::new(value(address)?.parse().ok()?, value(port)?.parse().ok()?))
    };
    Some(Entry { proto, src: end("src=", "sport=")?, dst: end("dst=", "dport=")? })
}

/// Deletes all entries of the thread's netns.
pub fn flush() -> Result<()> {
    ctnetlink::flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_who_opened_it() {
        let line = "ipv4     2 tcp      6 110 TIME_WAIT src=10.1.0.2 dst=198.51.100.2 sport=40001 dport=443 \
                    src=198.51.100.2 dst=198.51.100.1 sport=443 dport=40001 [ASSURED] mark=0 zone=0 use=2";
        let expected = Entry {
            proto: Proto::Tcp,
            src: "10.1.0.2:40001".parse().unwrap(),
            dst: "198.51.100.2:443".parse().unwrap(),
        };
        assert_eq!(entry(line), Some(expected));
        let icmp =
            "ipv4     2 icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=1 src=10.0.0.2 dst=10.0.0.1";
        assert_eq!(entry(icmp), None);
    }
}
