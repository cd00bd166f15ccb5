//! ctnetlink's answers, attribute by attribute: what a census needs of an entry, and nothing else.
//! No allocation and no panic, whatever the bytes say.

use crate::kernel::netlink;
use crate::model::{Address, EntryFields, Protocol, TableEntry};

// include/uapi/linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// struct nlmsghdr
const HEADER: usize = 16;
/// struct nfgenmsg
const GENERIC: usize = 4;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
const CT_NEW: u16 = 1 << 8;

// enum ctattr_type and friends, include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TIMESTAMP: u16 = 20;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_SCTP: u16 = 3;
const CTA_PROTOINFO_SCTP_STATE: u16 = 1;
const CTA_TIMESTAMP_START: u16 = 1;

/// enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;
const IPS_OFFLOAD: u32 = 1 << 14;

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An entry.
    Entry(TableEntry),
    /// The dump is complete, or ended with this error number (0: none).
    Done(i32),
    /// The kernel refused with this error number (0: an acknowledgement).
    Error(i32),
    /// Answers were lost.
    Overrun,
    /// Something else, or an entry without a tuple.
    Other,
}

/// The messages of one datagram.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    bytes: &'a [u8],
    wanted: EntryFields,
    /// The kernel said that the table changed so that the dump may be inconsistent.
    pub interrupted: bool,
}

impl<'a> Messages<'a> {
    /// Reads them from what one recv() gave.
    #[must_use]
    pub const fn new(bytes: &'a [u8], wanted: EntryFields) -> Self {
        Self { bytes, wanted, interrupted: false }
    }
}

impl Iterator for Messages<'_> {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let length = u32_at(self.bytes, 0)? as usize;
        let kind = u16_at(self.bytes, 4)?;
        let flags = u16_at(self.bytes, 6)?;
        let message = self.bytes.get(..length).filter(|message| message.len() >= HEADER);
        let Some(message) = message else {
            self.bytes = &[];
            return None;
        };
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        self.interrupted |= flags & NLM_F_DUMP_INTR != 0;
        let body = &message[HEADER..];
        let error = || u32_at(body, 0).map_or(0, |code| (code as i32).saturating_neg());
        Some(match kind {
            NLMSG_DONE => Message::Done(error()),
            NLMSG_ERROR => Message::Error(error()),
            NLMSG_OVERRUN => Message::Overrun,
            CT_NEW => body
                .get(GENERIC..)
                .and_then(|attributes| entry(attributes, self.wanted))
                .map_or(Message::Other, Message::Entry),
            _ => Message::Other,
        })
    }
}

fn entry(attributes: &[u8], wanted: EntryFields) -> Option<TableEntry> {
    let mut entry = TableEntry::default();
    let mut has_tuple = false;
    for (kind, value) in netlink::attributes(attributes) {
        match kind {
            CTA_TUPLE_ORIG => {
                has_tuple = tuple(value, &mut entry, wanted.addresses);
                entry.tuple = hash(value);
                if wanted.addresses {
                    (entry.src, entry.dst) = addresses(value);
                }
                if wanted.marks {
                    zone_of_tuple(value, &mut entry);
                }
            }
            CTA_TUPLE_REPLY if wanted.addresses || wanted.marks => {
                if wanted.addresses {
                    entry.reply_src = addresses(value).0;
                }
                if wanted.marks {
                    zone_of_tuple(value, &mut entry);
                }
            }
            CTA_STATUS => {
                let status = be32(value)?;
                entry.assured = status & IPS_ASSURED != 0;
                entry.seen_reply = status & IPS_SEEN_REPLY != 0;
                entry.unevictable = status & (IPS_ASSURED | IPS_OFFLOAD) != 0;
            }
            CTA_TIMEOUT => entry.left = be32(value)?,
            CTA_ID => entry.id = be32(value)?,
            CTA_PROTOINFO => (entry.tcp_state, entry.sctp_state) = states(value),
            CTA_TIMESTAMP => entry.started_ns = started(value).unwrap_or(0),
            CTA_MARK if wanted.marks => entry.mark = be32(value)?,
            // Both directions are in it; a direction of its own has it in its tuple.
            CTA_ZONE if wanted.marks => entry.zone = be16(value)?,
            _ => {}
        }
    }
    has_tuple.then_some(entry)
}

/// Source and destination of a tuple.
fn addresses(tuple: &[u8]) -> (Address, Address) {
    let mut found = (Address::default(), Address::default());
    let Some((_, ip)) = netlink::attributes(tuple).find(|(kind, _)| *kind == CTA_TUPLE_IP) else {
        return found;
    };
    for (kind, value) in netlink::attributes(ip) {
        match kind {
            CTA_IP_V4_SRC => found.0 = v4(value),
            CTA_IP_V4_DST => found.1 = v4(value),
            CTA_IP_V6_SRC => found.0 = v6(value),
            CTA_IP_V6_DST => found.1 = v6(value),
            _ => {}
        }
    }
    found
}

