//! Every lost packet, seen where `nf_hook_slow` frees it (net/netfilter/core.c, 5.10 to 7.3), or one of the few others
//! that [`ctwatch_common::door`] lists.
//! Which of conntrack's per-CPU counters has just moved on this CPU tells whether conntrack dropped it, and why.

use crate::config::config;
use crate::emit;
use crate::maps::{CLASHED, Cpu, REPORTED, add, control};
use crate::marks;
use crate::netns;
use crate::packet::{Skb, blank, describe_from_entry, service_port};
use crate::percpu::this_cpu;
use crate::read::read;
use crate::withheld;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use core::mem::MaybeUninit;
use ctwatch_common::Cause;
use ctwatch_common::classify::{Counters, Moved, classify, fresh_base, moved, refused_with_room};
use ctwatch_common::door::{DOORS, Door, kind};
use ctwatch_common::event::{LossEvent, flag};
use ctwatch_common::netns::NetCpu;

/// Whether this address lies in `nf_hook_slow`.
#[inline(always)]
fn in_nf_hook_slow(location: u64) -> bool {
    location.wrapping_sub(config!(nf_hook_slow[0])) < config!(nf_hook_slow_len[0])
        || (config!(nf_hook_slow_len[1]) != 0
            && location.wrapping_sub(config!(nf_hook_slow[1])) < config!(nf_hook_slow_len[1]))
}

/// No place where a packet that conntrack refused is freed.
const NOWHERE: u64 = u64::MAX;

/// Which place this address lies in: see [`kind`].
#[inline(always)]
fn place(location: u64) -> u64 {
    if in_nf_hook_slow(location) { u64::from(kind::NF_HOOK_SLOW) } else { other_door(location) }
}

/// The same beside `nf_hook_slow`. It runs for every packet that is freed anywhere: where no such place is, it reads one word.
#[inline(never)]
fn other_door(location: u64) -> u64 {
    let Some(control) = control() else { return NOWHERE };
    for index in 0..DOORS {
        // SAFETY: a pointer into the map's value.
        let door = unsafe {
            let door = &raw const (*control).doors[index];
            let span = core::ptr::read_volatile(&raw const (*door).span);
            if span == 0 {
                break;
            }
            Door { start: core::ptr::read_volatile(&raw const (*door).start), span }
        };
        if let Some(kind) = door.kind_of(location) {
            return u64::from(kind);
        }
    }
    NOWHERE
}

#[inline(always)]
pub fn first(ctx: &RawTracePointContext) {
    let place = place(ctx.arg(1));
    if place != NOWHERE {
        take(ctx.arg(0), place as u8);
    }
}

#[inline(always)]
pub fn held(ctx: &TracePointContext) {
    // The first word is common to all tracepoints.
    // SAFETY: a program may read its context; user space checked the position of the other two.
    let [_, skb, location] = unsafe { *ctx.as_ptr().cast::<[u64; 3]>() };
    let place = place(location);
    if place != NOWHERE {
        take(skb, place as u8);
    }
}

#[inline(always)]
fn take(skb: u64, place: u8) {
    let Some(cpu) = this_cpu() else { return };
    // SAFETY: this CPU's own map value.
    unsafe { core::ptr::write_volatile(&raw mut (*cpu).packet, skb) };
    dropped(skb, place, cpu);
}

#[inline(always)]
pub fn twin(ctx: &RawTracePointContext) {
    let place = place(ctx.arg(1));
    if place == NOWHERE {
        return;
    }
    let skb: u64 = ctx.arg(0);
    let Some(cpu) = this_cpu() else { return };
    // SAFETY: this CPU's own map value. The packet is freed only after both programs ran, so an equal address means
    // that the first program handled this very packet. The address is then cleared: the next packet may get the same
    // one, and the first program may be skipped for it.
    unsafe {
        let packet = &raw mut (*cpu).packet;
        if core::ptr::read_volatile(packet) == skb {
            core::ptr::write_volatile(packet, 0);
            return;
        }
    }
    dropped(skb, place as u8, cpu);
}

