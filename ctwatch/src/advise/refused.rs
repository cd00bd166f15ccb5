//! What refused packets tell of flows that never got in: where they were going, between whom, and how many were new.
//! Bounded, and pure: no entry of theirs exists, so how long one would stay is a sysctl's word.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::demand::Basis;
use crate::model::{Direction, Hook, Locals, Packet, Protocol, TableEntry, TimeoutKind, Timeouts, Tuple};

/// Ports and directions that are told apart.
const MOST: usize = 4096;
/// Pairs of addresses remembered of each.
const PAIRS: usize = 16;
/// Retries of a SYN come at intervals of 1, 2, 4 … seconds; after so many doublings a client has given up
/// (tcp_syn_retries is 6).
const DOUBLINGS: i32 = 6;

type Key = (Protocol, u16);

/// How many of these flows are new, each second. Of those first seen between `from` and `until` seconds after the window
/// began, `again` came a second time about a second later: new ones, whose clients try again. `once` did not: flows
/// whose clients gave up or got in, or old ones whose last try was before the window. As many of them are taken for old as
/// there would be if new ones came at this rate before, too; `persists` says which part of them goes on until it waits so
/// many doublings of a second.
pub(super) fn new_flows(once: f64, again: f64, from: f64, until: f64, persists: impl Fn(i32) -> f64) -> f64 {
    let span = until - from;
    let of_interval =
        |doublings: i32| persists(doublings) * (until.min(2_f64.powi(doublings)) - from).max(0.0);
    let old = again / span * (0..=DOUBLINGS).map(of_interval).sum::<f64>();
    (again + (once - old).max(0.0)) / span
}

/// The most doublings that a window of so many seconds can show: a client waits 1, 2, 4 … seconds, and half of the window
/// has to be left for those who begin.
pub(super) fn shown_doublings(until: f64) -> i32 {
    (1..=DOUBLINGS).take_while(|doublings| 2_f64.powi(doublings + 1) <= until / 2.0).last().unwrap_or(0)
}

/// When the try comes that a client has waited for through so many doublings, seconds after its first.
pub(super) fn try_after(doublings: i32) -> f64 {
    2_f64.powi(doublings + 1) - 1.0
}

/// Refused packets of one port in one direction.
#[derive(Debug, Default)]
struct Way {
    packets: u64,
    /// Different pairs of addresses; more than [`PAIRS`] aren't told apart.
    pairs: Vec<(IpAddr, IpAddr)>,
}

/// Where refused packets were going.
#[derive(Debug, Default)]
pub(super) struct RefusedFlows {
    locals: Option<Locals>,
    ways: HashMap<(Key, Direction), Way>,
}

impl RefusedFlows {
    pub fn new(locals: Locals) -> Self {
        Self { locals: Some(locals), ways: HashMap::new() }
    }

    /// Counts a packet; says where it was going.
    pub fn add(&mut self, key: Key, packet: &Packet, tuple: Tuple) -> Direction {
        let direction = self.direction(packet, tuple);
        if self.ways.len() < MOST || self.ways.contains_key(&(key, direction)) {
            let way = self.ways.entry((key, direction)).or_default();
            way.packets += 1;
            let pair = (tuple.src, tuple.dst);
            if way.pairs.len() <= PAIRS && !way.pairs.contains(&pair) {
                way.pairs.push(pair);
            }
        }
        direction
    }

    fn direction(&self, packet: &Packet, tuple: Tuple) -> Direction {
        if packet.is_loopback {
            return Direction::Loopback;
        }
        if let Some(locals) = &self.locals {
            let ends =
                TableEntry { src: tuple.src.into(), reply_src: tuple.dst.into(), ..TableEntry::default() };
            // Not over lo, though both ends are here: it was sent by way of another device.
            return match locals.direction(&ends) {
                Direction::Loopback => Direction::Out,
                direction => direction,
            };
        }
        match packet.hook {
            Some(Hook::LocalOut | Hook::PostRouting | Hook::TcEgress) => Direction::Out,
            Some(Hook::Forward) => Direction::Forwarded,
            _ => Direction::In,
        }
    }

    /// Which part of a port's refused packets went where.
    pub fn shares(&self, key: Key, loopback: bool) -> Vec<(Direction, f64)> {
        let found: Vec<(Direction, f64)> = Direction::ALL
            .into_iter()
            .filter(|direction| (*direction == Direction::Loopback) == loopback)
            .filter_map(|direction| Some((direction, self.ways.get(&(key, direction))?.packets as f64)))
            .collect();
        let sum: f64 = found.iter().map(|(_, packets)| packets).sum();
        found.into_iter().map(|(direction, packets)| (direction, packets / sum)).collect()
    }

