//! Creates conntrack entries by the hundred thousand over NETLINK_NETFILTER: a full table in seconds, without traffic.
//! Only entries are made, deleted and read here; what a table should look like is `table`'s knowledge.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};

use crate::nfnetlink::{
    self, NLM_F_REQUEST, NLMSG_ERROR, attribute, error_of, message, nested, next_message,
};
use crate::sys;

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
const CT_NEW: u16 = 1 << 8;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
const CT_DELETE: u16 = 1 << 8 | 2;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
const CT_GET: u16 = 1 << 8 | 1;

// enum ctattr_type and friends, include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

// enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const IPS_CONFIRMED: u32 = 1 << 3;

/// TCP states of nf_conntrack_tcp.h that entries are made in.
#[derive(Clone, Copy, Debug)]
pub enum TcpState {
    /// A SYN that nobody answered yet: half open.
    SynSent = 1,
    /// Both sides talk; gc never takes an assured entry in this state.
    Established = 3,
    /// Closed, waiting two minutes: what fills the story's table.
    TimeWait = 7,
}

/// One entry to make.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Who opened the flow.
    pub src: (IpAddr, u16),
    /// To where.
    pub dst: (IpAddr, u16),
    /// TCP in this state, or UDP.
    pub tcp: Option<TcpState>,
    /// Assured entries survive early_drop; one-way ones are its victims.
    pub assured: bool,
    /// Seconds until it expires.
    pub timeout: u32,
    /// Its mark.
    pub mark: u32,
    /// Its zone.
    pub zone: u16,
}

impl Entry {
    /// The `index`-th of many flows to one loopback port, each from its own source address.
    pub fn nth(index: u32, port: u16, tcp: Option<TcpState>, assured: bool) -> Self {
        let src = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + index);
        Self {
            src: (src.into(), 1024 + (index % 60_000) as u16),
            dst: (Ipv4Addr::LOCALHOST.into(), port),
            tcp,
            assured,
            timeout: 432_000,
            mark: 0,
            zone: 0,
        }
    }
}

/// A ctnetlink socket of the calling thread's netns.
pub struct Maker {
    socket: std::fs::File,
    replies: Vec<u8>,
}

