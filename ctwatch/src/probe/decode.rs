//! A ring buffer record back into the event it was: field by field, in the machine's byte order.
//! Records of another length belong to another object and are not guessed at.

use bytes::Buf;
use ctwatch_common::event::{EntryPart, LossEvent, OwnerPart, RECORD_SIZE, Record};

/// A record out of the ring buffer's bytes.
#[must_use]
pub fn decode(mut bytes: impl Buf) -> Option<Record> {
    if bytes.remaining() != RECORD_SIZE {
        return None;
    }
    Some(Record { loss: loss(&mut bytes), entry: entry(&mut bytes), owner: owner(&mut bytes) })
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
        icmp: [record.get_u8(), record.get_u8()],
        reserved: record.get_u8(),
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
        reserved: block(record),
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

    proptest! {
        #[test]
        fn every_field_survives_the_ring_buffer(bytes in proptest::collection::vec(any::<u8>(), RECORD_SIZE)) {
            let record = decode(&bytes[..]).expect("the right length");
            prop_assert_eq!(written(&record), &bytes[..]);
        }
    }

    #[test]
    fn a_record_of_another_length_is_not_guessed_at() {
        assert_eq!(decode(&[0u8; RECORD_SIZE - 1][..]), None);
        assert_eq!(decode(&[0u8; RECORD_SIZE + 8][..]), None);
    }
}
