//! The two channels out of the kernel: an exact counter for every loss, and a record for every loss whose details are wanted.
//! What fits neither the ring nor the slots is counted too: nothing is lost silently.

use crate::config::config;
use crate::maps::{CLAIMS, EVENTS, FLOWS, LOSSES, add, control};
use crate::owner;
use crate::packet::{Skb, describe_reply};
use crate::read::read;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use ctwatch_common::Cause;
use ctwatch_common::cause::CAUSES;
use ctwatch_common::config::NONE;
use ctwatch_common::door::kind;
use ctwatch_common::event::{EntryPart, LossEvent, NO_TCP_STATE, OwnerPart, Record, flag, zone};
use ctwatch_common::slot::{
    BANKS, KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, LOSS_SLOTS, PROBES, Room, SlotKey, first_slot,
    next_slot,
};

/// BPF_NOEXIST
const NOEXIST: u64 = 1;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;
/// Wake the reader once this many bytes wait; it drains the ring every tenth of a second anyway.
const WAKE_AT: u64 = 512 << 10;
/// IPPROTO_TCP
const TCP: u8 = 6;

/// A number in a slot of flows.
#[derive(Clone, Copy)]
pub enum Field {
    /// Inserts.
    Inserts = 0,
    /// Deletes.
    Deletes = 1,
    /// Inserts that failed after all.
    Failed = 2,
}

/// Where the locks of a room's slots begin.
const LOSS_LOCKS: u32 = 0;
const FLOW_LOCKS: u32 = BANKS * LOSS_SLOTS;

/// The slot of a key in the active bank, claimed if it is new. `try_slot` is [`try_loss_slot`] or [`try_flow_slot`].
///
/// # Safety
/// `room` must point to a map's value; a slot must begin with its key.
#[inline(always)]
unsafe fn slot<S, const SLOTS: usize>(
    room: *mut Room<S, SLOTS>,
    packed: u64,
    try_slot: extern "C" fn(u64, u64) -> u64,
) -> Option<*mut S> {
    // SAFETY: the caller's; the index is masked.
    unsafe {
        let first = core::ptr::read_volatile(&raw const (*room).state.active) as u32;
        let slots = SLOTS as u32 / BANKS;
        let mut place = first_slot(packed, slots);
        let slot = slot_at(room, first + place);
        // Nearly always it is this one.
        if core::ptr::read_volatile(slot.cast::<u64>()) == packed {
            return Some(slot);
        }
        // Two contexts that claim a key at once may get a slot each: whoever loses the race takes the next one, and user
        // space adds them up.
        for step in 1..PROBES + 1 {
            let index = first + place;
            if try_slot(packed, u64::from(index)) != 0 {
                return Some(slot_at(room, index));
            }
            place = next_slot(place, step, slots);
        }
    }
    None
}

/// # Safety
/// `room` must point to a map's value.
#[inline(always)]
unsafe fn slot_at<S, const SLOTS: usize>(room: *mut Room<S, SLOTS>, index: u32) -> *mut S {
    // SAFETY: the caller's; the index is masked.
    unsafe { (&raw mut (*room).slots).cast::<S>().add((index & (SLOTS as u32 - 1)) as usize) }
}

/// Whether a slot of losses is a key's, or was free and is now. A global function, so that the verifier doesn't go through
/// it once for each place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn try_loss_slot(packed: u64, index: u64) -> u64 {
    let Some(room) = LOSSES.get_ptr_mut(0) else { return 0 };
    // SAFETY: a pointer to a map's value.
    u64::from(unsafe { take_slot(room, LOSS_LOCKS, packed, index as u32) })
}

/// The same of a slot of flows.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn try_flow_slot(packed: u64, index: u64) -> u64 {
    let Some(room) = FLOWS.get_ptr_mut(0) else { return 0 };
    // SAFETY: a pointer to a map's value.
    u64::from(unsafe { take_slot(room, FLOW_LOCKS, packed, index as u32) })
}

/// # Safety
/// As for [`slot`].
#[inline(always)]
unsafe fn take_slot<S, const SLOTS: usize>(
    room: *mut Room<S, SLOTS>,
    locks: u32,
    packed: u64,
    index: u32,
) -> bool {
    let index = index & (SLOTS as u32 - 1);
    // SAFETY: the caller's. A key is written once, with one store, until user space clears a bank that no program can see any
    // more.
    unsafe {
        let key = slot_at(room, index).cast::<u64>();
        let present = core::ptr::read_volatile(key);
        if present == packed {
            return true;
        }
        if present == 0 && claim(locks + index, key, packed) {
            let bank = usize::from(index >= SLOTS as u32 / BANKS);
            add(&raw mut (*room).state.claimed[bank], 1);
            return true;
        }
    }
    false
}

