//! How the entries of one key come and go: cumulative inserts and deletes, and what follows from them.
//! Pure. What is measured goes before what timeouts suggest, and noise is not taken for a trend.

use std::collections::VecDeque;

use super::step::{FlowKey, Step};
use super::trend::{Line, Trend, fit, settled_fit};
use crate::model::{PortDetail, Protocol, StateCounts, TimeoutHistogram, TimeoutKind, Timeouts};

/// Ticks of arrivals the trend is read from.
const RATES: usize = 120;
/// Arrivals of shorter ticks are added up to this long: a rate from a few of them is noise.
const RATE_S: f64 = 0.95;
/// Fewer rates tell nothing.
const FEWEST_RATES: usize = 3;
/// Points of history kept; older ones thin out.
const POINTS: usize = 240;
/// A rise or fall is carried on for so many times the period it was seen in, less if it may be noise.
const TRUST_IN_TREND: f64 = 10.0;
/// Expired entries stay until gc comes by: it looks at all of a table about once a minute
/// (GC_SCAN_INTERVAL_INIT, net/netfilter/nf_conntrack_core.c).
const GC_LAG: f64 = 60.0;
/// A lag that grows by less than this part of the time has settled.
const SETTLED: f64 = 0.1;
/// gc's last rounds that tell how long entries last by now.
const ROUNDS: usize = 8;
/// Deaths needed before anything is said of how long entries last.
const ENOUGH: f64 = 20.0;

/// What a census and the timeouts say of entries nobody has seen die yet.
#[derive(Clone, Debug)]
pub(super) struct Prior {
    /// How long a new entry will last.
    lifetime: f64,
    /// Part of those present at the census that is gone after so many seconds, as a broken line.
    gone: Vec<(f64, f64)>,
    /// Mean stay of those that still talk, if the others tell it: (part of all, mean, seconds they linger).
    talking: Option<(f64, f64, f64)>,
}

impl Default for Prior {
    fn default() -> Self {
        Self { lifetime: f64::INFINITY, gone: Vec::new(), talking: None }
    }
}

impl Prior {
    /// For one key.
    pub fn new(key: FlowKey, details: &[PortDetail], timeouts: &Timeouts) -> Self {
        let (proto, port) = (Protocol((key >> 16) as u8), key as u16);
        match details.iter().find(|detail| (detail.proto, detail.port) == (proto, Some(port))) {
            Some(detail) if detail.mix.total() > 0 => Self::of_detail(detail, timeouts),
            _ => Self::of_protocol(proto, details, timeouts),
        }
    }

    /// For keys of this protocol that have nothing of their own.
    pub fn of_protocol(proto: Protocol, details: &[PortDetail], timeouts: &Timeouts) -> Self {
        match details.iter().find(|detail| (detail.proto, detail.port) == (proto, None)) {
            Some(detail) if detail.mix.total() > 0 => Self::of_detail(detail, timeouts),
            _ => Self { lifetime: untouched(proto, timeouts), ..Self::default() },
        }
    }

    fn of_detail(detail: &PortDetail, timeouts: &Timeouts) -> Self {
        let total = f64::from(detail.mix.total()).max(1.0);
        let (refreshed, expiring) = (f64::from(detail.refreshed.total()), f64::from(detail.expiring.total()));
        // What entries were given is at least what they have left, whatever the sysctl says by now.
        let given = |remaining: &TimeoutHistogram, timeout: Option<u32>| {
            let left = remaining.quantile(0.9).filter(|_| remaining.total() >= 16);
            match (left, timeout.map(f64::from)) {
                (Some(left), Some(timeout)) => left.max(timeout),
                (left, timeout) => left.or(timeout).unwrap_or(f64::INFINITY),
            }
        };
        let (lifetime, talking) = if detail.is_tcp() {
            let time_wait = f64::from(detail.mix.tcp[usize::from(StateCounts::TIME_WAIT)]);
            if time_wait >= 0.05 * total {
                // Little's law: they leave TIME_WAIT, and so enter it, at this rate; ESTABLISHED holds the rest.
                let lingers = given(&detail.expiring, timeouts.get(TimeoutKind::TimeWait));
                let rate = time_wait / lingers;
                (total / rate, Some((refreshed / total, refreshed / rate, lingers)))
            } else if refreshed * 2.0 >= total {
                (given(&detail.refreshed, timeouts.get(TimeoutKind::Established)), None)
            } else {
                (given(&detail.expiring, timeouts.get(TimeoutKind::SynSent)), None)
            }
        } else {
            let (short, long) = pair(detail.proto, timeouts);
            // An empty histogram weighs nothing, even if its timeout is unknown.
            let part = |entries: f64, remaining, timeout| {
                if entries > 0.0 { entries / total * given(remaining, timeout) } else { 0.0 }
            };
            (part(refreshed, &detail.refreshed, long) + part(expiring, &detail.expiring, short), None)
        };
        let mut gone = vec![(0.0, 0.0)];
        let mut buckets: Vec<(f64, f64, u32)> = detail.expiring.buckets().collect();
        if talking.is_none() {
            buckets.extend(detail.refreshed.buckets());
        }
        buckets.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut sum = 0.0;
        for (from, to, entries) in buckets {
            let (last, _) = gone[gone.len() - 1];
            if from > last {
                gone.push((from, sum / total));
            }
            sum += f64::from(entries);
            gone.push((to, sum / total));
        }
        Self { lifetime, gone, talking }
    }

