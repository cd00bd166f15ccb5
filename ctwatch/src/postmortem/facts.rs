//! What the headline is made of, from the pass over the ticks and what was found beside it.
//! Sums up and sorts; the words are headline.rs's.

use std::collections::{BTreeMap, HashMap, HashSet};

use ctwatch_common::Cause;
use ctwatch_common::cause::Unit;
use ctwatch_common::slot::SlotKind;

use super::at::At;
use super::headline::{Facts, Losing, NEAR_S, Occupancy, Service};
use super::model::{Certainty, Gap, Worst};
use super::names::{AllNames, name, unsigned};
use super::scan::TickScan;
use super::states::States;
use crate::foreign::Foreign;
use crate::model::{KernelCounters, NetnsId, ServicePort};

/// A gap that ends so shortly before something touches it, seconds.
const TOUCHES_S: f64 = 1.0;

pub(super) fn facts(
    scan: &TickScan,
    names: &AllNames,
    certainty: &Certainty,
    worst: Option<&Worst>,
    states: Option<&States>,
) -> Facts {
    let losing = losing(scan, &certainty.gaps);
    let span = scan.from.zip(scan.to);
    let (packets, entries) = (services(scan, Unit::Packets), services(scan, Unit::Entries));
    let recorded = losing.map(|losing| (losing.from, losing.to)).or(span);
    let [drop, early_drop, insert_failed, _] = scan.unexplained;
    let counts_nothing = packets.is_empty() && entries.is_empty();
    Facts {
        span,
        losing,
        by_cause: Cause::ALL.map(|cause| (cause, unsigned(scan.counted[cause as usize]))).into(),
        packets,
        entries,
        netns: netns(scan, names),
        ambiguous: certainty.ambiguous,
        inferred: certainty.inferred,
        missed: (unsigned(drop).max(unsigned(insert_failed)), unsigned(early_drop)),
        kernel_only: (certainty.kernel_only && counts_nothing)
            .then(|| KernelCounters::from_array(scan.kernel.map(unsigned))),
        gaps_s: recorded.map_or(0.0, |(from, to)| overlap_s(&certainty.gaps, from, to)),
        peak: scan.peak.map(|(_, netns, count, max)| (f64::from(count) / f64::from(max), name(names, netns))),
        unlimited: scan.unlimited.map(|(_, netns, count)| (count, name(names, netns))),
        occupancy: worst.map_or(Occupancy::None, |worst| occupancy(worst, states)),
    }
}

/// When something was lost; by the kernel's counters, where nothing else counts.
fn losing(scan: &TickScan, gaps: &[Gap]) -> Option<Losing> {
    let span_end = scan.to?;
    let (from, to, tick_s, seconds) = match (scan.first_loss, scan.last_loss, scan.kernel_loss) {
        (Some((first, first_s)), Some((last, last_s)), _) => {
            (first.minus(first_s), last, first_s.max(last_s), scan.losing_s)
        }
        (_, _, Some((from, to))) => (from, to, 0.0, to.since(from)),
        _ => return None,
    };
    let touches = |at: At, gap_s: f64, other: At| (at.since(other) + gap_s).abs() < TOUCHES_S;
    Some(Losing {
        from,
        to,
        seconds,
        tick_s,
        is_first: scan.from.is_some_and(|begin| from.place_us <= begin.place_us)
            || gaps.iter().any(|gap| touches(gap.from, gap.seconds, from)),
        is_last: to.place_us >= span_end.place_us || gaps.iter().any(|gap| touches(gap.from, 0.0, to)),
        is_untimed: scan.untimed_losses,
    })
}

/// How much of a time is not recorded.
fn overlap_s(gaps: &[Gap], from: At, to: At) -> f64 {
    let part = |gap: &Gap| {
        let (begin_s, end_s) = (gap.from.since(from), gap.from.since(from) + gap.seconds);
        (end_s.min(to.since(from)) - begin_s.max(0.0)).max(0.0)
    };
    gaps.iter().map(part).sum()
}

/// Losses in this unit by service, most first.
fn services(scan: &TickScan, unit: Unit) -> Vec<(Service, u64)> {
    let mut sums: BTreeMap<Service, i64> = BTreeMap::new();
    for (key, losses) in &scan.losses {
        let Some(SlotKind::Loss { cause, loopback, attributed }) = key.decode() else { continue };
        if cause.unit() == unit && cause != Cause::Invalid {
            let port = ServicePort::of_slot(*key);
            let service = if attributed { Service::Known { port, loopback } } else { Service::Unknown };
            *sums.entry(service).or_default() += losses;
        }
    }
    let of_unit = |cause: &Cause| cause.unit() == unit && *cause != Cause::Invalid;
    let overflow: i64 =
        Cause::ALL.into_iter().filter(of_unit).map(|cause| scan.without_port[cause as usize]).sum();
    *sums.entry(Service::Unknown).or_default() += overflow;
    let mut all: Vec<_> = sums
        .into_iter()
        .filter(|(_, losses)| *losses > 0)
        .map(|(service, losses)| (service, unsigned(losses)))
        .collect();
    all.sort_by_key(|(service, losses)| (std::cmp::Reverse(*losses), *service));
    all
}

/// The namespaces that lost something, by name, most first.
fn netns(scan: &TickScan, names: &AllNames) -> Vec<Foreign> {
    let mut sums: HashMap<NetnsId, i64> = HashMap::new();
    for (key, losses) in &scan.losses {
        if !matches!(key.decode(), Some(SlotKind::Loss { cause, .. }) if cause != Cause::Invalid) {
            continue;
        }
        *sums.entry(NetnsId::from_packed(key.netns)).or_default() += losses;
    }
    let mut all: Vec<_> = sums.into_iter().filter(|(_, losses)| *losses > 0).collect();
    all.sort_unstable_by_key(|(id, losses)| (std::cmp::Reverse(*losses), *id));
    // Several runs know the same netns by several numbers.
    let mut seen = HashSet::new();
    all.into_iter().map(|(id, _)| name(names, id)).filter(|name| seen.insert(name.clone())).collect()
}

fn occupancy(worst: &Worst, states: Option<&States>) -> Occupancy {
    let distance_s = worst.listed_s_before.map(f64::abs);
    let Some((port, share)) = worst.occupants.first().and_then(|one| Some((one.port?, one.share))) else {
        return Occupancy::NeverListed;
    };
    match distance_s {
        Some(distance_s) if worst.as_listed && distance_s > NEAR_S => Occupancy::ListedFarAway { distance_s },
        _ => Occupancy::Known {
            netns: worst.netns.clone(),
            port,
            share,
            exact: worst.exact,
            time_wait: states.zip(distance_s).and_then(|(states, distance_s)| {
                Some((states.time_wait_of_table(port)?, states.time_wait(port)?, states.at.time, distance_s))
            }),
        },
    }
}
