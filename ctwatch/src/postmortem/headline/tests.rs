//! The headline of every kind of incident, word for word.
//! And for any facts: nothing is claimed that they don't hold.

use super::*;
use crate::model::Protocol;
use jiff::tz::TimeZone;
use proptest::prelude::*;

fn at(second: i64) -> At {
    let time = Timestamp::from_second(1_700_000_000 + second).unwrap();
    At { time, place_us: second * 1_000_000 }
}

const REDIS: ServicePort = ServicePort { proto: Protocol::TCP, port: 6379 };
const HTTPS: ServicePort = ServicePort { proto: Protocol::TCP, port: 443 };
const DNS: ServicePort = ServicePort { proto: Protocol::UDP, port: 53 };

const fn loopback(port: ServicePort) -> Service {
    Service::Known { port, loopback: true }
}

const fn remote(port: ServicePort) -> Service {
    Service::Known { port, loopback: false }
}

/// 22:14:20 to 22:14:40.
fn losing() -> Losing {
    Losing {
        from: at(60),
        to: at(80),
        seconds: 20.0,
        tick_s: 1.0,
        is_first: false,
        is_last: false,
        is_untimed: false,
    }
}

/// 94 % of the entries of the table are the service's in TIME_WAIT; listed 10 s before.
fn held(port: ServicePort) -> Occupancy {
    let time_wait = Some((0.94, 0.97, at(65).time, 10.0));
    Occupancy::Known { netns: "host".into(), port, share: 0.96, exact: true, time_wait }
}

/// The story's night.
fn night() -> Facts {
    Facts {
        span: Some((at(0), at(200))),
        losing: Some(losing()),
        by_cause: vec![(Cause::TableFull, 12_480)],
        packets: vec![(loopback(REDIS), 12_480)],
        netns: vec!["host".into()],
        peak: Some((1.0, "host".into())),
        occupancy: held(REDIS),
        ..Facts::default()
    }
}

fn said(facts: &Facts) -> String {
    facts.sentence(&Clock::of_span(&TimeZone::UTC, facts.span.map(|(from, to)| (from.time, to.time))))
}

#[test]
fn the_night_is_a_sentence_that_a_manager_can_read() {
    assert_eq!(
        said(&night()),
        "From 22:14:20 to 22:14:40 UTC, 12,480 packets to 6379/tcp (redis, loopback) were refused because the table \
         was full; 94 % of the table were TIME_WAIT entries of the same service (as listed at 22:14:25)."
    );
}

#[test]
fn minutes_are_enough_for_a_long_one_and_hold_all_of_it() {
    let losing = Losing { to: at(455), seconds: 395.0, ..losing() };
    let facts = Facts { span: Some((at(0), at(900))), losing: Some(losing), ..night() };
    assert!(said(&facts).starts_with("From 22:14 to 22:21 UTC, 12,480 packets"), "{}", said(&facts));
    let two_days = Facts { span: Some((at(0), at(9_000))), ..facts };
    assert!(
        said(&two_days).starts_with("From 2023-11-14 22:14 to 2023-11-14 22:21 UTC, "),
        "{}",
        said(&two_days)
    );
}

#[test]
fn what_is_not_known_of_the_times_is_said() {
    let begins = |losing: Losing| {
        let facts = Facts { losing: Some(losing), ..night() };
        said(&facts).split_once(", 12,480").unwrap().0.to_owned()
    };
    assert_eq!(begins(Losing { is_last: true, ..losing() }), "From 22:14:20 until at least 22:14:40 UTC");
    assert_eq!(begins(Losing { is_first: true, ..losing() }), "From 22:14:20 or earlier to 22:14:40 UTC");
    assert_eq!(
        begins(Losing { seconds: 4.0, tick_s: 60.0, ..losing() }),
        "From 22:14:20 to 22:14:40 UTC (with losses during 4.0 s; times are accurate to 1 min 0 s)"
    );
    assert_eq!(
        begins(Losing { is_untimed: true, ..losing() }),
        "Until 22:14:40 UTC, from a time that is unknown"
    );
}

