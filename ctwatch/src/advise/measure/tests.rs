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
use crate::model::{Hook, Packet, Protocol, Tuple};
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
    /// When each is tried again, and its source port; by how often it was refused, so that the first one is due first.
    retries: [VecDeque<(f64, u16)>; AGAIN.len()],
    inserts: u64,
    refused: u64,
    next_port: u16,
    next_flow: f64,
}

/// As TCP does: after one, two, four seconds.
const AGAIN: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

impl Host {
    fn new(max: usize) -> Self {
        Self {
            now: 0.0,
            max,
            entries: VecDeque::new(),
            retries: Default::default(),
            inserts: 0,
            refused: 0,
            next_port: 1024,
            next_flow: 0.0,
        }
    }

    fn run(&mut self, until: f64, rate: f64, retries: usize, mut refusal: impl FnMut(u16, f64)) {
        while self.now < until {
            self.now += 0.005;
            while self.entries.front().is_some_and(|(expires, _)| *expires <= self.now) {
                self.entries.pop_front();
            }
            let mut tries: Vec<(u16, usize)> = Vec::new();
            for (refused, waiting) in self.retries.iter_mut().enumerate() {
                while let Some((_, port)) = waiting.pop_front_if(|(at, _)| *at <= self.now) {
                    tries.push((port, refused + 1));
                }
            }
            while self.next_flow <= self.now {
                self.next_flow += 1.0 / rate;
                tries.push((self.next_port, 0));
                self.next_port = self.next_port.wrapping_add(1);
            }
            for (port, tried) in tries {
                if self.entries.len() < self.max {
                    self.entries.push_back((self.now + f64::from(TIME_WAIT), port));
                    self.inserts += 1;
                } else {
                    self.refused += 1;
                    refusal(port, self.now);
                    if tried < retries {
                        self.retries[tried].push_back((self.now + AGAIN[tried], port));
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
            mono_us: 0,
            counters_from: None,
            time: at(self.now),
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
                proto: Protocol::TCP,
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

fn at(seconds: f64) -> Timestamp {
    Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs_f64(seconds)
}

fn refusal((port, time): (u16, f64)) -> Loss {
    let src = IpAddr::from(LOCALHOST);
    let packet = Packet {
        netns: NETNS,
        proto: Some(Protocol::TCP),
        tuple: Some(Tuple { src, dst: src, sport: port, dport: PORT }),
        is_loopback: true,
        ..Packet::default()
    };
    Loss::new(at(time), Cause::TableFull, packet)
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
    host.run(after, rate, retries, |_, _| {});
    let mut measure = Measure::new(NETNS, window, [(TimeoutKind::TimeWait, TIME_WAIT)].into(), counts_flows);
    measure.sample(&host.sample(0.0));
    while host.now < after + window - 0.01 {
        let mut refused = Vec::new();
        host.run(host.now + 1.0, rate, retries, |port, time| refused.push((port, time)));
        refused.into_iter().for_each(|one| measure.loss(&refusal(one)));
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
            services: vec![service], max: max as u32, ephemeral: None, gc: Gc::default(), unevictable: None,
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_service_that_is_refused_altogether_needs_its_rate_times_its_first_timeout(
        rate in 20.0..200.0f64, retries in prop::sample::select(vec![0_usize, 3, 6]), window in 12.0..40.0f64,
    ) {
        let service = the_one(watched(&mut Host::new(0), rate, retries, 140.0, window));
        prop_assert!((service.offered_per_s / rate - 1.0).abs() < 0.15, "{} of {rate}", service.offered_per_s);
        prop_assert_eq!(service.basis, Basis::Assumed);
        let demand = Demand { services: vec![service], max: 10, ephemeral: None, gc: Gc::default(), unevictable: None };
        let outcome = demand.after(&Changes::default());
        // And up to a minute's worth until gc comes.
        let truth = rate * 120.0;
        prop_assert!(outcome.needed > truth * 0.85 && outcome.needed < truth * 1.15 + rate * 62.0);
        prop_assert!(!outcome.fits_for_certain());
        let larger = demand.after(&Changes { max: Some(1 << 30), ..Changes::default() });
        prop_assert!(!larger.overflows() && !larger.fits_for_certain());
    }
}

#[test]
fn one_port_refused_altogether_in_one_direction_does_not_borrow_the_other_s_entries() {
    // Let in from elsewhere, refused on the way out.
    let mut measure = Measure::new(NETNS, 9.0, [(TimeoutKind::Udp, 30)].into(), true)
        .of_netns(Locals::new(&[]), FirstTimeouts::default());
    let slot = |kind: u8, count: u64| SlotSample {
        key: SlotKey { netns: NETNS.packed(), port: 53, proto: 17, kind },
        count,
        deletes: 0,
        failed: 0,
    };
    let mut sample = Host::new(0).sample(1.0);
    let (mut inserts, mut refused) = (0, 0);
    let out = |port: u16, time: f64| {
        let (src, dst) = (IpAddr::from([127, 0, 0, 9]), IpAddr::from([10, 0, 0, 2]));
        let tuple = Tuple { src, dst, sport: port, dport: 53 };
        let packet = Packet {
            netns: NETNS,
            proto: Some(Protocol::UDP),
            tuple: Some(tuple),
            hook: Some(Hook::LocalOut),
            ..Packet::default()
        };
        Loss::new(at(time), Cause::TableFull, packet)
    };
    for second in 0..=9_u16 {
        sample.time = at(second.into());
        sample.slots = vec![slot(KIND_FLOWS, inserts), slot(Cause::TableFull as u8, refused)];
        measure.sample(&sample);
        for index in (0..20).take_while(|_| second < 9) {
            measure.loss(&out(1024 + second * 20 + index, f64::from(second) + 0.5));
        }
        (inserts, refused) = (inserts + 10, refused + 20);
    }
    for left in 0..30 {
        for sport in 0..10 {
            let src = IpAddr::from([10, 0, 0, 2]).into();
            let entry =
                TableEntry { proto: Protocol::UDP, port: 53, left, src, sport, ..TableEntry::default() };
            measure.entry(&entry, Direction::In);
        }
    }
    let services = measure.services();
    let of = |direction: Direction| {
        services.iter().find(|one| one.direction == direction).unwrap_or_else(|| panic!("{services:?}"))
    };
    let (inward, outward) = (of(Direction::In), of(Direction::Out));
    assert_eq!((inward.refused_per_s, inward.basis), (0.0, Basis::Measured));
    assert!((inward.offered_per_s - 10.0).abs() < 0.1, "{inward:?}");
    assert_eq!((outward.admitted_per_s, outward.basis, outward.pairs), (0.0, Basis::AtLeast, Some(1)));
    assert!((outward.offered_per_s - 20.0).abs() < 0.5, "{outward:?}");
    assert_eq!(outward.residences[0].timeout, 30);
}

#[test]
fn what_is_left_of_a_burst_is_no_demand() {
    let mut host = Host::new(1 << 20);
    host.run(10.0, 200.0, 0, |_, _| {});
    // Nothing comes any more.
    host.next_flow = f64::INFINITY;
    let mut measure = Measure::new(NETNS, 6.0, [(TimeoutKind::TimeWait, TIME_WAIT)].into(), true);
    measure.sample(&host.sample(0.0));
    for second in 11..=16 {
        host.run(f64::from(second), 200.0, 0, |_, _| {});
        measure.sample(&host.sample(1.0));
    }
    host.dump(&mut measure);
    let service = the_one(measure.services());
    assert_eq!(service.offered_per_s, 0.0);
    assert!(service.entries >= 2_000, "{service:?}");
    assert!(service.earlier.is_some_and(|entries| entries > 1_500.0), "{service:?}");
    let demand =
        Demand { services: vec![service], max: 100, ephemeral: None, gc: Gc::default(), unevictable: None };
    assert_eq!(demand.after(&Changes::default()).needed, 0.0);
}

/// In a single run arrivals and timeouts may beat in time, so that the last entries don't tell of all others.
#[test]
fn those_that_got_in_at_last_and_are_gone_again_are_on_the_whole_no_further_flows() {
    const RUNS: u64 = 60;
    // Spread evenly over what there can be (multiples of irrational numbers, modulo 1).
    let spread = |run: u64, by: f64| (run as f64 * by).fract();
    let of_one = |run| {
        let rate = 40.0 + 60.0 * spread(run, 0.618_034);
        let room = 0.2 + 0.7 * spread(run, 0.414_214);
        let window = 50.0 + 40.0 * spread(run, 0.732_051);
        let max = (rate * f64::from(TIME_WAIT) * room) as usize;
        let retries = 1 + run as usize % 3;
        the_one(watched(&mut Host::new(max), rate, retries, 45.0, window)).offered_per_s / rate
    };
    let mean = (1..=RUNS).map(of_one).sum::<f64>() / RUNS as f64;
    assert!((mean - 1.0).abs() < 0.04, "offered {mean:.3} times what comes");
}
