//! What losses are grouped by: a loss as far as it is known ([`Seen`]), and its projection to one row ([`Key`]).
//! On the path of every event: no allocation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ctwatch_common::Cause;
use ctwatch_common::event::{self, LossEvent, flag};
use ctwatch_common::slot::{KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};

use super::settings::By;
use crate::model::{NetnsId, ProcessId, Protocol, Role};

/// A loss, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
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
}

impl Fields {
    pub fn loopback(&self) -> bool {
        self.flags & LOOPBACK != 0
    }

    /// The row of losses whose port (or whatever else the row needs) is unknown.
    pub fn unattributed(&self) -> bool {
        self.flags & UNATTRIBUTED != 0
    }

    /// The process of a row by process; `None` if it is unknown.
    pub fn process(&self) -> Option<ProcessId> {
        let role = match self.dst[4] {
            SENDER => Role::Sender,
            LISTENER => Role::Listener,
            _ => return None,
        };
        let [a, b, c, d, ..] = self.dst;
        Some(ProcessId { pid: u32::from_be_bytes([a, b, c, d]), name: self.src, role })
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
        Key([ids, u64::from(kinds), src_high, src_low, dst_high, dst_low])
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
        }
    }

    pub fn cause(&self) -> u8 {
        (self.0[1] >> 8) as u8
    }

    pub fn unattributed(&self) -> bool {
        self.0[1] as u8 & UNATTRIBUTED != 0
    }
}

impl Seen {
    pub fn from_slot(key: SlotKey) -> Option<Self> {
        let cause = Cause::from_number(key.kind & !(KIND_LOOPBACK | KIND_UNATTRIBUTED))?;
        let attributed = key.kind & KIND_UNATTRIBUTED == 0;
        let facts = Facts {
            netns: NetnsId(key.netns),
            proto: (attributed || key.proto != 0).then_some(Protocol(key.proto)),
            port: attributed.then_some(key.port),
            loopback: attributed.then_some(key.kind & KIND_LOOPBACK != 0),
        };
        Some(Self { cause, facts })
    }

    pub fn from_event(event: &LossEvent) -> Option<Self> {
        Some(Self { cause: Cause::from_number(event.kind)?, facts: Facts::from_event(event) })
    }

    /// Whether a row by `by` needs nothing that is unknown of this loss.
    pub fn suffices_for(&self, by: By) -> bool {
        match by {
            By::Cause | By::Netns | By::Process | By::Container => true,
            By::Proto => self.facts.proto.is_some(),
            By::Port | By::Flow | By::Src | By::Dst => self.facts.port.is_some(),
        }
    }

    /// The row this loss belongs to. `tuple` is only looked at for rows that show addresses.
    pub fn key(&self, by: By, tuple: Option<&LossEvent>) -> Key {
        let mut fields = Fields { cause: self.cause as u8, ..Fields::default() };
        if !matches!(by, By::Proto | By::Cause) {
            fields.netns = self.facts.netns.0;
        }
        if matches!(by, By::Port | By::Flow | By::Proto) {
            fields.proto = self.facts.proto.map_or(0, |proto| proto.0);
        }
        if matches!(by, By::Port | By::Flow) {
            fields.port = self.facts.port.unwrap_or(0);
            fields.flags |= if self.facts.loopback == Some(true) { LOOPBACK } else { 0 };
        }
        if let Some(event) = tuple {
            if matches!(by, By::Src | By::Flow) {
                (fields.src, fields.family) = (event.src, event.family);
            }
            if matches!(by, By::Dst | By::Flow) {
                (fields.dst, fields.family) = (event.dst, event.family);
            }
            if by == By::Flow {
                fields.sport = event.sport;
            }
        }
        fields.pack()
    }

    /// The row of a process; of losses whose process is unknown for `None`.
    pub fn process_key(&self, process: Option<&ProcessId>) -> Key {
        let mut fields = Fields { netns: self.facts.netns.0, cause: self.cause as u8, ..Fields::default() };
        if let Some(ProcessId { pid, name, role }) = process {
            fields.src = *name;
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
        let mut fields = Fields { netns: self.facts.netns.0, cause: self.cause as u8, ..Fields::default() };
        fields.dst[..4].copy_from_slice(&number.to_be_bytes());
        fields.pack()
    }

    /// The row for losses like this one of which too little is known for a row of their own.
    pub fn unattributed_key(&self) -> Key {
        let proto = self.facts.proto.map_or(0, |proto| proto.0);
        Fields {
            netns: self.facts.netns.0,
            proto,
            cause: self.cause as u8,
            flags: UNATTRIBUTED,
            ..Fields::default()
        }
        .pack()
    }
}

impl Facts {
    pub fn from_event(event: &LossEvent) -> Self {
        let attributed = event.flags & flag::TUPLE != 0;
        let proto = Protocol(event.proto);
        let port = if proto.is_icmp() { u16::from_be_bytes(event.icmp) } else { event.dport };
        Self {
            netns: NetnsId(event.netns),
            proto: (attributed || event.proto != 0).then_some(proto),
            port: attributed.then_some(port),
            loopback: attributed.then_some(event.flags & flag::LOOPBACK != 0),
        }
    }
}

/// An address as it travels in an event.
pub(super) fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        event::IPV4 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        event::IPV6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// Both addresses of an event.
pub(super) fn addresses(event: &LossEvent) -> Option<(IpAddr, IpAddr)> {
    if event.flags & flag::TUPLE == 0 {
        return None;
    }
    Some((address(event.family, event.src)?, address(event.family, event.dst)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process_and_a_container_survive_packing() {
        let facts = Facts { netns: NetnsId(7), proto: None, port: None, loopback: None };
        let seen = Seen { cause: Cause::TableFull, facts };
        for role in [Role::Sender, Role::Listener] {
            let process = ProcessId { pid: u32::MAX - 1, name: *b"a-name-that-is-\0", role };
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
            (src, dst) in any::<([u8; 16], [u8; 16])>(),
        ) {
            let fields = Fields { netns, port, sport, proto, family, cause, flags, src, dst };
            let key = fields.pack();
            prop_assert_eq!(key.fields(), fields);
            prop_assert_eq!(key.cause(), cause);
            prop_assert_eq!(key.unattributed(), fields.unattributed());
        }
    }
}
