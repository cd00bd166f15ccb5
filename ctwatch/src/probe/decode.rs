//! The door: a ring buffer record becomes what it says, in the host's own terms. Nothing behind it knows the layout.
//! Records of another length or kind belong to another object and are not guessed at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Buf;
use ctwatch_common::Cause;
use ctwatch_common::event::{
    EntryPart, IPV4, IPV6, KIND_NETNS_GONE, KIND_PUSHER, LossEvent, NO_TCP_STATE, OwnerPart, RECORD_SIZE,
    Record, flag,
};
use ctwatch_common::slot::KIND_FLOWS;

use crate::model::{
    Device, EntryState, FromKernel, Hook, KernelCounters, Name, NetnsId, Packet, Protocol, Sender, Tuple,
    Zone,
};

/// What a record says.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<FromKernel> {
    let Record { loss: event, entry, owner } = record(bytes)?;
    let zone = Zone::from_kernel(entry.zone, entry.zone_directions);
    let packet = |event: &LossEvent| Packet { zone, ..packet(event) };
    Some(match event.kind {
        KIND_NETNS_GONE => FromKernel::NetnsGone {
            netns: NetnsId::from_packed(event.netns),
            counters: last_counters(event.src, event.dst),
        },
        KIND_PUSHER => FromKernel::Pusher { at_ns: event.at, flow: packet(&event).flow() },
        KIND_FLOWS => FromKernel::Insert(packet(&event)),
        cause => FromKernel::Loss {
            cause: Cause::from_number(cause)?,
            packet: packet(&event),
            entry: has(&event, flag::ENTRY).then(|| entry_state(event.family, &entry)),
            sender: has(&event, flag::OWNER).then(|| sender(&owner)),
        },
    })
}

const fn has(event: &LossEvent, bit: u8) -> bool {
    event.flags & bit != 0
}

fn packet(event: &LossEvent) -> Packet {
    let tuple = has(event, flag::TUPLE)
        .then(|| tuple(event.family, (event.src, event.sport), (event.dst, event.dport)))
        .flatten();
    Packet {
        at_ns: event.at,
        netns: NetnsId::from_packed(event.netns),
        proto: (tuple.is_some() || event.proto != 0).then_some(Protocol(event.proto)),
        tuple,
        icmp: event.icmp,
        is_loopback: has(event, flag::LOOPBACK),
        hook: Hook::from_number(event.hook),
        device: Device {
            name: Name::from_kernel(event.device),
            ifindex: event.ifindex,
            is_output: has(event, flag::OUT),
        },
        count: has(event, flag::COUNT).then_some(event.count),
        max: has(event, flag::MAX).then_some(event.max),
        length: event.length,
        zone: None,
    }
}

fn tuple(family: u8, (src, sport): ([u8; 16], u16), (dst, dport): ([u8; 16], u16)) -> Option<Tuple> {
    Some(Tuple { src: address(family, src)?, dst: address(family, dst)?, sport, dport })
}

