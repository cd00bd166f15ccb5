//! What losses are grouped by: a loss as far as it is known ([`ClassifiedLoss`]), and its projection to one row ([`Key`]).
//! On the path of every event: no allocation.

use std::net::IpAddr;

use ctwatch_common::Cause;
use ctwatch_common::slot::{SlotKey, SlotKind};

use super::by::By;
use crate::model::{Loss, Name, NetnsId, Packet, ProcessId, Protocol, Role, Tuple, Zone};

/// A loss, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClassifiedLoss {
    pub cause: Cause,
    pub facts: Facts,
}

/// What is known of a packet apart from its addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub netns: NetnsId,
    /// `None` when the tuple was missed.
    pub proto: Option<Protocol>,
    /// The service port, or ICMP's `type << 8 | code`.
    pub port: Option<u16>,
    pub loopback: Option<bool>,
    /// Of the entry; rows by flow alone tell it.
    pub zone: Option<Zone>,
}

/// What one row stands for: only what `--by` asks for is in it, the rest is zero.
///
/// Packed into words because it is hashed for every event, and hashing six words at once is cheaper than ten fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key([u64; 6]);

const LOOPBACK: u8 = 1;
const UNATTRIBUTED: u8 = 2;

/// In rows by process, where other rows have the fifth byte of an address.
const SENDER: u8 = 1;
const LISTENER: u8 = 2;

/// The fields of a [`Key`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub netns: u32,
    pub port: u16,
    pub sport: u16,
    pub proto: u8,
    pub family: u8,
    pub cause: u8,
    flags: u8,
    pub src: [u8; 16],
    pub dst: [u8; 16],
    /// [`Zone::packed`]; 0 if it is unknown.
    pub zone: u32,
}

impl Fields {
    pub fn loopback(&self) -> bool {
        self.flags & LOOPBACK != 0
    }

    /// The row of losses whose port (or whatever else the row needs) is unknown.
    pub fn unattributed(&self) -> bool {
        self.flags & UNATTRIBUTED != 0
    }

    /// The addresses that the row has: source, destination.
    pub fn addresses(&self) -> (Option<IpAddr>, Option<IpAddr>) {
        let address = |bytes: [u8; 16]| {
            let [a, b, c, d, ..] = bytes;
            match self.family {
                IPV4 => Some(IpAddr::from([a, b, c, d])),
                IPV6 => Some(IpAddr::from(bytes)),
                _ => None,
            }
        };
        (address(self.src), address(self.dst))
    }

    /// The process of a row by process; `None` if it is unknown.
    pub fn process(&self) -> Option<ProcessId> {
        let role = match self.dst[4] {
            SENDER => Role::Sender,
            LISTENER => Role::Listener,
            _ => return None,
        };
        let [a, b, c, d, ..] = self.dst;
        Some(ProcessId { pid: u32::from_be_bytes([a, b, c, d]), name: Name::from_padded(self.src), role })
    }

    /// The zone of a row by flow, if it is known.
    pub fn zone(&self) -> Option<Zone> {
        Zone::from_packed(self.zone)
    }

    /// The number of a row's container; 0 if it is unknown.
    pub fn container(&self) -> u32 {
        let [a, b, c, d, ..] = self.dst;
        u32::from_be_bytes([a, b, c, d])
    }

    fn pack(&self) -> Key {
        let halves = |bytes: [u8; 16]| {
            let value = u128::from_be_bytes(bytes);
            [(value >> 64) as u64, value as u64]
        };
        let [src_high, src_low] = halves(self.src);
        let [dst_high, dst_low] = halves(self.dst);
        let ids = u64::from(self.netns) << 32 | u64::from(self.port) << 16 | u64::from(self.sport);
        let kinds = u32::from_be_bytes([self.proto, self.family, self.cause, self.flags]);
        Key([ids, u64::from(self.zone) << 32 | u64::from(kinds), src_high, src_low, dst_high, dst_low])
    }
}

impl Key {
    pub fn fields(&self) -> Fields {
        let [ids, kinds, src_high, src_low, dst_high, dst_low] = self.0;
        let [proto, family, cause, flags] = (kinds as u32).to_be_bytes();
        let bytes = |high: u64, low: u64| (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
        Fields {
            netns: (ids >> 32) as u32,
            port: (ids >> 16) as u16,
            sport: ids as u16,
            proto,
            family,
            cause,
            flags,
            src: bytes(src_high, src_low),
            dst: bytes(dst_high, dst_low),
            zone: (kinds >> 32) as u32,
        }
    }

    /// All of it, for hashing.
    pub const fn words(&self) -> &[u64; 6] {
        &self.0
    }

    pub fn cause(&self) -> u8 {
        (self.0[1] >> 8) as u8
    }

    pub fn unattributed(&self) -> bool {
        self.0[1] as u8 & UNATTRIBUTED != 0
    }
}

impl ClassifiedLoss {
    pub fn from_slot(key: SlotKey) -> Option<Self> {
        let SlotKind::Loss { cause, loopback, attributed } = key.decode()? else { return None };
        let facts = Facts {
            netns: NetnsId::from_packed(key.netns),
            proto: (attributed || key.proto != 0).then_some(Protocol(key.proto)),
            port: attributed.then_some(key.port),
            loopback: attributed.then_some(loopback),
            zone: None,
        };
        Some(Self { cause, facts })
    }