/// Writes a key to a free slot, unless someone else does. The claim locks the slot: its key is read again under it.
///
/// # Safety
/// `key` must be the key of the slot that `lock` is for.
#[inline(always)]
unsafe fn claim(lock: u32, key: *mut u64, packed: u64) -> bool {
    if CLAIMS.insert(lock, 0, NOEXIST).is_err() {
        return false;
    }
    // SAFETY: the caller's.
    let free = unsafe {
        let free = core::ptr::read_volatile(key) == 0;
        if free {
            core::ptr::write_volatile(key, packed);
        }
        free
    };
    let _ = CLAIMS.remove(lock);
    free
}

/// Adds to the losses of a key. A global function: the verifier goes through it once for each program, not once for each
/// path of its callers. On 5.10 such a function can take only numbers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_loss(packed: u64, losses: u64) -> u64 {
    let Some(room) = LOSSES.get_ptr_mut(0) else { return 1 };
    // SAFETY: pointers into map values; indices are masked.
    unsafe {
        if let Some(slot) = slot(room, packed, try_loss_slot) {
            add(&raw mut (*slot).count, losses);
            return 0;
        }
        let Some(control) = control() else { return 1 };
        let cause = usize::from(SlotKey::unpack(packed).kind) & (CAUSES - 1);
        add(&raw mut (*control).overflow[cause], losses);
    }
    1
}

/// Adds 1 to a number of a key of flows.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_in_flows(packed: u64, field: u64) -> u64 {
    let Some(room) = FLOWS.get_ptr_mut(0) else { return 1 };
    // SAFETY: pointers into map values.
    unsafe {
        if let Some(slot) = slot(room, packed, try_flow_slot) {
            match field {
                0 => add(&raw mut (*slot).inserts, 1),
                1 => add(&raw mut (*slot).deletes, 1),
                _ => add(&raw mut (*slot).failed, 1),
            }
            return 0;
        }
        let Some(control) = control() else { return 1 };
        match field {
            0 => add(&raw mut (*control).flows_overflow[0], 1),
            1 => add(&raw mut (*control).flows_overflow[1], 1),
            _ => add(&raw mut (*control).flows_overflow[2], 1),
        }
    }
    1
}

/// Counts losses under a key.
#[inline(always)]
pub fn count_losses(key: SlotKey, losses: u64) {
    count_loss(key.pack(), losses);
}

/// Counts losses whose tuple was not seen.
#[inline(always)]
pub fn count_unattributed(netns: u32, cause: Cause, losses: u64) {
    count_losses(SlotKey { netns, port: 0, proto: 0, kind: cause as u8 | KIND_UNATTRIBUTED }, losses);
}

/// Counts an entry that was inserted, removed, or not inserted after all. By inode number: flows of successive netns with
/// the same number are not told apart.
#[inline(always)]
pub fn count_flow(inode: u32, proto: u8, port: u16, field: Field) {
    count_in_flows(SlotKey { netns: inode, port, proto, kind: KIND_FLOWS }.pack(), field as u64);
}

/// The key a loss is counted under.
#[inline(always)]
pub fn loss_key(event: &LossEvent, cause: Cause) -> SlotKey {
    let loopback = if event.flags & flag::LOOPBACK == 0 { 0 } else { KIND_LOOPBACK };
    SlotKey {
        netns: event.netns,
        port: crate::packet::service_port(event),
        proto: event.proto,
        kind: cause as u8 | loopback,
    }
}

/// Whether losses go to the ring buffer.
#[inline(always)]
pub fn wants_losses() -> bool {
    config!(loss_events) != 0
}

/// Whether inserts go to the ring buffer too.
#[inline(always)]
pub fn wants_inserts() -> bool {
    config!(insert_events) != 0
}

/// Pushes a record without entry and owner, or counts that it could not be pushed.
#[inline(always)]
pub fn push(event: &LossEvent) {
    push_filled(event, |_| {});
}

/// Pushes a record that says of its entry no more than the zone.
#[inline(always)]
pub fn push_of_zone(event: &LossEvent, zone: u32) {
    push_filled(
        event,
        #[inline(always)]
        // SAFETY: the reserved record.
        |record| unsafe { fill_zone(record, zone) },
    );
}

/// Fills in a struct nf_conntrack_zone (include/net/netfilter/nf_conntrack_zones.h): id, flags, directions.
///
/// # Safety
/// `record` must be valid for writes.
#[inline(always)]
pub unsafe fn fill_zone(record: *mut Record, zone: u32) {
    // SAFETY: the caller's.
    unsafe {
        (*record).entry.zone = zone as u16;
        (*record).entry.zone_directions = (zone >> 24) as u8 & zone::BOTH;
    }
}