#[test]
fn without_losses_the_peak_is_what_matters() {
    let quiet = Facts {
        span: Some((at(0), at(200))),
        peak: Some((0.939, "host".into())),
        netns: Vec::new(),
        ..Facts::default()
    };
    assert_eq!(
        said(&quiet),
        "From 22:13:20 to 22:16:40 UTC, conntrack lost nothing; the fullest table (host) was 93 % full at most."
    );
    let unknown = Facts { peak: None, gaps_s: 90.0, ..quiet.clone() };
    assert_eq!(
        said(&unknown),
        "From 22:13:20 to 22:16:40 UTC, conntrack lost nothing (1 min 30 s of that time was not recorded); how full the \
         table was is unknown."
    );
    let unlimited = Facts { peak: None, unlimited: Some((400, "host".into())), ..quiet.clone() };
    assert_eq!(
        said(&unlimited),
        "From 22:13:20 to 22:16:40 UTC, conntrack lost nothing; the table (host) had no limit, and 400 table entries at most."
    );
    let unseen = Facts { missed: (1, 0), ..quiet.clone() };
    assert_eq!(
        said(&unseen),
        "From 22:13:20 to 22:16:40 UTC, ctwatch saw no losses, but the kernel counted 1 packet dropped and 0 table \
         entries evicted early; the fullest table (host) was 93 % full at most."
    );
    assert!(said(&Facts { span: None, ..quiet }).contains("nothing to report"));
}

#[test]
fn evictions_are_not_refusals() {
    let evicted = Facts {
        by_cause: vec![(Cause::Evicted, 360)],
        packets: Vec::new(),
        entries: vec![(remote(HTTPS), 300), (remote(DNS), 60)],
        ..night()
    };
    assert_eq!(
        said(&evicted),
        "From 22:14:20 to 22:14:40 UTC, 360 table entries were evicted early to make room for new connections, 83 % of \
         them of 443/tcp (https); no packet was dropped; 94 % of the table were TIME_WAIT entries of 6379/tcp (redis) \
         (as listed at 22:14:25)."
    );
    let by_gc = Facts { by_cause: vec![(Cause::GcEvicted, 1)], entries: vec![(remote(HTTPS), 1)], ..evicted };
    assert!(
        said(&by_gc).contains(
            "1 table entry of 443/tcp (https) was evicted early because the table was nearly full; no packet"
        ),
        "{}",
        said(&by_gc)
    );
    let both = Facts {
        by_cause: vec![(Cause::TableFull, 100), (Cause::Evicted, 360)],
        packets: vec![(loopback(REDIS), 75), (remote(HTTPS), 25)],
        entries: vec![(remote(HTTPS), 360)],
        ..night()
    };
    assert!(
        said(&both).contains(
            "100 packets were refused because the table was full, 75 % of them to 6379/tcp (redis, loopback), and 360 \
             table entries were evicted early; 94 % of the table were TIME_WAIT entries of the same service"
        ),
        "{}",
        said(&both)
    );
}

#[test]
fn several_namespaces_are_counted_and_the_table_is_named() {
    let netns = vec!["web".into(), "host".into()];
    let facts = Facts { netns, ..night() };
    assert!(
        said(&facts).contains(
            "12,480 packets to 6379/tcp (redis, loopback) in 2 network namespaces (most of them in web) were refused \
             because their tables were full; 94 % of the table of host were"
        ),
        "{}",
        said(&facts)
    );
    let facts = Facts { netns: vec!["web".into()], ..night() };
    assert!(
        said(&facts).contains("(redis, loopback) in network namespace web were refused"),
        "{}",
        said(&facts)
    );
}

