//! A census: every entry of a netns's table, read once over ctnetlink and summed up while it streams by.
//! Read-only, and never on the thread that watches: a large table takes seconds.

pub mod parse;
mod tally;

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::event::{CensusKey, Detail, Timeouts};
use parse::{Message, Messages};
use tally::Tally;

/// The kernel fills at most 32 KB of a dump at once (netlink_recvmsg, net/netlink/af_netlink.c).
const BUFFER: usize = 64 << 10;
/// The kernel answers at once; a silence this long means that it never will.
const SILENCE: Duration = Duration::from_secs(10);

// include/uapi/linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
const CT_GET: u16 = 1 << 8 | 1;

/// What one dump held.
#[derive(Clone, Debug, Default)]
pub struct Count {
    /// Entries by protocol and port.
    pub keys: Vec<CensusKey>,
    /// States and remaining timeouts of the larger keys, and of the rest of each protocol.
    pub details: Vec<Detail>,
    /// All entries.
    pub entries: u64,
    /// Entries that the dump listed twice, counted once.
    pub duplicates: u64,
    /// The kernel said that the dump may be inconsistent.
    pub interrupted: bool,
    /// How long it took.
    pub took: Duration,
}

/// Counts the entries of the netns this thread is in.
pub fn take_here() -> Result<Count> {
    let started = Instant::now();
    let mut tally = Tally::new();
    let interrupted = dump_here(|message| {
        if let Message::Entry(entry) = message {
            tally.add(&entry);
        }
    })?;
    let (entries, duplicates) = (tally.entries, tally.duplicates);
    let (keys, details) = tally.finish();
    Ok(Count { keys, details, entries, duplicates, interrupted, took: started.elapsed() })
}

/// Hands over every message of a dump; returns whether the kernel called it inconsistent.
fn dump_here(mut each: impl FnMut(Message)) -> Result<bool> {
    let mut socket = open().context("opening a NETLINK_NETFILTER socket")?;
    socket.write_all(&request()).context("asking for a dump of the conntrack table (IPCTNL_MSG_CT_GET)")?;
    let mut buffer = vec![0; BUFFER];
    let mut interrupted = false;
    loop {
        let length = match socket.read(&mut buffer) {
            Ok(0) => bail!("the kernel closed the dump of the conntrack table"),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("the kernel stopped answering in the middle of a dump of the conntrack table")
            }
            Err(error) => return Err(error).context("reading the dump of the conntrack table"),
        };
        let mut messages = Messages::new(&buffer[..length]);
        for message in messages.by_ref() {
            match message {
                Message::Done(0) => return Ok(interrupted),
                Message::Done(code) | Message::Error(code) if code != 0 => return Err(refusal(code)),
                Message::Overrun => bail!("the kernel lost parts of the dump of the conntrack table"),
                message => each(message),
            }
        }
        interrupted |= messages.interrupted;
    }
}

/// Why the kernel refused, and what would help.
fn refusal(code: i32) -> anyhow::Error {
    let error = std::io::Error::from_raw_os_error(code);
    let remedy = match code {
        libc::EPERM | libc::EACCES => " (this needs CAP_NET_ADMIN: run as root)",
        libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT => {
            " (the kernel has no ctnetlink: `modprobe nf_conntrack_netlink`)"
        }
        _ => "",
    };
    anyhow!("the kernel refused to dump the conntrack table: {error}{remedy}")
}

fn request() -> Vec<u8> {
    let mut out = 20_u32.to_ne_bytes().to_vec();
    out.extend(CT_GET.to_ne_bytes());
    out.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    out.extend([0; 8]);
    // struct nfgenmsg: AF_UNSPEC is all families.
    out.extend([libc::AF_UNSPEC as u8, 0, 0, 0]);
    out
}

/// A socket of the netns this thread is in.
fn open() -> std::io::Result<File> {
    // SAFETY: socket(2) takes plain numbers.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let patience = libc::timeval { tv_sec: SILENCE.as_secs() as libc::time_t, tv_usec: 0 };
    // SAFETY: the pointer and length describe one live timeval.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const patience).cast(),
            size_of::<libc::timeval>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(socket.into()) }
}

/// The timeouts in force in the netns this thread is in; what can't be read is unknown.
#[must_use]
pub fn timeouts_here() -> Timeouts {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    Timeouts {
        tcp_syn_sent: read("tcp_timeout_syn_sent"),
        tcp_established: read("tcp_timeout_established"),
        tcp_time_wait: read("tcp_timeout_time_wait"),
        udp: read("udp_timeout"),
        udp_stream: read("udp_timeout_stream"),
        icmp: read("icmp_timeout"),
        icmpv6: read("icmpv6_timeout"),
        generic: read("generic_timeout"),
    }
}

/// Entries in the table of the netns this thread is in, as the kernel counts them.
#[must_use]
pub fn entries_here() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_share_an_id_by_chance_are_two() {
        let mut tally = Tally::new();
        for port in [80, 81] {
            let bytes = parse::tests::tcp(7, port, 3, 60, 0xE);
            let Some(Message::Entry(entry)) = Messages::new(&bytes).next() else { panic!("no entry") };
            tally.add(&entry);
        }
        assert_eq!((tally.entries, tally.duplicates), (2, 0));
    }

    #[test]
    fn a_tally_counts_by_port_and_an_entry_listed_twice_once() {
        let mut tally = Tally::new();
        let bytes: Vec<u8> = (0..100_u32)
            .flat_map(|id| parse::tests::tcp(id + 1, if id < 97 { 6379 } else { 443 }, 7, 60, 0xE))
            .chain(parse::tests::tcp(100, 443, 7, 60, 0xE))
            .collect();
        for message in Messages::new(&bytes) {
            let Message::Entry(entry) = message else { panic!("{message:?}") };
            tally.add(&entry);
        }
        assert_eq!((tally.entries, tally.duplicates), (100, 1));
        let (keys, details) = tally.finish();
        let of = |port| keys.iter().find(|key| key.port == port).expect("counted");
        assert_eq!((of(6379).entries, of(6379).time_wait, of(443).entries), (97, 97, 3));
        let summed: u32 = details.iter().map(|detail| detail.mix.total()).sum();
        assert_eq!(summed, 100);
        assert_eq!(details.iter().filter(|detail| detail.port.is_some()).count(), 1);
    }
}