    /// Part of the entries present at the census that is gone after so many seconds.
    fn gone_after(&self, seconds: f64) -> f64 {
        let expired = interpolate(&self.gone, seconds);
        let closed = self.talking.map_or(0.0, |(part, mean, lingers)| {
            if seconds <= lingers || mean <= 0.0 {
                0.0
            } else {
                part * (1.0 - (-(seconds - lingers) / mean).exp())
            }
        });
        (expired + closed).min(1.0)
    }
}

/// Timeouts of a protocol's one-way and two-way flows.
fn pair(proto: Protocol, timeouts: &Timeouts) -> (Option<u32>, Option<u32>) {
    let (one_way, two_way) = match proto {
        Protocol::UDP => (TimeoutKind::Udp, TimeoutKind::UdpStream),
        Protocol::ICMP => (TimeoutKind::Icmp, TimeoutKind::Icmp),
        Protocol::ICMPV6 => (TimeoutKind::Icmpv6, TimeoutKind::Icmpv6),
        _ => (TimeoutKind::Generic, TimeoutKind::Generic),
    };
    (timeouts.get(one_way), timeouts.get(two_way))
}

/// How long an entry lasts of which no census has seen the like.
fn untouched(proto: Protocol, timeouts: &Timeouts) -> f64 {
    let timeout =
        if proto == Protocol::TCP { timeouts.get(TimeoutKind::Established) } else { pair(proto, timeouts).0 };
    timeout.map_or(f64::INFINITY, f64::from)
}

/// Cumulative since the model began.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    at: f64,
    inserts: f64,
    /// How long the entry that died last had been there, if such entries die.
    lag: Option<f64>,
}

/// The entries of one key.
#[derive(Debug, Default)]
pub(super) struct Model {
    began: f64,
    /// Entries when it began.
    initial: f64,
    prior: Prior,
    entries: f64,
    inserts: f64,
    deletes: f64,
    history: Vec<Point>,
    /// When, and arrivals per second.
    rates: VecDeque<(f64, f64)>,
    /// Arrivals, and over how many seconds, that make the next rate.
    pending: (f64, f64),
    /// Arrivals rise beyond doubt.
    rises: bool,
    /// How arrivals go, as of when: what it costs to see is not spent twice in a tick.
    trend: Option<(f64, Trend)>,
    /// How long entries lasted before the last census.
    measured: Option<f64>,
}

/// What will become of one key.
#[derive(Clone, Debug)]
pub(super) struct Projection<'a> {
    model: &'a Model,
    now: f64,
    rate: Line,
    /// How long the trend goes on.
    trend_for: f64,
    /// Arrivals per second if they don't rise, where that is in doubt.
    unless_they_rise: Option<f64>,
    /// How long entries last from now on: grows with time if ever more of them stay.
    lag: Line,
    lag_limit: f64,
    /// Of the initial entries: how many are left, and what part of those that should be gone is.
    initial_left: f64,
    credit: f64,
    /// What part of the initial entries should be gone by now.
    gone: f64,
    /// Of those that came since: how many died.
    dead: f64,
}

impl Model {
    /// Restarts with so many entries, whose lifetimes the prior estimates.
    pub fn begin(&mut self, now: f64, entries: f64, prior: Prior) {
        let measured = self.lifetime();
        *self = Self {
            began: now,
            initial: entries,
            prior: Prior { lifetime: measured.unwrap_or(prior.lifetime), ..prior },
            entries,
            rates: std::mem::take(&mut self.rates),
            pending: self.pending,
            rises: self.rises,
            trend: self.trend,
            measured,
            history: vec![Point { at: now, ..Point::default() }],
            ..Self::default()
        };
    }

