//! The whole state, as the loop drives it: samples and events in, reports out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use proptest::prelude::*;

use super::*;
use crate::contract::{Agreement, FillSource, Process, Row, View};
use crate::model::{
    Device, EntryState, Hook, KernelCounters, Name, NetnsAccess, NetnsSample, Packet, ProcessId, Protocol,
    Role, Tuple,
};

mod churn;
mod events;
mod owners;
mod retired;
mod sums;

const HOST: u32 = 4_026_531_840;
const FULL: Cause = Cause::TableFull;

fn settings(by: By) -> StateConfig {
    StateConfig {
        by,
        filter: Filter::default(),
        top: 20,
        drop_events: false,
        insert_events: false,
        count_flows: true,
        backend: Backend::Kprobe,
    }
}

fn filtered(by: By, filter: Filter) -> StateConfig {
    StateConfig { filter, ..settings(by) }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn slot(netns: u32, cause: Cause, proto: u8, port: u16, count: u64) -> SlotSample {
    SlotSample { key: SlotKey { netns, port, proto, kind: cause as u8 }, count, deletes: 0, failed: 0 }
}

fn on_loopback(slot: SlotSample) -> SlotSample {
    let kind = slot.key.kind | KIND_LOOPBACK;
    SlotSample { key: SlotKey { kind, ..slot.key }, ..slot }
}

fn unattributed(netns: u32, count: u64) -> SlotSample {
    let kind = FULL as u8 | KIND_UNATTRIBUTED;
    SlotSample { key: SlotKey { netns, port: 0, proto: 0, kind }, count, deletes: 0, failed: 0 }
}

fn drops(drop: u64) -> KernelCounters {
    KernelCounters { drop, ..KernelCounters::default() }
}

fn netns(id: u32, drop: u64) -> NetnsSample {
    NetnsSample {
        id: NetnsId::from_packed(id),
        name: (id == HOST).then(|| "host".into()),
        container: None,
        count: Some(900),
        max: Some(1000),
        before: drops(drop),
        after: drops(drop),
        gone: false,
        complete: false,
        access: NetnsAccess::Readable,
    }
}

fn sample(netns: Vec<NetnsSample>, slots: Vec<SlotSample>) -> Sample {
    Sample {
        counters_from: None,
        time: time(0),
        mono_us: 0,
        interval_s: 1.0,
        netns,
        slots,
        retired: Vec::new(),
        overflow: [0; CAUSES],
        lost_events: [0; CAUSES],
        ambiguous: 0,
        flows: FlowSample::default(),
    }
}

fn event(cause: Cause, src: &str, sport: u16, dst: &str, dport: u16) -> Loss {
    Loss::new(time(0), cause, packet(src, sport, dst, dport))
}

fn packet(src: &str, sport: u16, dst: &str, dport: u16) -> Packet {
    Packet {
        at_ns: 1,
        netns: NetnsId::from_packed(HOST),
        proto: Some(Protocol::TCP),
        tuple: Some(Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap(), sport, dport }),
        is_loopback: true,
        hook: Some(Hook::LocalOut),
        device: Device { name: Some(Name::new(b"lo")), ifindex: 1, is_output: true },
        count: Some(1000),
        max: Some(1000),
        length: 60,
        ..Packet::default()
    }
}

fn rest(rows: &[Row]) -> Vec<&Row> {
    rows.iter().filter(|row| row.rest).collect()
}

#[test]
fn the_story_redis_on_loopback_suffers_most() {
    let mut state = State::new(settings(By::Port));
    let redis = |count| on_loopback(slot(HOST, FULL, 6, 6379, count));
    state.sample(&sample(vec![netns(HOST, 110)], vec![redis(100), slot(HOST, FULL, 6, 443, 10)]));
    let tick =
        state.sample(&sample(vec![netns(HOST, 1_411)], vec![redis(1_400), slot(HOST, FULL, 6, 443, 11)]));
    assert_eq!(tick.rows.len(), 2);
    let row = &tick.rows[0];
    assert_eq!((row.port, row.service, row.loopback), (Some(6379), Some(Some("redis")), Some(true)));
    assert_eq!((row.losses, row.losses_total, row.exact), (1_300, 1_400, true));
    assert_eq!(tick.counted.of(FULL), 1_411);
    assert!(tick.unexplained.is_zero());
    assert_eq!(tick.tables[0].packets_lost, 1_301);
}

