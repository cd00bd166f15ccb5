//! Single packets for `--events`: what the kernel sent, in words.
//! What is unknown stays unknown: no guesses here.

use ctwatch_common::Cause;
use ctwatch_common::event::{EntryPart, LossEvent, flag, hook};
use jiff::Timestamp;

use super::key::{self, Facts, Seen};
use crate::contract::{
    Certainty, DropEvent, Entry, FillSource, Flow, InsertEvent, Packet, Process, Tuple, View, fill,
};
use crate::model::{Loss, Protocol, TCP_STATES};

pub(super) fn drop_event(
    loss: &Loss,
    seen: &Seen,
    certainty: Certainty,
    sampled: (Option<u32>, Option<u32>),
) -> DropEvent {
    let event = &loss.event;
    let known = |bit: u8, value: u32| (event.flags & bit != 0).then_some(value);
    let (count, fill_source) = match (known(flag::COUNT, event.count), sampled.0) {
        (Some(count), _) => (Some(count), Some(FillSource::Event)),
        (None, Some(count)) => (Some(count), Some(FillSource::Sample)),
        (None, None) => (None, None),
    };
    let max = known(flag::MAX, event.max).or(sampled.1);
    let device = device(&event.device);
    let (input, output) = if event.flags & flag::OUT != 0 { (None, device) } else { (device, None) };
    let known_entry = (event.flags & flag::ENTRY != 0).then_some(&loss.entry);
    let original = known_entry.and_then(|_| tuple(event));
    let reply = known_entry.and_then(|entry| reply(event, entry));
    let who = loss.who.as_deref();
    DropEvent {
        time: loss.time,
        cause: seen.cause,
        certainty,
        packet: packet(event, &seen.facts),
        view: (event.flags & flag::TUPLE != 0).then_some(View::PreNat),
        nat: original.zip(reply).map(|(original, reply)| reply != mirror(original)),
        original,
        reply,
        entry: known_entry.map(|known| entry(known, loss.jiffies_per_s)),
        pushed_out_by: (seen.cause == Cause::Evicted).then(|| loss.pushed_out_by.as_ref().and_then(flow)),
        hook: hook_name(event.hook),
        input,
        output,
        count,
        max,
        fill: count.zip(max).and_then(|(count, max)| fill(count, max)),
        fill_source,
        process: who.and_then(|who| who.process.as_ref()).map(Process::from),
        cgroup: who.and_then(|who| who.cgroup.clone()),
        container: who.and_then(|who| who.container.clone()),
        length: (event.length != 0).then_some(event.length),
    }
}

pub(super) fn insert_event(time: Timestamp, event: &LossEvent, facts: &Facts) -> InsertEvent {
    InsertEvent { time, packet: packet(event, facts) }
}

fn packet(event: &LossEvent, facts: &Facts) -> Packet {
    let attributed = event.flags & flag::TUPLE != 0;
    let proto = Protocol(event.proto);
    let ports = attributed && proto.has_ports();
    let icmp = attributed && proto.is_icmp();
    let addresses = key::addresses(event);
    Packet {
        netns: facts.netns,
        proto: facts.proto,
        src: addresses.map(|(src, _)| src),
        sport: ports.then_some(event.sport),
        dst: addresses.map(|(_, dst)| dst),
        dport: ports.then_some(event.dport),
        icmp_type: icmp.then_some(event.icmp[0]),
        icmp_code: icmp.then_some(event.icmp[1]),
        icmp_id: icmp.then_some(event.sport),
        loopback: facts.loopback,
        unattributed: !attributed,
    }
}

/// The tuple of an event, which is an entry's original direction if it has one.
fn tuple(event: &LossEvent) -> Option<Tuple> {
    let (src, dst) = key::addresses(event)?;
    let ports = Protocol(event.proto).has_ports();
    Some(Tuple { src, sport: ports.then_some(event.sport), dst, dport: ports.then_some(event.dport) })
}

fn reply(event: &LossEvent, entry: &EntryPart) -> Option<Tuple> {
    let ports = Protocol(event.proto).has_ports();
    Some(Tuple {
        src: key::address(event.family, entry.reply_src)?,
        sport: ports.then_some(entry.reply_sport),
        dst: key::address(event.family, entry.reply_dst)?,
        dport: ports.then_some(entry.reply_dport),
    })
}

/// What the reply looks like without NAT.
const fn mirror(original: Tuple) -> Tuple {
    let Tuple { src, sport, dst, dport } = original;
    Tuple { src: dst, sport: dport, dst: src, dport: sport }
}

fn flow(event: &LossEvent) -> Option<Flow> {
    Some(Flow { proto: Protocol(event.proto), tuple: tuple(event)? })
}

/// Bits of nf_conn.status (enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h).
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;

fn entry(entry: &EntryPart, jiffies_per_s: Option<u32>) -> Entry {
    let has = |bit: u32| entry.status & bit != 0;
    Entry {
        assured: has(ASSURED),
        seen_reply: has(SEEN_REPLY),
        // NO_TCP_STATE is none of these.
        tcp_state: TCP_STATES.get(usize::from(entry.tcp_state)).copied(),
        // Until it is confirmed an entry's timeout is a length, not a time (__nf_conntrack_confirm adds the clock to it).
        timeout_left_s: jiffies_per_s
            .filter(|_| has(CONFIRMED))
            .map(|hz| (f64::from(entry.left) / f64::from(hz) * 10.0).round() / 10.0),
        age_s: None,
    }
}

fn hook_name(number: u8) -> Option<&'static str> {
    match number {
        hook::PRE_ROUTING => Some("prerouting"),
        hook::LOCAL_IN => Some("input"),
        hook::FORWARD => Some("forward"),
        hook::LOCAL_OUT => Some("output"),
        hook::POST_ROUTING => Some("postrouting"),
        _ => None,
    }
}

fn device(name: &[u8; 16]) -> Option<String> {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}