fn v4(value: &[u8]) -> Address {
    be32(value).map_or_else(Address::default, |bits| Address(0xFFFF_0000_0000 | u128::from(bits)))
}

fn v6(value: &[u8]) -> Address {
    let bytes = value.get(..16).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or_else(Address::default, |bytes| Address(u128::from_be_bytes(bytes)))
}

fn zone_of_tuple(tuple: &[u8], entry: &mut TableEntry) {
    if let Some((_, value)) = netlink::attributes(tuple).find(|(kind, _)| *kind == CTA_TUPLE_ZONE) {
        entry.zone = be16(value).unwrap_or(0);
    }
}

fn started(value: &[u8]) -> Option<u64> {
    let (_, start) = netlink::attributes(value).find(|(kind, _)| *kind == CTA_TIMESTAMP_START)?;
    Some(u64::from_be_bytes(start.get(..8)?.try_into().ok()?))
}

/// Multiply and rotate, eight bytes at a time: enough against chance, and nobody attacks it.
fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let words = bytes.chunks_exact(8);
    let rest = words.remainder().iter().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
    let hash = words.fold(0, |hash, word| mix(hash, word.try_into().map_or(0, u64::from_ne_bytes)));
    mix(hash, rest)
}

/// Protocol, service port and, if it is wanted, source port; false without a protocol.
fn tuple(value: &[u8], entry: &mut TableEntry, wants_source: bool) -> bool {
    let Some(proto) = netlink::attributes(value).find(|(kind, _)| *kind == CTA_TUPLE_PROTO) else {
        return false;
    };
    let mut has_number = false;
    for (kind, value) in netlink::attributes(proto.1) {
        let Some(first) = value.first().copied() else { continue };
        match kind {
            CTA_PROTO_NUM => {
                entry.proto = Protocol(first);
                has_number = true;
            }
            CTA_PROTO_SRC_PORT if wants_source => entry.sport = be16(value).unwrap_or(0),
            CTA_PROTO_DST_PORT => {
                entry.port = value.get(1).map_or(0, |second| u16::from_be_bytes([first, *second]));
            }
            CTA_PROTO_ICMP_TYPE | CTA_PROTO_ICMPV6_TYPE => entry.port |= u16::from(first) << 8,
            CTA_PROTO_ICMP_CODE | CTA_PROTO_ICMPV6_CODE => entry.port |= u16::from(first),
            _ => {}
        }
    }
    has_number
}

/// States of TCP and of SCTP: an entry has one at most.
fn states(value: &[u8]) -> (u8, u8) {
    let (mut tcp, mut sctp) = (0, 0);
    for (kind, value) in netlink::attributes(value) {
        let state = |wanted| {
            let (_, state) = netlink::attributes(value).find(|(kind, _)| *kind == wanted)?;
            state.first().copied()
        };
        match kind {
            CTA_PROTOINFO_TCP => tcp = state(CTA_PROTOINFO_TCP_STATE).unwrap_or(0),
            CTA_PROTOINFO_SCTP => sctp = state(CTA_PROTOINFO_SCTP_STATE).unwrap_or(0),
            _ => {}
        }
    }
    (tcp, sctp)
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[inline]
fn be16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?))
}

#[inline]
fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
pub(in crate::conntrack) mod tests {
    use std::net::IpAddr;

    use super::*;
    use proptest::prelude::*;

    pub(in crate::conntrack) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    const NESTED: u16 = 0x8000;

    pub(in crate::conntrack) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let mut out = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend([0; 8]);
        out.extend(body);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    pub(in super::super) fn tcp(id: u32, port: u16, state: u8, left: u32, status: u32) -> Vec<u8> {
        let proto = [
            attribute(CTA_PROTO_NUM, &[6]),
            attribute(2, &42_901_u16.to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes()),
        ]
        .concat();
        let ip = [attribute(1, &[127, 0, 0, 1]), attribute(2, &[127, 0, 0, 1])].concat();
        let tuple = [attribute(1 | NESTED, &ip), attribute(CTA_TUPLE_PROTO | NESTED, &proto)].concat();
        let info = attribute(CTA_PROTOINFO_TCP | NESTED, &attribute(CTA_PROTOINFO_TCP_STATE, &[state]));
        let body = [
            vec![2, 0, 0, 0],
            attribute(CTA_TUPLE_ORIG | NESTED, &tuple),
            attribute(2 | NESTED, &tuple),
            attribute(CTA_STATUS, &status.to_be_bytes()),
            attribute(CTA_TIMEOUT, &left.to_be_bytes()),
            attribute(CTA_PROTOINFO | NESTED, &info),
            attribute(CTA_ID, &id.to_be_bytes()),
        ]
        .concat();
        message(CT_NEW, 2, &body)
    }