/// IPv4 is in the first four bytes.
fn address(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    let [a, b, c, d, ..] = bytes;
    match family {
        IPV4 => Some(Ipv4Addr::new(a, b, c, d).into()),
        IPV6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

fn entry_state(family: u8, entry: &EntryPart) -> EntryState {
    EntryState {
        reply: tuple(family, (entry.reply_src, entry.reply_sport), (entry.reply_dst, entry.reply_dport)),
        status: entry.status,
        tcp_state: (entry.tcp_state != NO_TCP_STATE).then_some(entry.tcp_state),
        left_jiffies: entry.left,
    }
}

const fn sender(owner: &OwnerPart) -> Sender {
    Sender { cgroup: owner.cgroup, pid: owner.pid, name: Name::from_padded(owner.name) }
}

/// Four u64 in the place of the addresses.
fn last_counters(src: [u8; 16], dst: [u8; 16]) -> KernelCounters {
    let [mut src, mut dst] = [&src[..], &dst[..]];
    KernelCounters {
        drop: src.get_u64_ne(),
        early_drop: src.get_u64_ne(),
        insert_failed: dst.get_u64_ne(),
        chaintoolong: dst.get_u64_ne(),
    }
}

/// Field by field, in the machine's byte order.
fn record(mut bytes: &[u8]) -> Option<Record> {
    if bytes.len() != RECORD_SIZE {
        return None;
    }
    let bytes = &mut bytes;
    Some(Record { loss: loss(bytes), entry: entry(bytes), owner: owner(bytes) })
}

fn loss(record: &mut impl Buf) -> LossEvent {
    LossEvent {
        at: record.get_u64_ne(),
        netns: record.get_u32_ne(),
        count: record.get_u32_ne(),
        max: record.get_u32_ne(),
        ifindex: record.get_u32_ne(),
        kind: record.get_u8(),
        proto: record.get_u8(),
        family: record.get_u8(),
        hook: record.get_u8(),
        flags: record.get_u8(),
        icmp: block(record),
        place: record.get_u8(),
        sport: record.get_u16_ne(),
        dport: record.get_u16_ne(),
        length: record.get_u32_ne(),
        src: block(record),
        dst: block(record),
        device: block(record),
    }
}

fn entry(record: &mut impl Buf) -> EntryPart {
    EntryPart {
        reply_src: block(record),
        reply_dst: block(record),
        reply_sport: record.get_u16_ne(),
        reply_dport: record.get_u16_ne(),
        status: record.get_u32_ne(),
        left: record.get_i32_ne(),
        tcp_state: record.get_u8(),
        zone_directions: record.get_u8(),
        zone: record.get_u16_ne(),
    }
}

fn owner(record: &mut impl Buf) -> OwnerPart {
    OwnerPart {
        cgroup: record.get_u64_ne(),
        pid: record.get_u32_ne(),
        reserved: record.get_u32_ne(),
        name: block(record),
    }
}

fn block<const N: usize>(record: &mut impl Buf) -> [u8; N] {
    let mut bytes = [0; N];
    record.copy_to_slice(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kernel side writes: the struct as it lies in memory (it has no padding).
    fn written(record: &Record) -> &[u8] {
        // SAFETY: a Record is plain integers without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), RECORD_SIZE) }
    }

    fn decoded(record: &Record) -> Option<FromKernel> {
        decode(written(record))
    }

    fn addresses(src: &str, dst: &str) -> [[u8; 16]; 2] {
        [src, dst].map(|address| {
            let mut bytes = [0; 16];
            match address.parse().expect("an address") {
                IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => bytes = address.octets(),
            }
            bytes
        })
    }

    /// Redis on loopback, refused.
    fn redis() -> LossEvent {
        let [src, dst] = addresses("127.0.0.1", "127.0.0.2");
        LossEvent {
            at: 7,
            netns: 4_026_531_840,
            count: 1000,
            max: 1000,
            kind: Cause::TableFull as u8,
            proto: 6,
            family: IPV4,
            hook: 3,
            flags: flag::TUPLE | flag::LOOPBACK | flag::COUNT | flag::OUT,
            sport: 40_000,
            dport: 6379,
            src,
            dst,
            device: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..LossEvent::EMPTY
        }
    }

    proptest! {
        #[test]
        fn every_field_survives_the_ring_buffer(bytes in proptest::collection::vec(any::<u8>(), RECORD_SIZE)) {
            let record = record(&bytes).expect("the right length");
            prop_assert_eq!(written(&record), &bytes[..]);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2 * RECORD_SIZE)) {
            let understood = decode(&bytes);
            prop_assert!(bytes.len() == RECORD_SIZE || understood.is_none());
        }
    }

    #[test]
    fn a_record_of_another_length_or_kind_is_not_guessed_at() {
        assert_eq!(decode(&[0u8; RECORD_SIZE - 1]), None);
        assert_eq!(decode(&[0u8; RECORD_SIZE + 8]), None);
        let event = LossEvent { kind: 28, ..redis() };
        assert_eq!(decoded(&Record { loss: event, ..Record::EMPTY }), None);
    }

    #[test]
    fn a_refused_packet_has_what_its_flags_say_and_no_more() {
        let Some(FromKernel::Loss { cause, packet, entry, sender }) =
            decoded(&Record { loss: redis(), ..Record::EMPTY })
        else {
            panic!("it is a loss");
        };
        assert_eq!((cause, entry, sender), (Cause::TableFull, None, None));
        assert_eq!(packet.flow().map(|flow| flow.proto), Some(Protocol::TCP));
        assert_eq!((packet.service_port(), packet.loopback()), (Some(6379), Some(true)));
        assert_eq!(packet.tuple.map(|tuple| tuple.src.to_string()).as_deref(), Some("127.0.0.1"));
        assert_eq!((packet.count, packet.max, packet.hook), (Some(1000), None, Some(Hook::LocalOut)));
        assert_eq!(packet.device.name.map(|name| name.to_string()).as_deref(), Some("lo"));
        let blind = LossEvent { flags: 0, ..redis() };
        let Some(FromKernel::Loss { packet, .. }) = decoded(&Record { loss: blind, ..Record::EMPTY }) else {
            panic!("it is a loss");
        };
        assert_eq!((packet.tuple, packet.service_port(), packet.loopback()), (None, None, None));
    }

    #[test]
    fn an_icmp_query_goes_by_its_type_and_code() {
        let event = LossEvent { proto: 1, icmp: [8, 1], dport: 9, ..redis() };
        let Some(FromKernel::Loss { packet, .. }) = decoded(&Record { loss: event, ..Record::EMPTY }) else {
            panic!("it is a loss");
        };
        assert_eq!((packet.is_icmp(), packet.service_port()), (true, Some(0x801)));
    }

    #[test]
    fn the_zone_of_an_entry_is_told_and_of_none_unknown() {
        let zone = |entry: EntryPart| match decoded(&Record { loss: redis(), entry, ..Record::EMPTY }) {
            Some(FromKernel::Loss { packet, .. }) => packet.zone.map(|zone| (zone.original(), zone.reply())),
            other => panic!("it is a loss: {other:?}"),
        };
        assert_eq!(zone(EntryPart::EMPTY), None);
        for (zone_directions, known) in [(1, (2, 0)), (2, (0, 2)), (3, (2, 2))] {
            assert_eq!(zone(EntryPart { zone: 2, zone_directions, ..EntryPart::EMPTY }), Some(known));
        }
    }

    #[test]
    fn a_netns_that_goes_leaves_its_counters() {
        let mut event = LossEvent { kind: KIND_NETNS_GONE, ..redis() };
        for (at, value) in [(0, 1u64), (8, 2)] {
            event.src[at..at + 8].copy_from_slice(&value.to_ne_bytes());
            event.dst[at..at + 8].copy_from_slice(&(value + 2).to_ne_bytes());
        }
        let counters = KernelCounters { drop: 1, early_drop: 2, insert_failed: 3, chaintoolong: 4 };
        let netns = NetnsId::from_inode(4_026_531_840);
        assert_eq!(
            decoded(&Record { loss: event, ..Record::EMPTY }),
            Some(FromKernel::NetnsGone { netns, counters })
        );
    }

    #[test]
    fn the_flow_that_pushed_entries_out_is_told_by_their_time() {
        let event = LossEvent { kind: KIND_PUSHER, ..redis() };
        let Some(FromKernel::Pusher { at_ns: 7, flow: Some(flow) }) =
            decoded(&Record { loss: event, ..Record::EMPTY })
        else {
            panic!("it is a flow");
        };
        assert_eq!(flow.tuple.dport, 6379);
    }
}
