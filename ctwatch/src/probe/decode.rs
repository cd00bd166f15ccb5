//! A ring buffer record back into the event it was: field by field, in the machine's byte order.
//! Records of another length belong to another object and are not guessed at.

use bytes::Buf;
use ctwatch_common::event::{LOSS_EVENT_SIZE, LossEvent};

/// An event out of the ring buffer's bytes.
#[must_use]
pub fn decode(mut record: impl Buf) -> Option<LossEvent> {
    if record.remaining() != LOSS_EVENT_SIZE {
        return None;
    }
    Some(LossEvent {
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
        src: block(&mut record),
        dst: block(&mut record),
        device: block(&mut record),
    })
}

fn block(record: &mut impl Buf) -> [u8; 16] {
    let mut bytes = [0; 16];
    record.copy_to_slice(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kernel side writes: the struct as it lies in memory (it has no padding).
    fn written(event: &LossEvent) -> &[u8] {
        // SAFETY: LossEvent is plain integers without padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(event).cast(), LOSS_EVENT_SIZE) }
    }

    proptest! {
        #[test]
        fn every_field_survives_the_ring_buffer(bytes: [u8; LOSS_EVENT_SIZE]) {
            let event = decode(&bytes[..]).expect("the right length");
            prop_assert_eq!(written(&event), &bytes[..]);
        }
    }

    #[test]
    fn a_record_of_another_length_is_not_guessed_at() {
        assert_eq!(decode(&[0u8; LOSS_EVENT_SIZE - 1][..]), None);
        assert_eq!(decode(&[0u8; LOSS_EVENT_SIZE + 8][..]), None);
    }
}