    pub const fn entries(&self) -> f64 {
        self.entries
    }

    pub fn tick(&mut self, now: f64, interval_s: f64, step: &Step) {
        self.entries = step.entries;
        self.inserts += step.inserts;
        self.deletes += step.deletes;
        self.pending.0 += step.inserts;
        self.pending.1 += interval_s;
        if self.pending.1 >= RATE_S {
            let (arrivals, seconds) = std::mem::take(&mut self.pending);
            self.rates.push_back((now - seconds / 2.0, arrivals / seconds));
            if self.rates.len() > RATES {
                self.rates.pop_front();
            }
            let trend = settled_fit(&self.rates, now);
            self.rises = trend.is_sure_rise(self.rises);
            self.trend = Some((now, trend));
        }
        if self.history.is_empty() {
            self.history.push(Point { at: now - interval_s, ..Point::default() });
        }
        let dead = self.dead(now);
        let lag = (dead >= ENOUGH.min(self.inserts * 0.01).max(1.0)).then(|| now - self.arrived(dead));
        self.history.push(Point { at: now, inserts: self.inserts, lag });
        if self.history.len() > POINTS {
            // The older half loses every second point.
            let mut index = 0;
            self.history.retain(|_| {
                index += 1;
                index > POINTS / 2 || index % 2 == 1
            });
        }
    }

    /// How long entries last, if enough of them were seen to die and that has settled.
    pub fn lifetime(&self) -> Option<f64> {
        let now = self.history.last()?.at;
        let settled = self.settled_lag(now).filter(|_| self.dead(now) >= ENOUGH);
        settled.map(|lag| lag.at_now).or(self.measured)
    }

    fn settled_lag(&self, now: f64) -> Option<Line> {
        self.lag(now).filter(|lag| lag.slope < SETTLED)
    }

    /// Deaths that were to be expected among the initial entries, and the part of them that came true.
    fn initial_deaths(&self, now: f64) -> (f64, f64) {
        let age = now - self.began;
        let expected = self.initial * self.prior.gone_after(age);
        let overdue = self.initial * self.prior.gone_after(age - GC_LAG);
        let credit = if overdue >= ENOUGH { (self.deletes / overdue).min(1.0) } else { 1.0 };
        let died = (expected * credit).min(self.deletes).max(self.deletes - self.inserts);
        (died.min(self.initial).max(0.0), credit)
    }

    /// How many of those that came since died.
    fn dead(&self, now: f64) -> f64 {
        (self.deletes - self.initial_deaths(now).0).clamp(0.0, self.inserts)
    }

    /// When the so-manieth entry came.
    fn arrived(&self, nth: f64) -> f64 {
        let index = self.history.partition_point(|point| point.inserts < nth);
        match (index.checked_sub(1).map(|before| self.history[before]), self.history.get(index)) {
            (Some(a), Some(b)) => {
                a.at + (b.at - a.at) * (nth - a.inserts) / (b.inserts - a.inserts).max(1e-9)
            }
            (Some(last), None) => last.at,
            (None, _) => self.began,
        }
    }

    /// How many had come by then.
    fn inserts_by(&self, at: f64) -> f64 {
        let index = self.history.partition_point(|point| point.at < at);
        match (index.checked_sub(1).map(|before| self.history[before]), self.history.get(index)) {
            (Some(a), Some(b)) => a.inserts + (b.inserts - a.inserts) * (at - a.at) / (b.at - a.at).max(1e-9),
            (Some(last), None) => last.inserts,
            (None, _) => 0.0,
        }
    }

    /// The lag's line: its slope from the younger half of the history, its place from the last few rounds of gc.
    /// gc comes in bursts: a single lag says little. Of mixed lifetimes the lag wanders: it's not where it was long ago.
    fn lag(&self, now: f64) -> Option<Line> {
        let half = self.began + (now - self.began) / 2.0;
        let lags = self.history.iter().filter(|point| point.at >= half);
        let points: Vec<(f64, f64)> = lags.filter_map(|point| point.lag.map(|lag| (point.at, lag))).collect();
        if points.len() < 5 {
            return None;
        }
        let line = fit(&points, now)?.line;
        let last = last_rounds(&points);
        let off = last.iter().map(|(at, lag)| lag - (line.at_now + line.slope * (at - now))).sum::<f64>();
        Some(Line { at_now: line.at_now + off / last.len() as f64, slope: line.slope.clamp(0.0, 1.0) })
    }