#[test]
fn a_key_that_lost_nothing_in_the_tick_has_no_row_but_is_in_the_end() {
    let mut state = State::new(settings(By::Port));
    let all = || sample(vec![netns(HOST, 5)], vec![slot(HOST, FULL, 6, 80, 5)]);
    state.sample(&all());
    assert!(state.sample(&all()).rows.is_empty());
    let end = state.end(time(2));
    assert_eq!((end.rows[0].losses, end.rows[0].losses_total), (5, 5));
    assert_eq!(end.duration_s, 2.0);
}

#[test]
fn packets_and_entries_never_share_a_row() {
    let mut state = State::new(StateConfig { top: 1, ..settings(By::Port) });
    let slots = vec![
        slot(HOST, FULL, 6, 80, 50),
        slot(HOST, FULL, 6, 81, 5),
        slot(HOST, Cause::Clash, 17, 53, 4),
        slot(HOST, Cause::Evicted, 6, 80, 3),
    ];
    let tick = state.sample(&sample(vec![netns(HOST, 59)], slots));
    let rest = rest(&tick.rows);
    assert_eq!(rest.iter().map(|row| row.losses).collect::<Vec<_>>(), [9, 3]);
    assert_eq!(rest.iter().map(|row| row.cause).collect::<Vec<_>>(), [None, Some(Cause::Evicted)]);
}

#[test]
fn two_slots_of_one_key_are_one_row() {
    let mut state = State::new(settings(By::Port));
    let slots = vec![slot(HOST, FULL, 6, 80, 2), slot(HOST, FULL, 6, 80, 3)];
    let tick = state.sample(&sample(vec![netns(HOST, 5)], slots));
    assert_eq!(tick.rows.len(), 1);
    assert_eq!(tick.rows[0].losses, 5);
}

#[test]
fn icmp_rows_have_type_and_code() {
    let mut state = State::new(settings(By::Port));
    let tick = state.sample(&sample(vec![netns(HOST, 1)], vec![slot(HOST, FULL, 1, 8 << 8, 1)]));
    let row = &tick.rows[0];
    assert_eq!((row.icmp_type, row.icmp_code, row.port, row.service), (Some(8), Some(0), None, None));
}

#[test]
fn a_port_filter_leaves_out_what_has_no_port() {
    let ports = vec![PortRange { first: 0, last: u16::MAX }];
    let mut state = State::new(filtered(By::Port, Filter { ports, ..Filter::default() }));
    let slots = vec![slot(HOST, FULL, 1, 8 << 8, 1), slot(HOST, FULL, 6, 80, 1)];
    let tick = state.sample(&sample(vec![netns(HOST, 2)], slots));
    assert_eq!(tick.rows.len(), 1);
    assert_eq!(tick.counted.of(FULL), 2, "filters touch rows only");
}

#[test]
fn losses_of_unknown_port_have_their_row_and_take_exactness_from_the_others() {
    let mut state = State::new(settings(By::Port));
    let slots = vec![unattributed(HOST, 3), slot(HOST, FULL, 6, 80, 10)];
    let tick = state.sample(&sample(vec![netns(HOST, 13)], slots));
    assert_eq!(tick.rows[0].port, Some(80));
    assert!(!tick.rows[0].exact);
    assert!(tick.rows[1].unattributed && tick.rows[1].exact);
    assert_eq!(tick.rows[1].port, None);
    assert!(tick.unexplained.is_zero());
}

#[test]
fn rows_by_cause_need_no_port() {
    let mut state = State::new(settings(By::Cause));
    let mut sample = sample(vec![netns(HOST, 17)], vec![unattributed(HOST, 3), slot(HOST, FULL, 6, 80, 10)]);
    sample.overflow[FULL as usize] = 4;
    let tick = state.sample(&sample);
    assert_eq!(tick.rows.len(), 1);
    assert_eq!((tick.rows[0].losses, tick.rows[0].exact), (17, true));
}