impl Maker {
    /// Opens the socket.
    pub fn open() -> Result<Self> {
        let fd = nfnetlink::open()?;
        sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 4 << 20).context("SO_SNDBUFFORCE")?;
        Ok(Self { socket: fd.into(), replies: vec![0; 256 << 10] })
    }

    /// Makes all entries. No acknowledgement is asked for: the kernel answers with errors only.
    pub fn create(&mut self, entries: impl IntoIterator<Item = Entry>) -> Result<()> {
        self.each(entries, create)
    }

    /// Deletes all entries, which must be there.
    pub fn delete(&mut self, entries: impl IntoIterator<Item = Entry>) -> Result<()> {
        self.each(entries, delete)
    }

    fn each(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
        message: fn(&mut Vec<u8>, &Entry),
    ) -> Result<()> {
        let mut batch = Vec::with_capacity(128 << 10);
        for entry in entries {
            message(&mut batch, &entry);
            if batch.len() > 100 << 10 {
                self.send(&batch)?;
                batch.clear();
            }
        }
        if batch.is_empty() { Ok(()) } else { self.send(&batch) }
    }

    fn send(&mut self, batch: &[u8]) -> Result<()> {
        self.socket.write_all(batch).context("sending to ctnetlink")?;
        // The kernel handles the whole batch inside send(), so its errors are queued by now.
        let mut failures = std::collections::BTreeMap::<i32, u32>::new();
        let socket = self.socket.as_raw_fd();
        while let Some(length) =
            sys::receive_now(&socket, &mut self.replies).context("reading ctnetlink's answers")?
        {
            for error in errors(&self.replies[..length]) {
                *failures.entry(error).or_default() += 1;
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        let list: Vec<_> = failures
            .iter()
            .map(|(code, times)| format!("{times}× {}", std::io::Error::from_raw_os_error(*code)))
            .collect();
        bail!("ctnetlink refused entries: {}", list.join(", "))
    }
}

/// Deletes all entries of the calling thread's netns, as `conntrack -F` does.
pub fn flush() -> Result<()> {
    let mut request = Vec::new();
    message(&mut request, (CT_DELETE, NLM_F_REQUEST), libc::AF_UNSPEC, 0, |_| {});
    Maker::open()?.send(&request)
}

/// Reads a dump of the calling thread's netns to its end and looks at nothing but each message's type: what a census
/// can't be faster than. Returns how many datagrams there were.
pub fn discard_dump() -> Result<u64> {
    let mut socket = std::fs::File::from(nfnetlink::open()?);
    let mut request = Vec::new();
    message(&mut request, (CT_GET, NLM_F_REQUEST | NLM_F_DUMP), libc::AF_UNSPEC, 0, |_| {});
    socket.write_all(&request).context("asking for a dump")?;
    let mut buffer = vec![0; 64 << 10];
    for datagrams in 1.. {
        let length = socket.read(&mut buffer).context("reading a dump")?;
        match u16::from_ne_bytes([buffer[4], buffer[5]]) {
            NLMSG_DONE => return Ok(datagrams),
            NLMSG_ERROR => bail!("the kernel refused a dump"),
            // The last message of a datagram may be the end of the dump: it is 20 bytes long.
            _ if length >= 20 && buffer[length - 16..length - 14] == NLMSG_DONE.to_ne_bytes() => {
                return Ok(datagrams);
            }
            _ => {}
        }
    }
    unreachable!("a dump ends")
}

fn errors(mut bytes: &[u8]) -> Vec<i32> {
    let mut found = Vec::new();
    while let Some((kind, body)) = next_message(&mut bytes) {
        if kind == NLMSG_ERROR
            && let Some(code) = error_of(body).filter(|code| *code != 0)
        {
            found.push(code);
        }
    }
    found
}

fn create(out: &mut Vec<u8>, entry: &Entry) {
    message(out, (CT_NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL), family(entry), 0, |out| {
        describe(out, entry)
    });
}

fn describe(out: &mut Vec<u8>, entry: &Entry) {
    for (kind, from, to) in [(CTA_TUPLE_ORIG, entry.src, entry.dst), (CTA_TUPLE_REPLY, entry.dst, entry.src)]
    {
        tuple(out, kind, from, to, entry);
    }
    let status = IPS_CONFIRMED | if entry.assured { IPS_ASSURED | IPS_SEEN_REPLY } else { 0 };
    attribute(out, CTA_STATUS, &status.to_be_bytes());
    attribute(out, CTA_TIMEOUT, &entry.timeout.to_be_bytes());
    if entry.mark != 0 {
        attribute(out, CTA_MARK, &entry.mark.to_be_bytes());
    }
    if entry.zone != 0 {
        attribute(out, CTA_ZONE, &entry.zone.to_be_bytes());
    }
    if let Some(state) = entry.tcp {
        nested(out, CTA_PROTOINFO, |out| {
            nested(out, CTA_PROTOINFO_TCP, |out| attribute(out, CTA_PROTOINFO_TCP_STATE, &[state as u8]));
        });
    }
}

fn delete(out: &mut Vec<u8>, entry: &Entry) {
    message(out, (CT_DELETE, NLM_F_REQUEST), family(entry), 0, |out| {
        tuple(out, CTA_TUPLE_ORIG, entry.src, entry.dst, entry);
    });
}

fn family(entry: &Entry) -> i32 {
    if entry.src.0.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn tuple(out: &mut Vec<u8>, kind: u16, from: (IpAddr, u16), to: (IpAddr, u16), entry: &Entry) {
    let proto = if entry.tcp.is_some() { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP } as u8;
    nested(out, kind, |out| {
        nested(out, CTA_TUPLE_IP, |out| {
            address(out, from.0, CTA_IP_V4_SRC, CTA_IP_V6_SRC);
            address(out, to.0, CTA_IP_V4_DST, CTA_IP_V6_DST);
        });
        nested(out, CTA_TUPLE_PROTO, |out| {
            attribute(out, CTA_PROTO_NUM, &[proto]);
            attribute(out, CTA_PROTO_SRC_PORT, &from.1.to_be_bytes());
            attribute(out, CTA_PROTO_DST_PORT, &to.1.to_be_bytes());
        });
    });
}

fn address(out: &mut Vec<u8>, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => attribute(out, v4, &address.octets()),
        IpAddr::V6(address) => attribute(out, v6, &address.octets()),
    }
}