#[test]
fn causes_are_as_sure_as_they_are() {
    let inferred = Facts { inferred: true, ..night() };
    assert!(
        said(&inferred).contains("were refused, probably because the table was full;"),
        "{}",
        said(&inferred)
    );
    let clash = Facts { by_cause: vec![(Cause::Clash, 12_480)], ..night() };
    assert!(
        said(&clash).ends_with("were dropped because two CPUs inserted the same connection at once."),
        "{}",
        said(&clash)
    );
    let other = Facts { by_cause: vec![(Cause::Other, 12_480)], ..night() };
    assert!(said(&other).ends_with("were dropped for an unknown reason."), "{}", said(&other));
    let mixed = Facts {
        by_cause: vec![(Cause::TableFull, 12_000), (Cause::Clash, 400), (Cause::Other, 80)],
        ..night()
    };
    assert!(
        said(&mixed).contains(
            "were dropped (12,000 because the table was full, 400 because two CPUs inserted the same connection at \
             once, 80 for other reasons); 94 %"
        ),
        "{}",
        said(&mixed)
    );
    let untracked = Facts { by_cause: vec![(Cause::Invalid, 9)], losing: None, ..night() };
    assert!(said(&untracked).contains("conntrack lost nothing"), "{}", said(&untracked));
}

#[test]
fn a_lower_bound_is_called_one() {
    let missed = Facts { missed: (5, 0), ..night() };
    assert!(said(&missed).contains("UTC, at least 12,480 packets to"), "{}", said(&missed));
    let gap = Facts { gaps_s: 3.0, ..night() };
    assert!(said(&gap).contains("full (3.0 s of that time was not recorded); 94 %"), "{}", said(&gap));
    assert!(said(&gap).contains("at least 12,480 packets"));
    let unknown = Facts { packets: vec![(Service::Unknown, 480), (loopback(REDIS), 12_000)], ..night() };
    assert!(
        said(&unknown).contains("was full, at least 96 % of them to 6379/tcp (redis, loopback); 94 %"),
        "{}",
        said(&unknown)
    );
    let firewall = Facts { ambiguous: 125, ..night() };
    assert!(
        said(&firewall).contains(
            "packets to 6379/tcp (redis, loopback) (the service is uncertain for 125 of them) were refused"
        ),
        "{}",
        said(&firewall)
    );
    assert_eq!(said(&Facts { ambiguous: 124, ..night() }), said(&night()));
    let nobody = Facts { packets: vec![(Service::Unknown, 12_480)], ..night() };
    assert!(said(&nobody).contains("was full, to services that are unknown; 94 %"), "{}", said(&nobody));
    assert!(said(&nobody).contains("TIME_WAIT entries of 6379/tcp (redis)"), "{}", said(&nobody));
}

#[test]
fn where_only_the_kernel_counted_no_service_is_named() {
    let kernel = KernelCounters { drop: 1_204, early_drop: 1, insert_failed: 0, chaintoolong: 0 };
    let facts = Facts { kernel_only: Some(kernel), packets: Vec::new(), by_cause: Vec::new(), ..night() };
    assert_eq!(
        said(&facts),
        "From 22:14:20 to 22:14:40 UTC, the kernel counted 1,204 packets dropped and 1 table entry evicted early; which \
         services were affected is unknown, as only the kernel's own counters were recorded."
    );
}

#[test]
fn what_filled_the_table_is_said_only_as_far_as_it_is_known() {
    let ends = |occupancy: Occupancy| {
        let facts = Facts { occupancy, ..night() };
        said(&facts).split_once("; ").unwrap().1.to_owned()
    };
    let known = |port, exact, time_wait| Occupancy::Known {
        netns: "host".into(),
        port,
        share: 0.73,
        exact,
        time_wait,
    };
    assert_eq!(
        ends(Occupancy::NeverListed),
        "what filled the table is unknown, as the recording has no listing of it."
    );
    assert_eq!(
        ends(Occupancy::ListedFarAway { distance_s: 7_260.0 }),
        "what filled the table then is unknown, as its nearest listing is 2 h 1 min away."
    );
    assert_eq!(ends(Occupancy::None), "what filled the table is unknown.");
    assert_eq!(
        ends(known(HTTPS, true, Some((0.01, 0.02, at(60).time, 15.0)))),
        "73 % of the table belonged to 443/tcp (https)."
    );
    assert_eq!(
        ends(known(REDIS, false, Some((0.7, 0.97, at(0).time, 400.0)))),
        "about 73 % of the table belonged to the same service, how much of it in TIME_WAIT is unknown, as the nearest \
         listing is 6 min 40 s away."
    );
    assert_eq!(
        ends(known(REDIS, true, None)),
        "73 % of the table belonged to the same service, how much of it in TIME_WAIT is unknown."
    );
    assert_eq!(ends(known(DNS, true, None)), "73 % of the table belonged to 53/udp (domain).");
}

