//! Single events: what they say of their entry, and which of them are shown.
//! Through the whole state.

use super::*;
use crate::contract::DropEvent;

#[test]
fn an_event_takes_its_fill_from_the_last_sample_if_it_has_none() {
    let mut state = State::new(StateConfig { drop_events: true, ..settings(By::Port) });
    state.sample(&sample(vec![netns(HOST, 0)], vec![]));
    let mut loss = event(FULL, "127.0.0.1", 40_000, "127.0.0.1", 6379);
    let Some(Event::Drop(seen)) = state.loss(&loss) else { panic!("events are asked for") };
    assert_eq!((seen.count, seen.fill, seen.fill_source), (Some(1000), Some(1.0), Some(FillSource::Event)));
    assert_eq!(
        (seen.hook, seen.output.as_ref().map(|text| text.raw()), seen.input),
        (Some("output"), Some("lo"), None)
    );
    (loss.packet.count, loss.packet.max, loss.packet.hook) = (None, None, None);
    let Some(Event::Drop(seen)) = state.loss(&loss) else { panic!("events are asked for") };
    assert_eq!((seen.count, seen.fill, seen.fill_source), (Some(900), Some(0.9), Some(FillSource::Sample)));
    assert_eq!(seen.hook, None);
}

/// An eviction of 10.0.0.1:40000 -> 10.0.0.9:80, which a service address had been translated to.
fn evicted() -> Loss {
    let mut loss = event(Cause::Evicted, "10.0.0.1", 40_000, "10.96.0.1", 80);
    loss.packet.hook = None;
    loss.entry = Some(EntryState {
        reply: packet("10.0.0.9", 8080, "10.0.0.1", 40_000).tuple,
        status: 0b1010,
        tcp_state: Some(7),
        left_jiffies: 21_500,
    });
    loss
}

fn shown(loss: &Loss) -> DropEvent {
    let mut state = State::new(StateConfig { drop_events: true, ..settings(By::Port) });
    match state.loss(loss) {
        Some(Event::Drop(event)) => event,
        _ => panic!("events are asked for"),
    }
}

#[test]
fn an_event_has_both_directions_of_its_entry_and_says_whether_nat_is_between() {
    let mut loss = evicted();
    let seen = shown(&loss);
    assert_eq!(seen.packet.dst, Some("10.96.0.1".parse().unwrap()), "the original direction");
    let reply = contract::Tuple {
        src: "10.0.0.9".parse().unwrap(),
        sport: Some(8080),
        dst: "10.0.0.1".parse().unwrap(),
        dport: Some(40_000),
    };
    assert_eq!((seen.nat, seen.reply, seen.view), (Some(true), Some(reply), Some(View::PreNat)));
    loss.entry.as_mut().unwrap().reply = packet("10.96.0.1", 80, "10.0.0.1", 40_000).tuple;
    assert_eq!(shown(&loss).nat, Some(false));
    let refused = shown(&event(FULL, "10.0.0.1", 1, "10.0.0.2", 80));
    assert_eq!((refused.nat, refused.original, refused.reply, refused.entry), (None, None, None, None));
    assert_eq!(refused.pushed_out_by, None, "only evictions have one");
}

#[test]
fn an_entry_s_state_and_time_are_told_as_far_as_they_are_known() {
    let mut loss = evicted();
    let entry = shown(&loss).entry.unwrap();
    assert_eq!((entry.seen_reply, entry.assured, entry.tcp_state), (true, false, Some("TIME_WAIT")));
    assert_eq!(entry.timeout_left_s, None, "nobody knows yet how long a jiffy is");
    loss.jiffies_per_s = Some(250);
    assert_eq!(shown(&loss).entry.unwrap().timeout_left_s, Some(86.0));
    // Not in the table yet: its timeout isn't a point in time.
    loss.entry = Some(EntryState { status: 0, tcp_state: None, ..loss.entry.unwrap() });
    let entry = shown(&loss).entry.unwrap();
    assert_eq!((entry.timeout_left_s, entry.tcp_state, entry.age_s), (None, None, None));
}

#[test]
fn an_eviction_names_the_flow_it_made_room_for() {
    let mut loss = evicted();
    assert_eq!(shown(&loss).pushed_out_by, Some(None));
    loss.pushed_out_by = packet("10.0.0.3", 5, "10.0.0.4", 443).flow();
    let flow = shown(&loss).pushed_out_by.unwrap().unwrap();
    assert_eq!((flow.proto, flow.tuple.sport, flow.tuple.dport), (Protocol::TCP, Some(5), Some(443)));
    assert_eq!((flow.icmp_type, flow.icmp_code, flow.icmp_id), (None, None, None));
}

#[test]
fn an_eviction_for_a_ping_names_its_type_code_and_id() {
    let mut loss = evicted();
    let ping = Packet { proto: Some(Protocol(1)), icmp: [8, 1], ..packet("10.0.0.3", 77, "10.0.0.4", 0) };
    loss.pushed_out_by = ping.flow();
    let flow = shown(&loss).pushed_out_by.unwrap().unwrap();
    assert_eq!((flow.icmp_type, flow.icmp_code, flow.icmp_id), (Some(8), Some(1), Some(77)));
    assert_eq!((flow.tuple.sport, flow.tuple.dport), (None, None));
    // Recordings of earlier versions don't have it.
    loss.pushed_out_by.as_mut().unwrap().tuple.dport = 0;
    assert_eq!(shown(&loss).pushed_out_by.unwrap().unwrap().icmp_type, None);
}

#[test]
fn filters_act_on_events_too() {
    let filter = Filter { ports: vec![PortRange { first: 80, last: 80 }], ..Filter::default() };
    let mut state =
        State::new(StateConfig { drop_events: true, insert_events: true, ..filtered(By::Port, filter) });
    assert!(state.loss(&event(FULL, "127.0.0.1", 1, "127.0.0.1", 6379)).is_none());
    assert!(state.loss(&event(FULL, "127.0.0.1", 1, "127.0.0.1", 80)).is_some());
    let insert = Insert { time: time(0), packet: packet("127.0.0.1", 1, "127.0.0.1", 80) };
    assert!(matches!(state.insert(&insert), Some(Event::Insert(_))));
}