    /// A refused packet has not been translated yet: what goes to this host by its address may be passed on, and then it
    /// belongs to the entries of those that were.
    pub fn goes_with(&self, direction: Direction, entries: &[f64; 4]) -> Direction {
        let has = |direction: Direction| entries[direction as usize] > 0.0;
        match direction {
            Direction::In if !has(Direction::In) && has(Direction::Forwarded) => Direction::Forwarded,
            direction => direction,
        }
    }

    /// Different pairs of addresses in these directions; none if they are many or unknown.
    pub fn pairs(&self, key: Key, directions: &[Direction]) -> Option<u32> {
        let of = |direction: &Direction| self.ways.get(&(key, *direction)).map_or(0, |way| way.pairs.len());
        let pairs: usize = directions.iter().map(of).sum();
        (1..=PAIRS).contains(&pairs).then_some(pairs as u32)
    }
}

/// The timeouts of first packets whose protocol has none among [`TimeoutKind`], by protocol number, seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FirstTimeouts(BTreeMap<u8, u32>);

impl FirstTimeouts {
    /// The sysctls behind `nf_conntrack_`, by protocol: the state after the first packet, and the kernel's default (5.10
    /// to 7.3; net/netfilter/nf_conntrack_proto_sctp.c, _dccp.c, _gre.c, _udp.c).
    pub const SYSCTLS: [(u8, &'static str, u32); 4] = [
        (33, "dccp_timeout_request", 240),
        (47, "gre_timeout", 30),
        (Protocol::SCTP.0, "sctp_timeout_cookie_wait", 3),
        (136, "udp_timeout", 30),
    ];

    /// Those that are known.
    #[must_use]
    pub fn new(known: impl IntoIterator<Item = (u8, u32)>) -> Self {
        Self(known.into_iter().collect())
    }

    /// How long an entry that a first packet made stays at least, and what such a number is worth.
    pub(super) fn of(&self, proto: Protocol, timeouts: &Timeouts) -> (TimeoutKind, u32, Basis) {
        let in_force = |kind: TimeoutKind, default: u32| timeouts.get(kind).unwrap_or(default);
        let other = Self::SYSCTLS.iter().find(|(number, ..)| *number == proto.0);
        if let Some((number, _, default)) = other {
            let seconds = self.0.get(number).copied().unwrap_or(*default);
            return (TimeoutKind::Generic, seconds, Basis::AtLeast);
        }
        match proto {
            // Answered and closed it waits in TIME_WAIT, refused in CLOSE: neither is a bound for the other.
            Protocol::TCP => (TimeoutKind::SynSent, in_force(TimeoutKind::SynSent, 120), Basis::Assumed),
            Protocol::UDP => (TimeoutKind::Udp, in_force(TimeoutKind::Udp, 30), Basis::AtLeast),
            Protocol::ICMP => (TimeoutKind::Icmp, in_force(TimeoutKind::Icmp, 30), Basis::AtLeast),
            Protocol::ICMPV6 => (TimeoutKind::Icmpv6, in_force(TimeoutKind::Icmpv6, 30), Basis::AtLeast),
            _ => (TimeoutKind::Generic, in_force(TimeoutKind::Generic, 600), Basis::AtLeast),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// First sightings between `from` and `until` of flows that come at a rate and try again `tries` times.
    fn sightings(rate: f64, tries: i32, from: f64, until: f64) -> (f64, f64) {
        let (mut once, mut again) = (0.0, 0.0);
        let mut begins = -200.0;
        while begins < until + 2.0 {
            let at = |index: i32| begins + (2_f64.powi(index) - 1.0);
            let first = (0..=tries).find(|index| at(*index) >= 0.0);
            if let Some(first) = first.filter(|index| (from..until).contains(&at(*index))) {
                let comes_soon = first < tries && at(first + 1) - at(first) <= 1.6;
                *(if comes_soon { &mut again } else { &mut once }) += 1.0;
            }
            begins += 1.0 / rate;
        }
        (once, again)
    }

    proptest! {
        #[test]
        fn each_flow_counts_once_whether_its_client_gives_up_at_once_or_never(
            rate in 5.0..200.0f64, patient: bool, window in 12.0..60.0f64,
        ) {
            let (from, until) = (window / 3.0, window - 1.6);
            let (once, again) = sightings(rate, if patient { 6 } else { 0 }, from, until);
            let found = new_flows(once, again, from, until, |_| 1.0);
            prop_assert!((found / rate - 1.0).abs() < 0.1, "{found} of {rate}");
        }

        #[test]
        fn those_that_give_up_at_once_count_beside_those_that_try_a_few_times(
            rate in 5.0..200.0f64, tries in 1..3_i32, window in 24.0..60.0f64,
        ) {
            let (from, until) = (window / 3.0, window - 1.6);
            let (few, again) = sightings(rate, tries, from, until);
            let (once, none) = sightings(rate, 0, from, until);
            // A client that tries so many times doesn't wait for longer.
            let persists = |doublings: i32| f64::from(u8::from(doublings.min(shown_doublings(until)) < tries));
            let found = new_flows(few + once, again + none, from, until, persists);
            prop_assert!((found / (2.0 * rate) - 1.0).abs() < 0.1, "{found} of {}", 2.0 * rate);
        }

        #[test]
        fn of_any_mix_it_is_between_those_that_try_again_and_all(
            once in 0.0..1e4f64, again in 0.0..1e4f64, from in 1.0..20.0f64, span in 1.0..40.0f64,
            persists in 0.0..=1.0f64,
        ) {
            let found = new_flows(once, again, from, from + span, |_| persists) * span;
            prop_assert!(found >= again - 1e-6 && found <= once + again + 1e-6);
        }
    }

    fn packet(loopback: bool, hook: Hook) -> Packet {
        Packet { is_loopback: loopback, hook: Some(hook), ..Packet::default() }
    }

    fn tuple(src: [u8; 4], dst: [u8; 4]) -> Tuple {
        Tuple { src: src.into(), dst: dst.into(), sport: 40_000, dport: 53 }
    }

    const DNS: Key = (Protocol::UDP, 53);

    #[test]
    fn a_port_s_refused_packets_go_the_ways_they_were_seen_to_go() {
        let mut flows = RefusedFlows::default();
        let (here, there) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        flows.add(DNS, &packet(false, Hook::LocalOut), tuple(here, there));
        (0..3).for_each(|_| {
            flows.add(DNS, &packet(false, Hook::PreRouting), tuple(there, here));
        });
        flows.add(DNS, &packet(true, Hook::LocalOut), tuple(here, here));
        assert_eq!(flows.shares(DNS, false), [(Direction::In, 0.75), (Direction::Out, 0.25)]);
        assert_eq!(flows.shares(DNS, true), [(Direction::Loopback, 1.0)]);
        assert_eq!(flows.shares((Protocol::TCP, 53), false), []);
        assert_eq!(flows.pairs(DNS, &[Direction::In]), Some(1));
        assert_eq!(flows.pairs((Protocol::TCP, 53), &[Direction::In]), None);
    }

    #[test]
    fn what_comes_to_an_address_of_this_host_may_be_passed_on() {
        let flows = RefusedFlows::default();
        assert_eq!(flows.goes_with(Direction::In, &[0.0, 0.0, 0.0, 5.0]), Direction::Forwarded);
        assert_eq!(flows.goes_with(Direction::In, &[0.0, 1.0, 0.0, 5.0]), Direction::In);
        assert_eq!(flows.goes_with(Direction::Out, &[0.0, 0.0, 0.0, 5.0]), Direction::Out);
    }

    #[test]
    fn addresses_tell_a_flow_that_is_passed_on() {
        let mut flows = RefusedFlows::new(Locals::default());
        let (one, other) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        assert_eq!(flows.add(DNS, &packet(false, Hook::PreRouting), tuple(one, other)), Direction::Forwarded);
        (0..40).for_each(|last| {
            flows.add(DNS, &packet(false, Hook::PreRouting), tuple(one, [10, 1, 0, last]));
        });
        assert_eq!(flows.pairs(DNS, &[Direction::Forwarded]), None, "they are many");
    }

    #[test]
    fn a_first_packet_s_timeout_is_the_netns_s_own_or_the_kernel_s_default() {
        let timeouts: Timeouts = [(TimeoutKind::Udp, 10)].into();
        let first = FirstTimeouts::new([(132, 7)]);
        let of = |proto: u8| first.of(Protocol(proto), &timeouts);
        assert_eq!(of(17), (TimeoutKind::Udp, 10, Basis::AtLeast));
        assert_eq!(of(6), (TimeoutKind::SynSent, 120, Basis::Assumed));
        assert_eq!(of(132), (TimeoutKind::Generic, 7, Basis::AtLeast));
        assert_eq!(of(47), (TimeoutKind::Generic, 30, Basis::AtLeast));
        assert_eq!(of(58).1, 30);
        assert_eq!(of(89).1, 600);
    }
}