    /// What will become of it; none if it is empty and nothing comes.
    pub fn project(&self, now: f64) -> Option<Projection<'_>> {
        if self.entries <= 0.0 && self.rates.iter().all(|(_, rate)| *rate == 0.0) {
            return None;
        }
        if self.rates.len() < FEWEST_RATES {
            return None;
        }
        let known = self.trend.filter(|(at, _)| *at == now);
        let trend = known.map_or_else(|| settled_fit(&self.rates, now), |(_, trend)| trend);
        let (initial_dead, credit) = self.initial_deaths(now);
        let dead = self.dead(now);
        let prior = self.prior.lifetime;
        let oldest = now - self.arrived(dead + 1.0);
        // Nobody died at the age timeouts suggest: they are wrong about this key.
        let refuted = oldest > 1.5 * prior + GC_LAG / 2.0;
        let lag_limit = if refuted { f64::INFINITY } else { prior.max(oldest) };
        let lag = match self.lag(now) {
            Some(lag) if lag.slope < SETTLED => Line { slope: 0.0, ..lag },
            Some(lag) => lag,
            None if self.history.last().is_some_and(|point| point.lag.is_some()) => {
                Line { at_now: oldest, slope: 0.0 }
            }
            // None has died yet: new entries may stay, up to the limit.
            None => Line { at_now: oldest, slope: 1.0 },
        };
        Some(Projection {
            model: self,
            now,
            rate: trend.line,
            trend_for: trend.period * TRUST_IN_TREND,
            unless_they_rise: (trend.line.slope > 0.0 && !self.rises).then_some(trend.mean),
            lag,
            lag_limit,
            initial_left: (self.initial - initial_dead).max(0.0),
            credit,
            gone: self.prior.gone_after(now - self.began),
            dead,
        })
    }
}

impl Projection<'_> {
    /// The same without a rise that is in doubt; none if there is no such rise.
    pub fn at_least(&self) -> Option<Self> {
        let at_now = self.unless_they_rise?;
        Some(Self { rate: Line { at_now, slope: 0.0 }, ..self.clone() })
    }

    /// How many will have come in so many seconds.
    pub fn arrivals(&self, seconds: f64) -> f64 {
        let Line { at_now, slope } = self.rate;
        let mut rising = seconds.min(self.trend_for);
        if slope < 0.0 {
            rising = rising.min(at_now / -slope);
        }
        let steady = (seconds - rising).max(0.0) * (at_now + slope * rising).max(0.0);
        (at_now * rising + slope * rising * rising / 2.0 + steady).max(0.0)
    }

    /// By how many entries there will be more.
    pub fn growth(&self, seconds: f64) -> f64 {
        let model = self.model;
        let age = self.now - model.began;
        let initial = model.initial * self.credit;
        let gone = model.prior.gone_after(age + seconds) - self.gone;
        let overdue = (initial * self.gone - (model.initial - self.initial_left)).max(0.0);
        let initial_deaths = (initial * gone + overdue * (seconds / GC_LAG).min(1.0)).min(self.initial_left);
        let lag = (self.lag.at_now + self.lag.slope * seconds).min(self.lag_limit);
        let arrived_by = self.now + seconds - lag;
        let died_by = if arrived_by <= self.now {
            model.inserts_by(arrived_by)
        } else {
            model.inserts + self.arrivals(arrived_by - self.now)
        };
        self.arrivals(seconds) - initial_deaths - (died_by - self.dead).max(0.0)
    }
}

/// The points since gc came the last few times: while it doesn't, the lag grows as fast as time goes by.
fn last_rounds(lags: &[(f64, f64)]) -> &[(f64, f64)] {
    let came = |pair: &[(f64, f64)]| pair[1].1 - pair[0].1 < 0.95 * (pair[1].0 - pair[0].0);
    let rounds = lags.windows(2).enumerate().rev().filter(|(_, pair)| came(pair));
    let first = rounds.map(|(index, _)| index).nth(ROUNDS - 1);
    &lags[first.unwrap_or(0)..]
}

/// A broken line at some place; level beyond its ends.
fn interpolate(line: &[(f64, f64)], at: f64) -> f64 {
    let index = line.partition_point(|(x, _)| *x < at);
    match (index.checked_sub(1).map(|before| line[before]), line.get(index)) {
        (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (at - x0) / (x1 - x0).max(1e-9),
        (Some((_, y)), None) => y,
        (None, Some((_, y))) => *y,
        (None, None) => 0.0,
    }
}