fn any_occupancy() -> impl Strategy<Value = Occupancy> {
    prop_oneof![
        Just(Occupancy::None),
        Just(Occupancy::NeverListed),
        (0.0..1e6_f64).prop_map(|distance_s| Occupancy::ListedFarAway { distance_s }),
        (any::<bool>(), prop::option::of((0.0..1.0_f64, 0.0..1.0_f64, 0.0..1_000.0_f64))).prop_map(
            |(exact, time_wait)| Occupancy::Known {
                netns: "host".into(),
                port: REDIS,
                share: 0.5,
                exact,
                time_wait: time_wait.map(|(table, own, distance)| (table, own, at(0).time, distance)),
            }
        ),
    ]
}

proptest! {
    #[test]
    fn whatever_the_facts_the_sentence_claims_no_more(
        causes in prop::collection::vec((0..Cause::ALL.len(), 0..3_u64), 0..6),
        unknown in 0..3_u64,
        missed in (0..2_u64, 0..2_u64),
        inferred: bool,
        gaps_s in prop_oneof![Just(0.0), 0.1..100.0_f64],
        (is_first, is_last, is_untimed) in any::<(bool, bool, bool)>(),
        occupancy in any_occupancy(),
    ) {
        let by_cause: Vec<_> = causes.into_iter().map(|(index, count)| (Cause::ALL[index], count)).collect();
        let lost = |unit| by_cause.iter()
            .filter(|(cause, _)| cause.unit() == unit && *cause != Cause::Invalid)
            .map(|(_, count)| count)
            .sum::<u64>();
        let (packets, entries) = (lost(Unit::Packets), lost(Unit::Entries));
        let of = |total: u64| {
            let unknown = unknown.min(total);
            let rows = vec![(remote(REDIS), total - unknown), (Service::Unknown, unknown)];
            rows.into_iter().filter(|(_, lost)| *lost > 0).collect::<Vec<_>>()
        };
        let facts = Facts {
            losing: Some(Losing { is_first, is_last, is_untimed, ..losing() }),
            packets: of(packets),
            entries: of(entries),
            by_cause: by_cause.clone(),
            missed,
            inferred,
            gaps_s,
            occupancy: occupancy.clone(),
            ..night()
        };
        let said = said(&facts);
        prop_assert!(said.ends_with('.') && !said.contains("  ") && !said.contains(" ,"));
        prop_assert_eq!(said.contains("lost nothing"), packets + entries == 0 && missed == (0, 0), "{}", said);
        if packets + entries > 0 {
            prop_assert_eq!(said.contains(" until at least") || said.contains("Until at least"), is_last, "{}", said);
            let refused = said.contains("refused") || said.contains("dropped (") || said.contains("dropped because")
                || said.contains("dropped for") || said.contains("dropped, probably");
            prop_assert_eq!(refused, packets > 0, "{}", said);
            let full = by_cause.iter().any(|(cause, count)| *cause == Cause::TableFull && *count > 0);
            prop_assert!(full || entries > 0 || !said.contains("because the table was full,"), "{}", said);
            prop_assert_eq!(said.contains("evicted early"), entries > 0, "{}", said);
            if gaps_s > 0.0 || (missed.0 > 0 && packets > 0) || (missed.1 > 0 && entries > 0) {
                prop_assert!(said.contains("at least"), "{}", said);
            }
            if let Occupancy::Known { time_wait, .. } = occupancy
                && time_wait.is_none_or(|(.., distance_s)| distance_s > NEAR_S)
            {
                prop_assert!(!said.contains("TIME_WAIT entries"), "{}", said);
            }
        }
    }
}