#[test]
fn overflow_is_a_row_of_its_own_so_that_rows_add_up() {
    let mut state = State::new(settings(By::Port));
    let mut sample = sample(vec![netns(HOST, 14)], vec![slot(HOST, FULL, 6, 80, 10)]);
    sample.overflow[FULL as usize] = 4;
    let tick = state.sample(&sample);
    assert!(!tick.rows[0].exact, "a port with a counter may have been without one before");
    assert!(tick.rows[1].rest && tick.rows[1].overflow);
    assert_eq!(tick.rows[1].losses, 4);
    assert_eq!(tick.counted.of(FULL), 14);
    assert!(tick.unexplained.is_zero());
    let again = state.sample(&sample);
    assert!(again.rows.is_empty(), "it counts once");
}

#[test]
fn rows_by_address_come_from_events_and_admit_lost_ones() {
    let mut state = State::new(settings(By::Src));
    for _ in 0..3 {
        assert!(state.loss(&event(FULL, "127.0.0.1", 40_000, "127.0.0.1", 6379)).is_none());
    }
    let mut sample = sample(vec![netns(HOST, 4)], vec![slot(HOST, FULL, 6, 6379, 4)]);
    sample.lost_events[FULL as usize] = 1;
    let tick = state.sample(&sample);
    assert_eq!(tick.rows[0].src, Some("127.0.0.1".parse().unwrap()));
    assert_eq!((tick.rows[0].losses, tick.rows[0].exact), (3, false));
    assert_eq!((tick.counted.of(FULL), tick.lost_events), (4, 1));
    assert!(tick.unexplained.is_zero(), "the counters lost nothing");
}

#[test]
fn an_address_filter_makes_port_rows_come_from_events() {
    let src = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let mut state = State::new(filtered(By::Port, Filter { src, ..Filter::default() }));
    state.loss(&event(FULL, "10.1.2.3", 1, "10.0.0.1", 80));
    state.loss(&event(FULL, "192.168.0.1", 1, "10.0.0.1", 80));
    state.loss(&event(FULL, "fd00::1", 1, "fd00::2", 80));
    let tick = state.sample(&sample(vec![netns(HOST, 3)], vec![slot(HOST, FULL, 6, 80, 3)]));
    assert_eq!((tick.rows.len(), tick.rows[0].port, tick.rows[0].losses), (1, Some(80), 2));
}

#[test]
fn a_loss_without_addresses_may_have_come_from_anywhere() {
    let src = vec!["10.0.0.0/8".parse().unwrap()];
    let mut state = State::new(filtered(By::Port, Filter { src, ..Filter::default() }));
    let mut blind = event(FULL, "10.1.2.3", 1, "10.0.0.1", 80);
    blind.packet.tuple = None;
    state.loss(&blind);
    state.loss(&event(FULL, "10.1.2.3", 1, "10.0.0.1", 80));
    let tick = state.sample(&sample(vec![netns(HOST, 2)], vec![]));
    assert_eq!(tick.rows.iter().filter(|row| row.unattributed).count(), 1);
    assert!(tick.rows.iter().filter(|row| !row.unattributed).all(|row| !row.exact));
}

#[test]
fn a_flow_row_has_the_whole_tuple() {
    let mut state = State::new(settings(By::Flow));
    state.loss(&event(FULL, "::1", 40_000, "::1", 6379));
    let tick = state.sample(&sample(vec![netns(HOST, 1)], vec![]));
    let row = &tick.rows[0];
    assert_eq!((row.sport, row.dport, row.port), (Some(40_000), Some(6379), Some(6379)));
    assert_eq!(row.dst, Some("::1".parse().unwrap()));
}

#[test]
fn invalid_packets_are_no_losses_unless_asked_for() {
    let slots = || vec![slot(HOST, Cause::Invalid, 6, 80, 9)];
    let tick = State::new(settings(By::Port)).sample(&sample(vec![netns(HOST, 0)], slots()));
    assert!(tick.rows.is_empty());
    assert_eq!(tick.tables[0].packets_lost, 0);
    let asked = filtered(By::Port, Filter { causes: vec![Cause::Invalid], ..Filter::default() });
    let tick = State::new(asked).sample(&sample(vec![netns(HOST, 0)], slots()));
    assert_eq!(tick.rows[0].losses, 9);
    assert!(tick.unexplained.is_zero());
}

#[test]
fn what_the_kernel_counted_alone_is_unexplained_and_names_its_netns() {
    let mut state = State::new(settings(By::Port));
    let tick = state.sample(&sample(vec![netns(HOST, 5), netns(7, 3)], vec![slot(HOST, FULL, 6, 80, 5)]));
    assert_eq!(tick.unexplained.drop, 3);
    assert_eq!(tick.tables[0].unexplained, None);
    assert_eq!(tick.tables[1].unexplained.unwrap().drop, 3);
}