    #[test]
    fn an_entry_is_read_whatever_stands_around_it() {
        let bytes =
            [message(99, 0, b"what"), tcp(5, 6379, 7, 118, 0xE), message(NLMSG_DONE, 2, &[0; 4])].concat();
        let messages: Vec<_> = Messages::new(&bytes, EntryFields::default()).collect();
        let Message::Entry(entry) = messages[1] else { panic!("{messages:?}") };
        let expected = TableEntry {
            id: 5,
            tuple: entry.tuple,
            proto: Protocol::TCP,
            port: 6379,
            assured: true,
            unevictable: true,
            seen_reply: true,
            tcp_state: 7,
            left: 118,
            ..TableEntry::default()
        };
        assert_eq!(entry, expected);
        assert_eq!((messages[0], messages[2], messages.len()), (Message::Other, Message::Done(0), 3));
    }

    #[test]
    fn addresses_mark_zone_and_age_are_read_when_they_are_wanted() {
        let tuple = |src: [u8; 4], dst: [u8; 4], zone: Option<u16>| {
            let ip = [attribute(CTA_IP_V4_SRC, &src), attribute(CTA_IP_V4_DST, &dst)].concat();
            let zone = zone.map(|zone| attribute(CTA_TUPLE_ZONE, &zone.to_be_bytes())).unwrap_or_default();
            let proto = attribute(CTA_TUPLE_PROTO | NESTED, &attribute(CTA_PROTO_NUM, &[17]));
            [attribute(CTA_TUPLE_IP | NESTED, &ip), proto, zone].concat()
        };
        let sctp = attribute(CTA_PROTOINFO_SCTP, &attribute(CTA_PROTOINFO_SCTP_STATE, &[4]));
        let body = [
            vec![2, 0, 0, 0],
            attribute(CTA_TUPLE_ORIG | NESTED, &tuple([10, 0, 0, 1], [10, 0, 0, 2], None)),
            attribute(CTA_TUPLE_REPLY | NESTED, &tuple([10, 0, 0, 3], [10, 0, 0, 1], Some(7))),
            attribute(CTA_MARK, &0x10_u32.to_be_bytes()),
            attribute(CTA_TIMESTAMP | NESTED, &attribute(CTA_TIMESTAMP_START, &5_u64.to_be_bytes())),
            attribute(CTA_PROTOINFO | NESTED, &sctp),
        ]
        .concat();
        let bytes = message(CT_NEW, 2, &body);
        let read = |wanted| match Messages::new(&bytes, wanted).next() {
            Some(Message::Entry(entry)) => entry,
            other => panic!("{other:?}"),
        };
        let all = read(EntryFields { addresses: true, marks: true });
        let shown = [all.src, all.dst, all.reply_src].map(|address| IpAddr::from(address).to_string());
        assert_eq!(shown, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!((all.mark, all.zone, all.started_ns, all.sctp_state, all.tcp_state), (16, 7, 5, 4, 0));
        let none = read(EntryFields::default());
        assert_eq!((none.src, none.reply_src, none.mark, none.zone), Default::default());
        assert_eq!(none.started_ns, 5);
    }

    #[test]
    fn icmp_is_known_by_type_and_code_as_in_the_counters() {
        let proto = [
            attribute(CTA_PROTO_NUM, &[58]),
            attribute(7, &[0, 9]),
            attribute(CTA_PROTO_ICMPV6_TYPE, &[128]),
            attribute(CTA_PROTO_ICMPV6_CODE, &[3]),
        ]
        .concat();
        let body =
            [vec![10, 0, 0, 0], attribute(CTA_TUPLE_ORIG, &attribute(CTA_TUPLE_PROTO, &proto))].concat();
        let bytes = message(CT_NEW, 2, &body);
        let Some(Message::Entry(entry)) = Messages::new(&bytes, EntryFields::default()).next() else {
            panic!("no entry")
        };
        assert_eq!((entry.proto, entry.port), (Protocol::ICMPV6, 128 << 8 | 3));
    }

    #[test]
    fn a_refusal_and_an_interrupted_dump_are_told() {
        let bytes = message(NLMSG_ERROR, 0, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(Messages::new(&bytes, EntryFields::default()).next(), Some(Message::Error(libc::EPERM)));
        let bytes = message(NLMSG_DONE, NLM_F_DUMP_INTR, &[0; 4]);
        let mut messages = Messages::new(&bytes, EntryFields::default());
        assert_eq!(messages.next(), Some(Message::Done(0)));
        assert!(messages.interrupted);
    }

    proptest! {
        #[test]
        fn garbage_is_read_to_its_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let all = EntryFields { addresses: true, marks: true };
            prop_assert!(Messages::new(&bytes, all).count() <= bytes.len() / HEADER + 1);
        }

        #[test]
        fn a_damaged_entry_panics_nowhere(at in 0..150usize, byte: u8, cut in 0..200usize) {
            let mut bytes = [tcp(1, 80, 3, 9, 0), tcp(2, 81, 3, 9, 0)].concat();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len().saturating_sub(cut));
            let all = EntryFields { addresses: true, marks: true };
            prop_assert!(Messages::new(&bytes, all).count() < 20);
        }
    }
}