#[inline(always)]
fn dropped(address: u64, place: u8, cpu: *mut Cpu) {
    let mut skb = Skb::uninit();
    skb.read(address);
    let net = skb.net();
    if net == 0 {
        return;
    }
    let Some(state) = netns::for_loss(net) else { return };
    // SAFETY: this CPU's own map value.
    let (stat, accounted) = unsafe { ((*state).stat, (*state).accounted) };
    let (now, invalid) = netns::counters_and_invalid(stat);
    let (accounted, drops) = match moved(now.drop, accounted.drop) {
        Some(drops) => (accounted, drops),
        None => {
            let base = restart(state, now);
            (base, now.drop.wrapping_sub(base.drop))
        }
    };
    let marks = marks::find();
    // SAFETY: this CPU's own map value.
    let drops = if drops == 0 && marks.mine && unsafe { (*state).crowded } != 0 { 1 } else { drops };
    let entry = skb.entry();
    let insert_failed = now.insert_failed != accounted.insert_failed;
    // A context that was refused but has not dropped its packet yet has moved the counter as well, if it was refused
    // in this netns, which its mark doesn't tell. An entry that failed to be inserted moved it itself, unless dying.
    let by_others = if marks.mine || (entry != 0 && insert_failed) { 0 } else { marks.others };
    let mut which = Moved {
        drop: drops > by_others,
        insert_failed,
        chaintoolong: now.chaintoolong != accounted.chaintoolong,
    };
    let mut found = Found { marked: marks.mine, counted_on: None };
    if config!(preempts) != 0 && !(entry == 0 && marks.mine && which.drop) {
        look_elsewhere(cpu, entry, marks, &mut which, &mut found);
    }
    let mut event = MaybeUninit::uninit();
    let event = blank(&mut event);
    // Kept here and not in a register, of which there are too few.
    event.place = place;
    // SAFETY: this CPU's own map value.
    let full = unsafe { refused_by_full_table(found.marked, state, event) };
    // The only count is perhaps that of a context whose mark is here, perhaps this packet's: it will be told.
    let withheld = entry == 0 && drops != 0 && !which.drop && !marks.mine && config!(by_kfree_skb) != 0;
    which.drop |= withheld;
    let mut cause = match classify(which, entry != 0, full) {
        Some(cause) => cause,
        None if entry != 0 && marks::take_refused_expectation() => Cause::ExpectFull,
        None => {
            // SAFETY: this CPU's own map value.
            unsafe { marks::clear(cpu, marks) };
            return;
        }
    };
    // The cause decides which counters are accounted for, so it must be final here.
    if cause == Cause::NoMemory {
        skb.describe_tuple(event);
        // SAFETY: this CPU's own map value.
        cause = refused_with_room(event.proto, unsafe { (*state).invalid } != invalid);
    }
    // SAFETY: pointers into map values. Atomic, since an interrupt on this CPU may account for its own loss meanwhile.
    unsafe {
        let accounted = match found.counted_on {
            Some(cpu) => &raw mut (*netns::on(cpu, net).unwrap_or(state)).accounted,
            None => &raw mut (*state).accounted,
        };
        if cause.bumps_drop() && !withheld {
            add(&raw mut (*accounted).drop, 1);
        }
        if cause.bumps_insert_failed() {
            add(&raw mut (*accounted).insert_failed, 1);
        }
        if cause.bumps_chaintoolong() {
            add(&raw mut (*accounted).chaintoolong, 1);
        }
        marks::clear(cpu, marks);
        if marks.mine && withheld::is_waiting(cpu) {
            withheld::settle(u64::from(marks.others));
        }
        (*state).invalid = invalid;
        event.netns = (*state).id;
    }
    if entry == 0 {
        if !marks.mine
            && drops > 1
            && let Some(control) = control()
        {
            // SAFETY: a pointer into the map's value.
            unsafe { add(&raw mut (*control).ambiguous, 1) };
        }
        if config!(by_kfree_skb) == 0 && (config!(pair_on_alloc) != 0 || REPORTED.remove(address).is_ok()) {
            // The init_conntrack pair has reported it; the one on __nf_conntrack_alloc doesn't know its packet.
            return;
        }
    }
    if config!(event_details) != 0 {
        // SAFETY: the helper has no preconditions.
        event.at = unsafe { bpf_ktime_get_ns() };
    }
    event.kind = cause as u8;
    if entry == 0 {
        skb.describe_tuple(event);
    } else {
        describe_from_entry(entry, event);
    }
    // SAFETY: this CPU's own map value.
    skb.describe_path(entry != 0, unsafe { (*state).loopback }, event);
    skb.describe_place(event);
    if entry != 0 {
        if config!(flows) != 0 && matches!(cause, Cause::ChainTooLong | Cause::Dying) {
            // Counted as an insert when it was tried; a clash is corrected where it is resolved.
            // SAFETY: this CPU's own map value.
            emit::count_flow(unsafe { (*state).inum }, event.proto, service_port(event), emit::Field::Failed);
        }
    }
    if withheld {
        // SAFETY: this CPU's own map value.
        unsafe { withheld::keep(cpu, net, event, &skb) };
        return;
    }
    emit::count_losses(emit::loss_key(event, cause), 1);
    if emit::wants_losses() {
        emit::push_packet(event, &skb, entry);
    }
}

