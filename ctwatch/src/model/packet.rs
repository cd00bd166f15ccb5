//! A packet as a probe saw it, and the conntrack entry it was about.
//! What was not seen is `None`; nothing here is a guess, and nothing is allocated: it is made for every event.

use std::fmt;
use std::net::IpAddr;

use ctwatch_common::event::{hook, zone};

use super::{NetnsId, Protocol};
use crate::foreign::Foreign;

/// A name as the kernel keeps it: of a process (TASK_COMM_LEN) or a device (IFNAMSIZ), at most 15 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name([u8; 16]);

impl Name {
    /// From the kernel's bytes, padded with NULs; `None` if there is no name in them.
    #[must_use]
    pub const fn from_kernel(bytes: [u8; 16]) -> Option<Self> {
        if bytes[0] == 0 { None } else { Some(Self(bytes)) }
    }

    /// From bytes padded with NULs.
    #[must_use]
    pub const fn from_padded(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The first 15 bytes of a name.
    #[must_use]
    pub fn new(name: &[u8]) -> Self {
        let mut bytes = [0; 16];
        for (byte, of) in bytes[..15].iter_mut().zip(name) {
            *byte = *of;
        }
        Self(bytes)
    }

    /// The bytes padded with NULs.
    #[must_use]
    pub const fn padded(self) -> [u8; 16] {
        self.0
    }

    /// The bytes of the name alone.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Its owner chose it.
impl From<Name> for Foreign {
    fn from(name: Name) -> Self {
        Self::from_bytes(name.bytes())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Foreign::from(*self), f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Foreign::from(*self), f)
    }
}

/// Where a packet met conntrack: netfilter's hooks (include/uapi/linux/netfilter.h), as `nft` spells them, and the ways that
/// lead there without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "most are named like their NF_INET_ constants")]
#[repr(u8)]
pub enum Hook {
    PreRouting = hook::PRE_ROUTING,
    LocalIn = hook::LOCAL_IN,
    Forward = hook::FORWARD,
    LocalOut = hook::LOCAL_OUT,
    PostRouting = hook::POST_ROUTING,
    /// The action `ct` of Open vSwitch.
    OpenVSwitch = hook::OPENVSWITCH,
    /// The action `ct` of tc, on a packet that came in.
    TcIngress = hook::TC_INGRESS,
    /// The same on one that goes out.
    TcEgress = hook::TC_EGRESS,
    /// A bridge that tracks connections: what comes in by one of its ports.
    Bridge = hook::BRIDGE,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::PreRouting,
        Self::LocalIn,
        Self::Forward,
        Self::LocalOut,
        Self::PostRouting,
        Self::OpenVSwitch,
        Self::TcIngress,
        Self::TcEgress,
        Self::Bridge,
    ];

    /// The hook with this number, the kernel's own as far as it has one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| *hook as u8 == number)
    }

    /// The spelling in JSON: as `nft` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreRouting => "prerouting",
            Self::LocalIn => "input",
            Self::Forward => "forward",
            Self::LocalOut => "output",
            Self::PostRouting => "postrouting",
            Self::OpenVSwitch => "openvswitch",
            Self::TcIngress => "tc_ingress",
            Self::TcEgress => "tc_egress",
            Self::Bridge => "bridge",
        }
    }

    /// Whether the packet came from outside and was going to this host.
    #[must_use]
    pub const fn is_inbound(self) -> bool {
        matches!(self, Self::PreRouting | Self::LocalIn | Self::TcIngress)
    }
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, or the id of an ICMP query.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// The conntrack zone an entry is in, in each direction: 0 where it has none of its own. Equal tuples of two zones are two
/// entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone {
    original: u16,
    reply: u16,
}

impl Zone {
    /// Where entries are that no rule puts elsewhere.
    pub const DEFAULT: Self = Self { original: 0, reply: 0 };

    /// From a struct nf_conntrack_zone (include/net/netfilter/nf_conntrack_zones.h): its id, and the bits of the directions
    /// it holds in. `None` if there is none.
    #[must_use]
    pub const fn from_kernel(id: u16, directions: u8) -> Option<Self> {
        Some(match directions {
            zone::ORIGINAL => Self { original: id, reply: 0 },
            zone::REPLY => Self { original: 0, reply: id },
            zone::BOTH => Self { original: id, reply: id },
            _ => return None,
        })
    }

    /// The zone of either direction; `None` if they are two, which no kernel has.
    #[must_use]
    pub const fn new(original: u16, reply: u16) -> Option<Self> {
        if original == reply || original == 0 || reply == 0 { Some(Self { original, reply }) } else { None }
    }

    /// In one number that isn't 0.
    #[must_use]
    pub const fn packed(self) -> u32 {
        let Self { original, reply } = self;
        let (id, directions) = if original == reply {
            (original, zone::BOTH)
        } else if reply == 0 {
            (original, zone::ORIGINAL)
        } else {
            (reply, zone::REPLY)
        };
        (directions as u32) << 16 | id as u32
    }

    /// The zone that was packed.
    #[must_use]
    pub const fn from_packed(number: u32) -> Option<Self> {
        if number >> 24 != 0 { None } else { Self::from_kernel(number as u16, (number >> 16) as u8) }
    }