    pub fn from_loss(loss: &Loss) -> Self {
        Self { cause: loss.cause, facts: Facts::of(&loss.packet) }
    }

    /// Whether a row by `by` needs nothing that is unknown of this loss.
    pub fn has_fields_for(&self, by: By) -> bool {
        match by {
            By::Cause | By::Netns | By::Process | By::Container => true,
            By::Proto => self.facts.proto.is_some(),
            By::Port | By::Flow | By::Src | By::Dst => self.facts.port.is_some(),
        }
    }

    /// The row this loss belongs to. `tuple` is only looked at for rows that show addresses.
    pub fn key(&self, by: By, tuple: Option<&Tuple>) -> Key {
        let mut fields = Fields { cause: self.cause as u8, ..Fields::default() };
        if !matches!(by, By::Proto | By::Cause) {
            fields.netns = self.facts.netns.packed();
        }
        if matches!(by, By::Port | By::Flow | By::Proto) {
            fields.proto = self.facts.proto.map_or(0, |proto| proto.0);
        }
        if matches!(by, By::Port | By::Flow) {
            fields.port = self.facts.port.unwrap_or(0);
            fields.flags |= if self.facts.loopback == Some(true) { LOOPBACK } else { 0 };
        }
        if let Some(tuple) = tuple {
            if matches!(by, By::Src | By::Flow) {
                (fields.src, fields.family) = octets(tuple.src);
            }
            if matches!(by, By::Dst | By::Flow) {
                (fields.dst, fields.family) = octets(tuple.dst);
            }
            if by == By::Flow {
                fields.sport = tuple.sport;
                fields.zone = self.facts.zone.map_or(0, Zone::packed);
            }
        }
        fields.pack()
    }

    /// The row of a process; of losses whose process is unknown for `None`.
    pub fn process_key(&self, process: Option<&ProcessId>) -> Key {
        let mut fields =
            Fields { netns: self.facts.netns.packed(), cause: self.cause as u8, ..Fields::default() };
        if let Some(ProcessId { pid, name, role }) = process {
            fields.src = name.padded();
            fields.dst[..4].copy_from_slice(&pid.to_be_bytes());
            fields.dst[4] = match role {
                Role::Sender => SENDER,
                Role::Listener => LISTENER,
            };
        }
        fields.pack()
    }

    /// The row of a container by its number; of losses whose container is unknown for 0.
    pub fn container_key(&self, number: u32) -> Key {
        let mut fields =
            Fields { netns: self.facts.netns.packed(), cause: self.cause as u8, ..Fields::default() };
        fields.dst[..4].copy_from_slice(&number.to_be_bytes());
        fields.pack()
    }

    /// The row for losses like this one of which too little is known for a row of their own.
    pub fn unattributed_key(&self) -> Key {
        let proto = self.facts.proto.map_or(0, |proto| proto.0);
        Fields {
            netns: self.facts.netns.packed(),
            proto,
            cause: self.cause as u8,
            flags: UNATTRIBUTED,
            ..Fields::default()
        }
        .pack()
    }
}

impl Facts {
    pub fn of(packet: &Packet) -> Self {
        Self {
            netns: packet.netns,
            proto: packet.proto,
            port: packet.service_port(),
            loopback: packet.loopback(),
            zone: packet.zone,
        }
    }
}

const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// An address as a key holds it.
fn octets(address: IpAddr) -> ([u8; 16], u8) {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            (bytes, IPV4)
        }
        IpAddr::V6(address) => (address.octets(), IPV6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process_and_a_container_survive_packing() {
        let facts =
            Facts { netns: NetnsId::from_inode(7), proto: None, port: None, loopback: None, zone: None };
        let seen = ClassifiedLoss { cause: Cause::TableFull, facts };
        for role in [Role::Sender, Role::Listener] {
            let process = ProcessId { pid: u32::MAX - 1, name: Name::new(b"a-name-that-is-"), role };
            assert_eq!(seen.process_key(Some(&process)).fields().process(), Some(process));
        }
        assert_eq!(seen.process_key(None).fields().process(), None);
        assert_eq!(seen.container_key(70_000).fields().container(), 70_000);
        assert_eq!(seen.container_key(0).fields().container(), 0);
    }

    proptest! {
        #[test]
        fn a_key_keeps_every_field(
            (netns, port, sport) in any::<(u32, u16, u16)>(),
            (proto, family, cause, flags) in any::<(u8, u8, u8, u8)>(),
            (src, dst, zone) in any::<([u8; 16], [u8; 16], u32)>(),
        ) {
            let fields = Fields { netns, port, sport, proto, family, cause, flags, src, dst, zone };
            let key = fields.pack();
            prop_assert_eq!(key.fields(), fields);
            prop_assert_eq!(key.cause(), cause);
            prop_assert_eq!(key.unattributed(), fields.unattributed());
        }
    }
}
