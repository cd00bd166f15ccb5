//! A netlink socket, and one request over it: what ctnetlink, nfnetlink_hook and rtnetlink have in common.
//! It reads requests' answers only; no request made here changes anything.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::roots::Roots;
use super::standing::Standing;

/// The kernel fills at most 32 KB of a dump at once (netlink_recvmsg, net/netlink/af_netlink.c).
const BUFFER: usize = 64 << 10;
/// The kernel answers at once; a silence this long means that it never will.
const SILENCE: Duration = Duration::from_secs(10);

// include/uapi/linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;

/// NLMSG_ERROR
pub const ERROR: u16 = 2;
/// NLMSG_DONE
pub const DONE: u16 = 3;

/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3FFF;

/// What to do after a datagram.
pub enum Next {
    /// Read another.
    Go,
    /// The dump is over, or not wanted any more.
    Stop,
}

/// Asks for a dump in the netns this thread is in, and hands over each datagram of the answer.
pub fn dump_here(
    kind: u16,
    family: u8,
    attributes: &[u8],
    each: impl FnMut(&[u8]) -> Result<Next>,
) -> Result<()> {
    let socket = open(libc::NETLINK_NETFILTER).context("opening a NETLINK_NETFILTER socket")?;
    dump(socket, &request(kind, NLM_F_DUMP, family, attributes), each)
}

/// The same of NETLINK_ROUTE. The kernel takes what stands in the body as what is wanted (NETLINK_GET_STRICT_CHK, from 4.20 on).
pub fn dump_routes_here(kind: u16, body: &[u8], each: impl FnMut(&[u8]) -> Result<Next>) -> Result<()> {
    let socket = open(libc::NETLINK_ROUTE).context("opening a NETLINK_ROUTE socket")?;
    let is_strict: libc::c_int = 1;
    // SAFETY: the pointer and length describe one live integer.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            NETLINK_GET_STRICT_CHK,
            (&raw const is_strict).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(std::io::Error::last_os_error()).context("asking the kernel to look at what is wanted");
    }
    dump(socket, &message(kind, NLM_F_DUMP, body), each)
}

fn dump(mut socket: File, request: &[u8], mut each: impl FnMut(&[u8]) -> Result<Next>) -> Result<()> {
    socket.write_all(request).context("asking the kernel for a dump")?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = receive(&mut socket, &mut buffer)?;
        if let Next::Stop = each(&buffer[..length])? {
            return Ok(());
        }
    }
}

/// Asks for something that is told in one datagram, in the netns this thread is in.
pub fn ask_here(kind: u16, family: u8) -> Result<Vec<u8>> {
    let mut socket = open(libc::NETLINK_NETFILTER).context("opening a NETLINK_NETFILTER socket")?;
    socket.write_all(&request(kind, 0, family, &[])).context("asking the kernel")?;
    let mut buffer = vec![0; BUFFER];
    let length = receive(&mut socket, &mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// The next datagram; its length.
fn receive(socket: &mut File, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match socket.read(buffer) {
            Ok(0) => bail!("the kernel closed the dump"),
            Ok(length) => return Ok(length),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("the kernel stopped answering"),
            Err(error) => return Err(error).context("reading the kernel's answer"),
        }
    }
}

/// The kernel refused a request with this error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub i32);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = std::io::Error::from_raw_os_error(self.0);
        let remedy = match self.0 {
            libc::EPERM | libc::EACCES => {
                let standing = Standing::look(&Roots::default());
                format!(" (this needs CAP_NET_ADMIN: {})", standing.how_to_list_here())
            }
            libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT => {
                " (the kernel has no ctnetlink: `modprobe nf_conntrack_netlink`)".to_owned()
            }
            _ => String::new(),
        };
        write!(f, "the kernel refused: {error}{remedy}")
    }
}

impl std::error::Error for Refusal {}

/// What the body of an error message says.
pub fn refusal(body: &[u8]) -> Refusal {
    let code = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    Refusal(code.saturating_neg())
}

fn request(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    // struct nfgenmsg
    message(kind, flags, &[&[family, 0, 0, 0], attributes].concat())
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = (16 + body.len() as u32).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend([0; 8]);
    out.extend(body);
    out
}

/// A socket of the netns this thread is in.
fn open(protocol: libc::c_int) -> std::io::Result<File> {
    // SAFETY: socket(2) takes plain numbers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
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

/// Type and body of each message of a datagram.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes of a message's body, type and value.
#[inline]
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    Attributes(bytes)
}

/// Attributes: type and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}