    /// That of the original direction.
    #[must_use]
    pub const fn original(self) -> u16 {
        self.original
    }

    /// That of the reply direction.
    #[must_use]
    pub const fn reply(self) -> u16 {
        self.reply
    }

    /// Words that follow a flow: none for the default zone, and of one that holds in one direction only, in which.
    #[must_use]
    pub fn suffix(self) -> String {
        match (self.original, self.reply) {
            (0, 0) => String::new(),
            (original, 0) => format!(" zone {original} (original only)"),
            (0, reply) => format!(" zone {reply} (reply only)"),
            (original, _) => format!(" zone {original}"),
        }
    }
}

/// A flow by its original direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its protocol.
    pub proto: Protocol,
    /// Its original direction; of ICMP the destination port is `type << 8 | code`, and 0 if these are unknown.
    pub tuple: Tuple,
}

impl Flow {
    /// ICMP type and code, as far as they are known: type 0 is an answer, and begins no flow.
    #[must_use]
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let [kind, code] = self.tuple.dport.to_be_bytes();
        (self.proto.is_icmp() && kind != 0).then_some((kind, code))
    }
}

/// The device a packet was seen at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: Option<Name>,
    /// Its index; 0 if unknown.
    pub ifindex: u32,
    /// The packet goes out of it; else it came in by it.
    pub is_output: bool,
}

/// A packet as conntrack saw it, before NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// Where it was.
    pub netns: NetnsId,
    /// Its protocol.
    pub proto: Option<Protocol>,
    /// Its addresses and ports.
    pub tuple: Option<Tuple>,
    /// ICMP type and code; both 0 for other protocols.
    pub icmp: [u8; 2],
    /// It travelled over the loopback device; means nothing without a tuple.
    pub is_loopback: bool,
    /// The hook it had got to.
    pub hook: Option<Hook>,
    /// The device.
    pub device: Device,
    /// Entries in the netns's table at that instant.
    pub count: Option<u32>,
    /// nf_conntrack_max at that instant.
    pub max: Option<u32>,
    /// Its length, bytes; 0 if unknown.
    pub length: u32,
    /// The zone of its entry, of the one it was to get, or of the entry that was lost.
    pub zone: Option<Zone>,
}

impl Packet {
    /// The service port: the destination port of the original direction; of ICMP `type << 8 | code`.
    #[must_use]
    pub fn service_port(&self) -> Option<u16> {
        let tuple = self.tuple?;
        Some(if self.is_icmp() { u16::from_be_bytes(self.icmp) } else { tuple.dport })
    }

    /// Whether it has a type, a code and an id instead of ports.
    #[must_use]
    pub fn is_icmp(&self) -> bool {
        self.proto.is_some_and(Protocol::is_icmp)
    }

    /// Whether it travelled over the loopback device, if that is known.
    #[must_use]
    pub fn loopback(&self) -> Option<bool> {
        self.tuple.map(|_| self.is_loopback)
    }

    /// Its flow, if it was the first packet of one.
    #[must_use]
    pub fn flow(&self) -> Option<Flow> {
        let tuple = Tuple { dport: self.service_port()?, ..self.tuple? };
        Some(Flow { proto: self.proto?, tuple })
    }
}

/// The entry a loss is about: the victim of an eviction, or the entry that was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// Its reply direction.
    pub reply: Option<Tuple>,
    /// nf_conn.status, see the methods.
    pub status: u32,
    /// enum tcp_conntrack; `None` if there is none or the kernel doesn't tell.
    pub tcp_state: Option<u8>,
    /// Jiffies until it would have timed out; until it is confirmed, its timeout.
    pub left_jiffies: i32,
}

/// Bits of nf_conn.status (enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h).
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;

impl EntryState {
    /// The other side answered.
    #[must_use]
    pub const fn seen_reply(&self) -> bool {
        self.status & SEEN_REPLY != 0
    }

    /// Both sides talk.
    #[must_use]
    pub const fn is_assured(&self) -> bool {
        self.status & ASSURED != 0
    }

    /// It is in the table.
    #[must_use]
    pub const fn is_confirmed(&self) -> bool {
        self.status & CONFIRMED != 0
    }
}

/// The process that sent a packet, where the kernel knows it for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sender {
    /// Id of its cgroup (v2), 0 if unknown.
    pub cgroup: u64,
    /// Its thread group id in the host's pid namespace.
    pub pid: u32,
    /// Its name.
    pub name: Name,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_zone_survives_packing(id: u16, directions in 1..=3u8) {
            let zone = Zone::from_kernel(id, directions).expect("a zone");
            prop_assert_ne!(zone.packed(), 0);
            prop_assert_eq!(Zone::from_packed(zone.packed()), Some(zone));
            prop_assert_eq!(Zone::new(zone.original(), zone.reply()), Some(zone));
        }
    }

    #[test]
    fn what_is_no_zone_is_none() {
        assert_eq!(Zone::from_packed(0), None);
        assert_eq!(Zone::from_packed(1 << 24 | 1 << 16), None);
        assert_eq!(Zone::from_kernel(7, 0), None);
        assert_eq!(Zone::new(1, 2), None);
    }
}