/// An entry's struct nf_conntrack_zone; 0 if the kernel has none.
#[inline(always)]
pub fn zone_of_entry(entry: u64) -> u32 {
    if config!(ct_zone) == NONE { 0 } else { read(entry + u64::from(config!(ct_zone))) }
}

/// Pushes the record of a packet, with the entry it holds, if any, and with its sender where that
/// is certain.
#[inline(always)]
pub fn push_packet(event: &LossEvent, skb: &Skb, entry: u64) {
    push_filled(
        event,
        #[inline(always)]
        |record| {
            // SAFETY: the reserved record.
            unsafe { fill_packet(record, event, skb, entry) }
        },
    );
}

/// Completes the record of a packet.
///
/// # Safety
/// `record` must be valid for writes.
#[inline(always)]
pub unsafe fn fill_packet(record: *mut Record, event: &LossEvent, skb: &Skb, entry: u64) {
    let mut flags = event.flags;
    // SAFETY: the caller's.
    unsafe {
        if entry != 0 {
            describe_entry(entry, record);
            flags |= flag::ENTRY;
        }
        if config!(owners) != 0
            && skb.device() == 0
            && owner::of_packet(
                skb.socket(),
                owner::flow(event),
                event.place != kind::NFQUEUE,
                &raw mut (*record).owner,
            )
        {
            flags |= flag::OWNER;
        }
        (*record).loss.flags = flags;
    }
}

/// Writes a record without entry and owner.
///
/// # Safety
/// `record` must be valid for writes.
#[inline(always)]
pub unsafe fn fill(record: *mut Record, event: &LossEvent) {
    // SAFETY: the caller's.
    unsafe {
        core::ptr::copy_nonoverlapping(event, &raw mut (*record).loss, 1);
        (&raw mut (*record).entry).write(EntryPart::EMPTY);
        (&raw mut (*record).owner).write(OwnerPart::EMPTY);
    }
}

/// Pushes a record that `complete` completes in place: entry and owner would not fit the stack.
#[inline(always)]
pub fn push_filled(event: &LossEvent, complete: impl FnOnce(*mut Record)) {
    push_written(
        event.kind,
        #[inline(always)]
        |record| {
            // SAFETY: the place is as large as the record; all of it is written.
            unsafe { fill(record, event) };
            complete(record);
        },
    );
}

/// Pushes a copy of a record.
///
/// # Safety
/// `record` must point into a map's value.
#[inline(always)]
pub unsafe fn push_copy(record: *const Record) {
    // SAFETY: the caller's; all of the reserved record is written.
    unsafe { push_written((*record).loss.kind, |to| core::ptr::copy_nonoverlapping(record, to, 1)) }
}

#[inline(always)]
fn push_written(kind: u8, write: impl FnOnce(*mut Record)) {
    if let Some(mut place) = EVENTS.reserve::<Record>(0) {
        write(place.as_mut_ptr());
        let waiting = EVENTS.query(BPF_RB_AVAIL_DATA);
        place.submit(if waiting >= WAKE_AT { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
    } else if let Some(control) = control() {
        // SAFETY: a pointer into the map's value; the index is masked.
        unsafe { add(&raw mut (*control).lost_events[usize::from(kind & 15)], 1) };
    }
}

/// Describes an entry that is still there. On a stack frame of its own: the caller's is nearly full.
///
/// # Safety
/// `record` must be valid for writes.
#[inline(never)]
pub unsafe fn describe_entry(entry: u64, record: *mut Record) {
    let reply: [u64; 5] = read(entry + u64::from(config!(ct_tuple)) + u64::from(config!(ct_reply)));
    let (status, left, tcp_state) = state_of_entry(entry, (reply[4] >> 48) as u8);
    // SAFETY: the caller's.
    unsafe {
        let to = &raw mut (*record).entry;
        describe_reply(&reply, to);
        (*to).status = status;
        (*to).left = left;
        (*to).tcp_state = tcp_state;
        fill_zone(record, zone_of_entry(entry));
    }
}

/// Status, jiffies left and TCP state of an entry.
#[inline(always)]
pub fn state_of_entry(entry: u64, proto: u8) -> (u32, i32, u8) {
    let status: u32 = read(entry + u64::from(config!(ct_status)));
    let left = time_left(entry);
    let tcp_state = if proto == TCP && config!(ct_tcp_state) != NONE {
        read(entry + u64::from(config!(ct_tcp_state)))
    } else {
        NO_TCP_STATE
    };
    (status, left, tcp_state)
}

/// Jiffies until an entry expires.
#[inline(always)]
pub fn time_left(entry: u64) -> i32 {
    let timeout: u32 = read(entry + u64::from(config!(ct_timeout)));
    // SAFETY: the helper has no preconditions.
    timeout.wrapping_sub(unsafe { bpf_jiffies64() } as u32).cast_signed()
}
