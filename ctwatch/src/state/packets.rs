//! Single packets for `--events`: what the kernel sent, in words.
//! What is unknown stays unknown: no guesses here.

use ctwatch_common::event::{LossEvent, flag, hook};
use jiff::Timestamp;

use super::key::{self, Facts, Seen};
use super::proto::Protocol;
use super::report::{Certainty, DropEvent, FillSource, InsertEvent, Packet, fill};

pub(super) fn drop_event(
    time: Timestamp,
    event: &LossEvent,
    seen: &Seen,
    certainty: Certainty,
    sampled: (Option<u32>, Option<u32>),
) -> DropEvent {
    let known = |bit: u8, value: u32| (event.flags & bit != 0).then_some(value);
    let (count, fill_source) = match (known(flag::COUNT, event.count), sampled.0) {
        (Some(count), _) => (Some(count), Some(FillSource::Event)),
        (None, Some(count)) => (Some(count), Some(FillSource::Sample)),
        (None, None) => (None, None),
    };
    let max = known(flag::MAX, event.max).or(sampled.1);
    let device = device(&event.device);
    let (input, output) = if event.flags & flag::OUT != 0 { (None, device) } else { (device, None) };
    DropEvent {
        time,
        cause: seen.cause,
        certainty,
        packet: packet(event, &seen.facts),
        hook: hook_name(event.hook),
        input,
        output,
        count,
        max,
        fill: count.zip(max).and_then(|(count, max)| fill(count, max)),
        fill_source,
        process: None,
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
