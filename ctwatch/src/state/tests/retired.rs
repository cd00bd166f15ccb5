//! Whether a key's counts are in a slot or retired makes no difference to what is said.
//! The same run twice: with slots that only grow, and with slots that are given back now and then.

use super::*;
use crate::model::{Census, FlowOffset};

/// A loss: netns, cause, port, flags of the kind, how many.
type Lost = (u32, usize, u16, u8, u64);
/// A flow: port, inserts, deletes.
type Moved = (u16, u64, u64);

#[derive(Clone, Debug)]
struct Second {
    lost: Vec<Lost>,
    moved: Vec<Moved>,
    /// Ports whose slots are given back in this second.
    given_back: Vec<u16>,
    /// Entries that a census finds at port 3.
    census: Option<u32>,
}

fn seconds() -> impl Strategy<Value = Vec<Second>> {
    let flags = prop::sample::select(vec![0, KIND_LOOPBACK, KIND_UNATTRIBUTED]);
    let lost = (1..3u32, 0..Cause::ALL.len(), 0..6u16, flags, 0..100u64);
    let second = (
        prop::collection::vec(lost, 0..12),
        prop::collection::vec((0..6u16, 0..50u64, 0..50u64), 0..6),
        prop::collection::vec(0..6u16, 0..4),
        prop::option::weighted(0.2, 0..500u32),
    );
    let second =
        second.prop_map(|(lost, moved, given_back, census)| Second { lost, moved, given_back, census });
    prop::collection::vec(second, 1..12)
}

fn census(entries: u32, counted: i64) -> Census {
    Census {
        netns: NetnsId::from_packed(1),
        bases: vec![FlowOffset { proto: Protocol::TCP, port: 3, entries: i64::from(entries) - counted }],
        replaces_offsets: true,
        exact: true,
        ..Census::default()
    }
}

/// The samples of these seconds, both ways.
fn samples(seconds: &[Second]) -> Vec<(Sample, Sample)> {
    let mut totals: BTreeMap<SlotKey, [u64; 2]> = BTreeMap::new();
    let mut gone: BTreeMap<SlotKey, [u64; 2]> = BTreeMap::new();
    let mut samples = Vec::new();
    for second in seconds {
        for (netns, cause, port, flags, count) in &second.lost {
            let kind = Cause::ALL[*cause] as u8 | flags;
            totals.entry(SlotKey { netns: *netns, port: *port, proto: 6, kind }).or_default()[0] += count;
        }
        for (port, inserts, deletes) in &second.moved {
            let total =
                totals.entry(SlotKey { netns: 1, port: *port, proto: 6, kind: KIND_FLOWS }).or_default();
            *total = [total[0] + inserts, total[1] + deletes];
        }
        let slot =
            |key: &SlotKey, [count, deletes]: [u64; 2]| SlotSample { key: *key, count, deletes, failed: 0 };
        let counted = totals
            .get(&SlotKey { netns: 1, port: 3, proto: 6, kind: KIND_FLOWS })
            .copied()
            .unwrap_or_default();
        let mut plain = sample(
            vec![netns(1, 0), netns(2, 0)],
            totals.iter().map(|(key, counts)| slot(key, *counts)).collect(),
        );
        // A census is measured by the flows counted so far; keys without entries add nothing to it, retired or not.
        plain
            .flows
            .censuses
            .extend(second.census.map(|entries| census(entries, counted[0] as i64 - counted[1] as i64)));
        let mut retiring = Sample { slots: Vec::new(), ..plain.clone() };
        for (key, total) in &totals {
            let before = gone.entry(*key).or_default();
            let now = [total[0] - before[0], total[1] - before[1]];
            let may_go = key.kind != KIND_FLOWS || now[0] == now[1];
            if second.given_back.contains(&key.port) && may_go {
                retiring.retired.push(slot(key, now));
                *before = *total;
            } else {
                retiring.slots.push(slot(key, now));
            }
        }
        samples.push((plain, retiring));
    }
    samples
}

proptest! {
    #[test]
    fn what_is_said_is_the_same(
        seconds in seconds(),
        by in prop::sample::select(vec![By::Port, By::Proto, By::Cause, By::Netns]),
        port in prop::option::of(0..6u16),
    ) {
        let ports = port.map(|port| PortRange { first: port, last: port });
        let filter = Filter { ports: ports.into_iter().collect(), ..Filter::default() };
        let mut states = [0; 2].map(|_| State::new(StateConfig { top: 1000, ..filtered(by, filter.clone()) }));
        for (plain, retiring) in samples(&seconds) {
            let [plain, retiring] = [states[0].sample(&plain), states[1].sample(&retiring)];
            prop_assert_eq!(serde_json::to_value(&plain).unwrap(), serde_json::to_value(&retiring).unwrap());
        }
        let [plain, retiring] = states.map(|state| serde_json::to_value(state.end(time(0))).unwrap());
        prop_assert_eq!(plain, retiring);
    }
}

#[test]
fn a_netns_that_is_gone_without_a_loss_is_forgotten_though_it_had_flows() {
    let mut state = State::new(settings(By::Port));
    let key = SlotKey { netns: 7, port: 80, proto: 6, kind: KIND_FLOWS };
    let flows = SlotSample { key, count: 5, deletes: 5, failed: 0 };
    let there = || NetnsSample { name: Some("short".into()), ..netns(7, 0) };
    let gone = || NetnsSample { gone: true, complete: true, ..there() };
    state.sample(&sample(vec![there()], vec![flows]));
    state.sample(&Sample { retired: vec![flows], ..sample(vec![there()], vec![]) });
    assert_eq!(state.namespaces.name_of(NetnsId::from_packed(7)), Some(&"short".into()));
    let tick = state.sample(&sample(vec![gone()], vec![]));
    assert!(tick.tables[0].gone);
    let tick = state.sample(&sample(vec![gone()], vec![]));
    assert!(tick.tables.is_empty());
    assert_eq!(state.namespaces.name_of(NetnsId::from_packed(7)), None);
}