/// What is known of a packet whose task may have migrated before it freed it.
struct Found {
    /// `early_drop` left a mark for it.
    marked: bool,
    /// Another CPU counted the loss.
    counted_on: Option<u32>,
}

/// Looks where a task that may have migrated left its traces: for a refused packet its mark, for a clash its entry. On a
/// stack frame of its own: the caller's is nearly full.
#[inline(never)]
fn look_elsewhere(cpu: *mut Cpu, entry: u64, marks: marks::Found, which: &mut Moved, found: &mut Found) {
    if entry != 0 {
        let Some(clashed) = CLASHED.get_ptr(entry) else { return };
        // SAFETY: a pointer into the map's value.
        let clashed = unsafe { *clashed };
        let _ = CLASHED.remove(entry);
        let counted = clashed.cpu as u32;
        let there = marks::cpu_of(counted);
        // SAFETY: that CPU's own map value.
        if !there.is_null() && unsafe { marks::is_proof(clashed.since, there) } {
            *which = Moved { drop: true, insert_failed: true, chaintoolong: false };
            found.counted_on = Some(counted);
        }
        return;
    }
    if marks.mine {
        // The counter stood still here. A mark is proof by itself, though: another context that migrated here may have claimed
        // the count that this one made.
        // SAFETY: this CPU's own map value.
        which.drop = unsafe { marks::mine_is_proof(cpu, marks) };
    } else if let Some(left_on) = marks::take_from_another(cpu) {
        // It may have migrated between mark and count: then this CPU's counter has moved.
        found.counted_on = if which.drop { None } else { Some(left_on) };
        found.marked = true;
        which.drop = true;
    }
}

/// A new netns took the address of one that is gone: it starts over, and has just lost this packet.
#[inline(always)]
fn restart(state: *mut NetCpu, now: Counters) -> Counters {
    let base = Counters {
        drop: fresh_base(now.drop, 1),
        insert_failed: fresh_base(now.insert_failed, 1),
        chaintoolong: fresh_base(now.chaintoolong, 1),
        early_drop: fresh_base(now.early_drop, 0),
    };
    // SAFETY: this CPU's own map value.
    unsafe {
        (*state).base = base;
        (*state).accounted = base;
    }
    base
}

/// Whether a refused packet met a full table rather than a lack of memory. Reads the table's fill into the event.
///
/// # Safety
/// `state` must be this CPU's map value.
#[inline(always)]
pub unsafe fn refused_by_full_table(marked: bool, state: *mut NetCpu, event: &mut LossEvent) -> bool {
    if marked && config!(event_details) == 0 {
        return true;
    }
    // SAFETY: the caller's.
    unsafe {
        if (*state).count != 0 {
            event.count = read((*state).count);
            event.flags |= flag::COUNT;
        }
        if config!(max_address) != 0 {
            event.max = read(config!(max_address));
            event.flags |= flag::MAX;
        }
        // Only a probed early_drop lets us say "no memory": a table that was full may have room again.
        config!(early_drop_probed) == 0
            || marked
            || event.flags & (flag::COUNT | flag::MAX) != flag::COUNT | flag::MAX
            || event.count >= event.max
    }
}

/// The cause of a refused entry.
#[inline(always)]
pub fn refusal(full: bool) -> Cause {
    if full { Cause::TableFull } else { Cause::NoMemory }
}
