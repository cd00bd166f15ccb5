//! What became of a load: how many requests were due, started and answered, second by second, and how late.
//! Only sums; nothing here decides whether a run was good.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// One second of a run, counted from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Requests that were due.
    pub offered: u64,
    /// Requests that were started.
    pub started: u64,
    /// Requests that were answered with 200.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// Milliseconds at some percentiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: f64,
    /// Nine tenths are below.
    pub p90: f64,
    /// All but one in a hundred are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let index = (times.len() as f64 * share).ceil() as usize;
            times.get(index.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// A run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Requests a second that were asked for.
    pub rate: f64,
    /// How long.
    pub seconds: f64,
    /// Requests that were due: rate × seconds.
    pub offered: u64,
    /// Requests that were started.
    pub started: u64,
    /// Requests that were answered with 200.
    pub ok: u64,
    /// Requests that failed, by reason.
    pub failed: BTreeMap<String, u64>,
    /// Connections that were begun.
    pub connections: u64,
    /// The most requests that waited for an answer at once.
    pub most_in_flight: usize,
    /// From when a request was due to its answer's end, of those that were answered with 200.
    pub latency_ms: Percentiles,
    /// From when a request was due to its start.
    pub start_lag_ms: Percentiles,
    /// By how much starts slipped away from when they were due, a second of the run: 0.01 is a rate 1 % too low. A delay
    /// that is made up for again is no slip.
    pub slip: f64,
    /// Whether the rate was held: the slip is no more than 1 %.
    pub rate_held: bool,
    /// Seconds with as many starts as were due, to 1 % or one request, of those with any due.
    pub steady_seconds: (usize, usize),
    /// Second by second, those after the last start too.
    pub per_second: Vec<Second>,
}

impl Report {
    /// All that failed.
    pub fn all_failed(&self) -> u64 {
        self.failed.values().sum()
    }
}

/// Collects a run.
#[derive(Debug, Default)]
pub(super) struct Books {
    report: Report,
    latencies: Vec<Duration>,
    lags: Vec<Duration>,
}

impl Books {
    pub(super) fn new(rate: f64, seconds: f64, due: impl Iterator<Item = Duration>) -> Self {
        let mut books = Self { report: Report { rate, seconds, ..Report::default() }, ..Self::default() };
        for due in due {
            books.report.offered += 1;
            books.second(due).offered += 1;
        }
        books
    }

    fn second(&mut self, at: Duration) -> &mut Second {
        let index = at.as_secs() as usize;
        let seconds = &mut self.report.per_second;
        if seconds.len() <= index {
            seconds.resize(index + 1, Second::default());
        }
        &mut seconds[index]
    }

    pub(super) fn started(&mut self, due: Duration, at: Duration) {
        self.report.started += 1;
        self.second(at).started += 1;
        self.lags.push(at.saturating_sub(due));
    }

    pub(super) fn connected(&mut self) {
        self.report.connections += 1;
    }

    pub(super) fn in_flight(&mut self, requests: usize) {
        self.report.most_in_flight = self.report.most_in_flight.max(requests);
    }

    pub(super) fn answered(&mut self, due: Duration, at: Duration) {
        self.report.ok += 1;
        self.second(at).ok += 1;
        self.latencies.push(at.saturating_sub(due));
    }

    pub(super) fn failed(&mut self, reason: String, at: Duration) {
        *self.report.failed.entry(reason).or_default() += 1;
        self.second(at).failed += 1;
    }

    pub(super) fn close(self) -> Report {
        let mut report = self.report;
        let slip = slip(&self.lags, report.seconds);
        report.latency_ms = Percentiles::of(self.latencies);
        report.start_lag_ms = Percentiles::of(self.lags);
        let tolerance = (report.rate / 100.0).max(1.0);
        let due = || report.per_second.iter().filter(|second| second.offered > 0);
        let steady =
            due().filter(|second| (second.started as f64 - second.offered as f64).abs() <= tolerance);
        report.steady_seconds = (steady.count(), due().count());
        report.slip = slip;
        report.rate_held = slip.abs() <= 0.01;
        report
    }
}

/// From the median delay in the first quarter to that in the last, which are three quarters of the run apart.
fn slip(lags: &[Duration], seconds: f64) -> f64 {
    let quarter = lags.len().div_ceil(4);
    let median = |lags: &[Duration]| Percentiles::of(lags.to_vec()).p50 / 1e3;
    (median(&lags[lags.len() - quarter..]) - median(&lags[..quarter])) / (seconds * 0.75)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn run(start: impl Fn(Duration) -> Duration) -> Report {
        let due = || (0..300u64).map(|index| at(index * 10));
        let mut books = Books::new(100.0, 3.0, due());
        for due in due() {
            books.started(due, start(due));
        }
        books.close()
    }

    #[test]
    fn a_generator_that_keeps_up_holds_its_rate() {
        let report = run(|due| due + at(1));
        assert_eq!((report.offered, report.started), (300, 300));
        assert!(report.rate_held, "{report:?}");
        assert_eq!(report.steady_seconds, (3, 3));
    }

    #[test]
    fn a_generator_that_falls_behind_says_so() {
        let report = run(|due| due.mul_f64(1.02));
        assert!((0.015..0.025).contains(&report.slip), "{}", report.slip);
        assert!(!report.rate_held);
        assert_eq!(report.started, 300);
    }

    #[test]
    fn a_second_s_pause_that_is_made_up_for_shows_in_that_second_only() {
        let report = run(|due| if due.as_secs() == 1 { at(2000) } else { due });
        assert_eq!(report.per_second[1], Second { offered: 100, ..Second::default() });
        assert_eq!(report.start_lag_ms.max, 1000.0);
        assert_eq!(report.steady_seconds, (1, 3));
        assert!(report.rate_held, "{}", report.slip);
    }

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let percentiles = Percentiles::of((1..=200).map(at).collect());
        assert_eq!(percentiles, Percentiles { p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 });
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