#[test]
fn a_netns_that_vanished_says_so_once_and_stays_in_the_sums() {
    let mut state = State::new(settings(By::Port));
    let slots = || vec![slot(7, FULL, 6, 80, 5)];
    state.sample(&sample(vec![netns(HOST, 0), netns(7, 4)], slots()));
    let last =
        state.sample(&sample(vec![netns(HOST, 0), NetnsSample { gone: true, ..netns(7, 4) }], slots()));
    assert!(last.tables.iter().any(|table| table.netns == NetnsId::from_packed(7) && table.gone));
    let after =
        state.sample(&sample(vec![netns(HOST, 0), NetnsSample { gone: true, ..netns(7, 4) }], slots()));
    assert_eq!(after.tables.len(), 1);
    assert_eq!((after.counted.of(FULL), after.kernel_counters.drop), (5, 4));
    assert!(after.unexplained.is_zero(), "its last loss was counted by the kernel after the last look");
    assert_eq!(state.end(time(3)).netns_gone, 1);
}

#[test]
fn a_netns_that_dies_without_a_loss_is_counted_once_and_forgotten() {
    let mut state = State::new(settings(By::Port));
    let gone = || NetnsSample { gone: true, ..netns(7, 2) };
    state.sample(&sample(vec![netns(7, 2)], vec![]));
    for _ in 0..3 {
        let tick = state.sample(&sample(vec![gone()], vec![]));
        assert_eq!((tick.kernel_counters.drop, tick.unexplained.drop), (2, 2));
    }
    assert_eq!(state.end(time(4)).netns_gone, 1);
}

#[test]
fn the_last_counts_of_a_netns_may_come_after_it_was_found_gone() {
    let gone = |id, drop, complete| NetnsSample { gone: true, complete, ..netns(id, drop) };
    let slots = || vec![slot(7, FULL, 6, 80, 5)];
    let mut state = State::new(settings(By::Port));
    state.sample(&sample(vec![netns(7, 4), netns(8, 0)], slots()));
    state.sample(&sample(vec![gone(7, 4, false), gone(8, 0, false)], slots()));
    assert_eq!(state.end(time(3)).netns_gone, 2);
    // One more of ours and two that nobody saw, told when the kernel cleaned up.
    let tick = state.sample(&sample(vec![gone(7, 5, true), gone(8, 2, true)], slots()));
    assert_eq!((tick.kernel_counters.drop, tick.unexplained.drop), (7, 2));
    assert_eq!(state.end(time(4)).netns_gone, 0);
}

#[test]
fn samples_may_stop_telling_of_a_netns_that_is_gone() {
    let gone = |id, drop, complete| NetnsSample { gone: true, complete, ..netns(id, drop) };
    let slots = || vec![slot(7, FULL, 6, 80, 5)];
    let mut state = State::new(settings(By::Port));
    state.sample(&sample(vec![netns(7, 5), netns(8, 2), netns(9, 1)], slots()));
    // The first lost something of ours, the second only by the kernel's account, of the third the last counts never come.
    let last = vec![gone(7, 5, true), gone(8, 2, true), gone(9, 1, false)];
    for _ in 0..3 {
        state.sample(&sample(last.clone(), slots()));
    }
    for _ in 0..3 {
        let tick = state.sample(&sample(vec![], slots()));
        assert_eq!((tick.counted.of(FULL), tick.kernel_counters.drop, tick.unexplained.drop), (5, 8, 3));
        assert_eq!(state.end(time(9)).netns_gone, 1);
    }
}

#[test]
fn losses_in_a_netns_that_cannot_be_read_are_neither_unexplained_nor_gone() {
    let unreadable = NetnsSample { access: NetnsAccess::Unreadable, count: None, ..netns(7, 0) };
    let mut state = State::new(settings(By::Port));
    for losses in [5, 9] {
        let tick = state
            .sample(&sample(vec![netns(HOST, 0), unreadable.clone()], vec![slot(7, FULL, 6, 80, losses)]));
        assert!(tick.unexplained.is_zero());
        let table = tick.tables.iter().find(|table| table.not_readable).expect("it is told of");
        assert_eq!((table.netns, table.gone, table.count), (NetnsId::from_packed(7), false, None));
    }
    assert_eq!(state.end(time(9)).netns_gone, 0);
}

