//! A simulated host whose demand is known, watched as a real one is.

use std::collections::VecDeque;

use ctwatch_common::slot::SlotKey;
use proptest::prelude::*;

use std::net::IpAddr;

use super::*;
use crate::advise::demand::Demand;
use crate::advise::gc::Gc;
use crate::advise::whatif::Changes;
use crate::model::{Direction, SlotSample};
use crate::model::{Packet, Protocol, Tuple};
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK};

const NETNS: NetnsId = NetnsId::from_packed(1);
const PORT: u16 = 6379;
const TIME_WAIT: u32 = 20;
const LOCALHOST: [u8; 4] = [127, 0, 0, 1];

/// Flows that come at a fixed rate into a table of fixed size, and try again when they are refused.
struct Host {
    now: f64,
    max: usize,
    /// When each expires, and its source port.
    entries: VecDeque<(f64, u16)>,
    retries: Vec<(f64, u16, usize)>,
    inserts: u64,
    refused: u64,
    next_port: u16,
    next_flow: f64,
}

/// As TCP does: after one, two, four seconds.
const AGAIN: [f64; 3] = [1.0, 2.0, 4.0];

impl Host {
    fn new(max: usize) -> Self {
        Self {
            now: 0.0,
            max,
            entries: VecDeque::new(),
            retries: Vec::new(),
            inserts: 0,
            refused: 0,
            next_port: 1024,
            next_flow: 0.0,
        }
    }

    fn run(&mut self, until: f64, rate: f64, retries: usize, mut refusal: impl FnMut(u16)) {
        while self.now < until {
            self.now += 0.005;
            while self.entries.front().is_some_and(|(expires, _)| *expires <= self.now) {
                self.entries.pop_front();
            }
            let (due, later) = self.retries.iter().partition(|(at, ..)| *at <= self.now);
            self.retries = later;
            let mut tries: Vec<(f64, u16, usize)> = due;
            while self.next_flow <= self.now {
                self.next_flow += 1.0 / rate;
                tries.push((self.now, self.next_port, 0));
                self.next_port = self.next_port.wrapping_add(1);
            }
            for (_, port, tried) in tries {
                if self.entries.len() < self.max {
                    self.entries.push_back((self.now + f64::from(TIME_WAIT), port));
                    self.inserts += 1;
                } else {
                    self.refused += 1;
                    refusal(port);
                    if tried < retries {
                        self.retries.push((self.now + AGAIN[tried], port, tried + 1));
                    }
                }
            }
        }
    }

    fn sample(&self, interval_s: f64) -> Sample {
        let slot = |kind: u8, count: u64| SlotSample {
            key: SlotKey { netns: NETNS.packed(), port: PORT, proto: 6, kind },
            count,
            deletes: 0,
            failed: 0,
        };
        Sample {
            counters_from: None,
            time: jiff::Timestamp::UNIX_EPOCH,
            interval_s,
            netns: Vec::new(),
            slots: vec![
                slot(KIND_FLOWS, self.inserts),
                slot(Cause::TableFull as u8 | KIND_LOOPBACK, self.refused),
            ],
            retired: Vec::new(),
            overflow: Default::default(),
            lost_events: Default::default(),
            ambiguous: 0,
            flows: Default::default(),
        }
    }

    fn dump(&self, measure: &mut Measure) {
        for (expires, port) in &self.entries {
            let entry = TableEntry {
                proto: 6,
                port: PORT,
                tcp_state: 7,
                assured: true,
                left: (expires - self.now) as u32,
                src: IpAddr::from(LOCALHOST).into(),
                dst: IpAddr::from(LOCALHOST).into(),
                sport: *port,
                ..TableEntry::default()
            };
            measure.entry(&entry, Direction::Loopback);
        }
    }
}

