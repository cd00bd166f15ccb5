//! The two channels out of the kernel: an exact counter for every loss, and an event for every loss.
//! A full ring or table is counted too: nothing is lost silently.

use crate::config::config;
use crate::maps::{CLAIMS, COUNTERS, EVENTS, add, control};
use ctwatch_common::Cause;
use ctwatch_common::event::LossEvent;
use ctwatch_common::slot::{
    KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, PROBES, SLOTS, Slot, SlotKey, first_slot,
};

/// BPF_NOEXIST
const NOEXIST: u64 = 1;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;
/// Wake the reader once this much waits; it looks by itself every tenth of a second.
const WAKE_AT: u64 = 256 << 10;

/// The slot of a key, claimed if it is new.
#[inline(always)]
fn slot(key: SlotKey) -> Option<*mut Slot> {
    let packed = key.pack();
    let first = first_slot(packed);
    for step in 0..PROBES {
        let index = (first + step) & (SLOTS - 1);
        let slot = COUNTERS.get_ptr_mut(index)?;
        // SAFETY: inside the map's value; the key is written once, with one store.
        unsafe {
            let present = core::ptr::read_volatile(&raw const (*slot).key);
            if present == packed {
                return Some(slot);
            }
            if present != 0 {
                continue;
            }
            if CLAIMS.insert(index, packed, NOEXIST).is_ok() {
                core::ptr::write_volatile(&raw mut (*slot).key, packed);
                if let Some(control) = control() {
                    add(&raw mut (*control).claimed, 1);
                }
                return Some(slot);
            }
            // Another context is claiming it at this moment: for our key, or for another?
            if CLAIMS.get(index).is_some_and(|claimed| *claimed == packed) {
                return Some(slot);
            }
        }
    }
    None
}

/// Counts losses under a key.
#[inline(always)]
pub fn count_losses(key: SlotKey, cause: Cause, losses: u64) {
    // SAFETY: pointers into map values.
    unsafe {
        match slot(key) {
            Some(slot) => add(&raw mut (*slot).count, losses),
            None => {
                if let Some(control) = control() {
                    add(&raw mut (*control).overflow[cause as usize], losses);
                }
            }
        }
    }
}

/// Counts losses whose tuple nobody saw.
#[inline(always)]
pub fn count_unattributed(netns: u32, cause: Cause, losses: u64) {
    count_losses(SlotKey { netns, port: 0, proto: 0, kind: cause as u8 | KIND_UNATTRIBUTED }, cause, losses);
}

/// Counts an entry that came (`inserts` 1) or went (`deletes` 1).
#[inline(always)]
pub fn count_flow(netns: u32, proto: u8, port: u16, inserted: bool) {
    let key = SlotKey { netns, port, proto, kind: KIND_FLOWS };
    // SAFETY: pointers into map values.
    unsafe {
        match slot(key) {
            Some(slot) if inserted => add(&raw mut (*slot).count, 1),
            Some(slot) => add(&raw mut (*slot).deletes, 1),
            None => {
                if let Some(control) = control() {
                    add(&raw mut (*control).flows_overflow[usize::from(!inserted)], 1);
                }
            }
        }
    }
}

/// The key a loss is counted under.
#[inline(always)]
pub fn loss_key(event: &LossEvent, cause: Cause) -> SlotKey {
    let loopback = if event.flags & ctwatch_common::event::flag::LOOPBACK == 0 { 0 } else { KIND_LOOPBACK };
    SlotKey {
        netns: event.netns,
        port: crate::packet::service_port(event),
        proto: event.proto,
        kind: cause as u8 | loopback,
    }
}

/// Pushes an event, or counts that it could not be pushed.
#[inline(always)]
pub fn push(event: &LossEvent, kind: u8) {
    if let Some(mut place) = EVENTS.reserve::<LossEvent>(0) {
        // SAFETY: the place is as large as the event.
        unsafe { core::ptr::copy_nonoverlapping(event, place.as_mut_ptr(), 1) };
        let waiting = EVENTS.query(BPF_RB_AVAIL_DATA);
        place.submit(if waiting >= WAKE_AT { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
    } else if let Some(control) = control() {
        // SAFETY: a pointer into the map's value; the index is masked.
        unsafe { add(&raw mut (*control).lost_events[usize::from(kind & 15)], 1) };
    }
}

/// Whether inserts go to the ring buffer too.
#[inline(always)]
pub fn wants_inserts() -> bool {
    config!(insert_events) != 0
}