#[test]
fn a_reused_inode_number_starts_from_what_its_forerunner_left() {
    let mut state = State::new(settings(By::Port));
    state.sample(&sample(vec![netns(7, 5)], vec![slot(7, FULL, 6, 80, 5)]));
    state.sample(&sample(vec![], vec![slot(7, FULL, 6, 80, 5)]));
    state.sample(&sample(vec![], vec![slot(7, FULL, 6, 80, 5)]));
    let tick = state.sample(&sample(vec![netns(7, 2)], vec![slot(7, FULL, 6, 80, 7)]));
    assert_eq!((tick.counted.of(FULL), tick.kernel_counters.drop), (7, 7));
    assert!(tick.unexplained.is_zero());
    assert_eq!(tick.tables[0].packets_lost, 2);
}

#[test]
fn the_tracepoint_backend_claims_no_more_than_the_kernel_counted() {
    let mut state = State::new(StateConfig { backend: Backend::Tracepoint, ..settings(By::Port) });
    let tick = state.sample(&sample(vec![netns(HOST, 8)], vec![slot(HOST, FULL, 6, 80, 10)]));
    assert_eq!((tick.counted.of(FULL), tick.ambiguous, tick.unexplained.drop), (8, Some(2), 0));
    assert_eq!((tick.rows[0].certainty, tick.rows[0].exact), (Certainty::Inferred, false));
    assert_eq!(tick.tables[0].new_per_s, None);
}

#[test]
fn flows_become_rates_of_their_netns() {
    let mut state = State::new(settings(By::Port));
    let flows = |count, deletes| SlotSample {
        key: SlotKey { netns: HOST, port: 80, proto: 6, kind: KIND_FLOWS },
        count,
        deletes,
        failed: 0,
    };
    state.sample(&sample(vec![netns(HOST, 0)], vec![flows(100, 50)]));
    let mut next = sample(vec![netns(HOST, 0)], vec![flows(300, 80)]);
    next.interval_s = 2.0;
    let table = &state.sample(&next).tables[0];
    assert_eq!((table.new_per_s, table.gone_per_s, table.fill), (Some(100.0), Some(15.0), Some(0.9)));
}

#[test]
fn the_counters_backend_shows_what_the_kernel_lost() {
    let mut state = State::new(StateConfig { backend: Backend::Counters, ..settings(By::Port) });
    state.sample(&sample(vec![netns(HOST, 8)], vec![]));
    let tick = state.sample(&sample(vec![netns(HOST, 12)], vec![]));
    assert_eq!(tick.tables[0].packets_lost, 4);
    assert_eq!(tick.unexplained.drop, 12);
}

#[test]
fn a_table_without_limit_has_no_fill() {
    let unlimited = NetnsSample { max: Some(0), ..netns(HOST, 0) };
    let tick = State::new(settings(By::Port)).sample(&sample(vec![unlimited], vec![]));
    assert_eq!(tick.tables[0].fill, None);
}

#[test]
fn rows_by_netns_have_its_name() {
    let mut state = State::new(settings(By::Netns));
    let slots = vec![slot(HOST, FULL, 6, 80, 5), slot(7, FULL, 6, 80, 3)];
    let tick = state.sample(&sample(vec![netns(HOST, 5), netns(7, 3)], slots));
    assert_eq!(tick.rows[0].name, Some(Some("host".into())));
    assert_eq!(tick.rows[1].name, Some(None));
}

#[test]
fn memory_stays_bounded_with_ten_times_more_tuples_than_keys() {
    let mut state = State::new(settings(By::Flow));
    let mut loss = event(FULL, "10.0.0.1", 1, "10.0.0.2", 80);
    for tuple in 0..600_000u32 {
        loss.packet.tuple.as_mut().unwrap().src = IpAddr::from(tuple.to_be_bytes());
        state.loss(&loss);
    }
    let tick = state.sample(&sample(vec![netns(HOST, 600_000)], vec![slot(HOST, FULL, 6, 80, 600_000)]));
    assert_eq!(tick.rows.iter().map(|row| row.losses).sum::<u64>(), 600_000);
    assert_eq!(rest(&tick.rows).len(), 1);
}