fn refusal(port: u16) -> Loss {
    let src = IpAddr::from(LOCALHOST);
    let packet = Packet {
        netns: NETNS,
        proto: Some(Protocol::TCP),
        tuple: Some(Tuple { src, dst: src, sport: port, dport: PORT }),
        is_loopback: true,
        ..Packet::default()
    };
    Loss::new(jiff::Timestamp::UNIX_EPOCH, Cause::TableFull, packet)
}

/// Watches it for so many seconds, after so many.
fn watched(host: &mut Host, rate: f64, retries: usize, after: f64, window: f64) -> Vec<Service> {
    watched_by(true, host, rate, retries, after, window)
}

fn watched_by(
    counts_flows: bool,
    host: &mut Host,
    rate: f64,
    retries: usize,
    after: f64,
    window: f64,
) -> Vec<Service> {
    host.run(after, rate, retries, |_| {});
    let mut measure = Measure::new(NETNS, window, [(TimeoutKind::TimeWait, TIME_WAIT)].into(), counts_flows);
    measure.sample(&host.sample(0.0));
    while host.now < after + window - 0.01 {
        let mut refused = Vec::new();
        host.run(host.now + 1.0, rate, retries, |port| refused.push(port));
        refused.into_iter().for_each(|port| measure.loss(&refusal(port)));
        measure.sample(&host.sample(1.0));
    }
    host.dump(&mut measure);
    measure.services()
}

fn the_one(services: Vec<Service>) -> Service {
    assert_eq!(services.len(), 1, "{services:?}");
    services.into_iter().next().expect("there is one")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_demand_behind_a_full_table_is_found_whatever_clients_try_again(
        rate in 40.0..400.0f64, room in 0.2..0.9f64, retries in 0..=3_usize,
    ) {
        let max = (rate * f64::from(TIME_WAIT) * room) as usize;
        let service = the_one(watched(&mut Host::new(max), rate, retries, 45.0, 15.0));
        prop_assert!(
            (service.offered_per_s / rate - 1.0).abs() < 0.15,
            "offered {:.1} of {rate:.1}, admitted {:.1}, refused {:.1}",
            service.offered_per_s, service.admitted_per_s, service.refused_per_s
        );
        // And so is the room it takes.
        let demand = Demand {
            services: vec![service], max: max as u32, ephemeral: None, gc: Gc::default(),
        };
        let truth = rate * f64::from(TIME_WAIT);
        let needed = demand.after(&Changes::default()).needed;
        prop_assert!(needed > truth && needed < truth * 1.5, "{needed} for {truth}");
    }

    #[test]
    fn without_refusals_what_comes_is_what_gets_in(rate in 40.0..400.0f64, seconds in 5.0..30.0f64) {
        // Also while the table has not yet filled up.
        let service = the_one(watched(&mut Host::new(1 << 20), rate, 3, seconds, 10.0));
        prop_assert_eq!(service.refused_per_s, 0.0);
        prop_assert!((service.admitted_per_s / rate - 1.0).abs() < 0.05);
        prop_assert_eq!(service.offered_per_s, service.admitted_per_s);
        prop_assert!((service.residences[0].per_s / rate - 1.0).abs() < 0.05, "{}", service.residences[0].per_s);
    }
}

#[test]
fn without_counted_flows_timeouts_tell_how_many_came() {
    let service = the_one(watched_by(false, &mut Host::new(1 << 20), 100.0, 0, 45.0, 10.0));
    assert!((service.admitted_per_s - 100.0).abs() < 5.0, "{}", service.admitted_per_s);
}

#[test]
fn a_port_that_never_gets_in_is_a_service_all_the_same() {
    let mut host = Host::new(0);
    let service = the_one(watched(&mut host, 100.0, 0, 5.0, 9.0));
    assert_eq!((service.entries, service.direction, service.admitted_per_s), (0, Direction::Loopback, 0.0));
    assert!((service.offered_per_s - 100.0).abs() < 5.0, "{}", service.offered_per_s);
}
