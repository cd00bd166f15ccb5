//! Single packets for `--events`: what the kernel sent, in words.
//! What is unknown stays unknown: no guesses here.

use ctwatch_common::Cause;

use super::key::ClassifiedLoss;
use crate::contract::{
    Certainty, DropEvent, Entry, FillSource, Flow, InsertEvent, Packet, Process, Tuple, View, fill,
};
use crate::foreign::Foreign;
use crate::model::{self, EntryState, Hook, Insert, Loss, Protocol, TCP_STATES, Zone};

pub(super) fn drop_event(
    loss: &Loss,
    seen: &ClassifiedLoss,
    certainty: Certainty,
    sampled: (Option<u32>, Option<u32>),
) -> DropEvent {
    let Loss { time, cause: _, packet: lost, entry: state, sender: _, pushed_out_by, owner, jiffies_per_s } =
        loss;
    let (count, fill_source) = match (lost.count, sampled.0) {
        (Some(count), _) => (Some(count), Some(FillSource::Event)),
        (None, Some(count)) => (Some(count), Some(FillSource::Sample)),
        (None, None) => (None, None),
    };
    let max = lost.max.or(sampled.1);
    let device = lost.device.name.map(Foreign::from);
    let (input, output) = if lost.device.is_output { (None, device) } else { (device, None) };
    let tuple_of = |one: model::Tuple| tuple(lost.proto.unwrap_or_default(), one);
    let original = state.and(lost.tuple).map(tuple_of);
    let reply = state.and_then(|state| state.reply).map(tuple_of);
    let owner = owner.as_deref();
    DropEvent {
        time: *time,
        cause: seen.cause,
        certainty,
        packet: packet(lost),
        view: lost.tuple.map(|_| View::PreNat),
        nat: original.zip(reply).map(|(original, reply)| reply != mirror(original)),
        original,
        reply,
        entry: state.map(|state| entry(&state, *jiffies_per_s)),
        pushed_out_by: (seen.cause == Cause::Evicted).then(|| pushed_out_by.map(flow)),
        hook: lost.hook.map(Hook::name),
        input,
        output,
        count,
        max,
        fill: count.zip(max).and_then(|(count, max)| fill(count, max)),
        fill_source,
        process: owner.and_then(|owner| owner.process.as_ref()).map(Process::from),
        cgroup: owner.and_then(|owner| owner.cgroup.clone()),
        container: owner.and_then(|owner| owner.container.clone()),
        length: (lost.length != 0).then_some(lost.length),
    }
}

pub(super) fn insert_event(insert: &Insert) -> InsertEvent {
    InsertEvent { time: insert.time, packet: packet(&insert.packet) }
}

fn packet(packet: &model::Packet) -> Packet {
    let ports = packet.tuple.filter(|_| packet.proto.is_some_and(Protocol::has_ports));
    let icmp = packet.tuple.filter(|_| packet.is_icmp());
    Packet {
        netns: packet.netns,
        proto: packet.proto,
        src: packet.tuple.map(|tuple| tuple.src),
        sport: ports.map(|tuple| tuple.sport),
        dst: packet.tuple.map(|tuple| tuple.dst),
        dport: ports.map(|tuple| tuple.dport),
        icmp_type: icmp.map(|_| packet.icmp[0]),
        icmp_code: icmp.map(|_| packet.icmp[1]),
        icmp_id: icmp.map(|tuple| tuple.sport),
        loopback: packet.loopback(),
        zone_original: packet.zone.map(Zone::original),
        zone_reply: packet.zone.map(Zone::reply),
        unattributed: packet.tuple.is_none(),
    }
}

/// With ports where the protocol has some.
fn tuple(proto: Protocol, tuple: model::Tuple) -> Tuple {
    let ports = proto.has_ports();
    let model::Tuple { src, dst, sport, dport } = tuple;
    Tuple { src, sport: ports.then_some(sport), dst, dport: ports.then_some(dport) }
}

/// What the reply looks like without NAT.
const fn mirror(original: Tuple) -> Tuple {
    let Tuple { src, sport, dst, dport } = original;
    Tuple { src: dst, sport: dport, dst: src, dport: sport }
}

fn flow(flow: model::Flow) -> Flow {
    let icmp = flow.icmp();
    Flow {
        proto: flow.proto,
        tuple: tuple(flow.proto, flow.tuple),
        icmp_type: icmp.map(|(kind, _)| kind),
        icmp_code: icmp.map(|(_, code)| code),
        icmp_id: icmp.map(|_| flow.tuple.sport),
    }
}

fn entry(state: &EntryState, jiffies_per_s: Option<u32>) -> Entry {
    Entry {
        assured: state.is_assured(),
        seen_reply: state.seen_reply(),
        tcp_state: state.tcp_state.and_then(|number| TCP_STATES.get(usize::from(number)).copied()),
        // Until it is confirmed an entry's timeout is a length, not a time (__nf_conntrack_confirm adds the clock to it).
        timeout_left_s: jiffies_per_s
            .filter(|_| state.is_confirmed())
            .map(|hz| (f64::from(state.left_jiffies) / f64::from(hz) * 10.0).round() / 10.0),
        age_s: None,
    }
}
