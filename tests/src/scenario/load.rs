//! The open-loop load itself: it must hold its rate while the server answers, and still when the table is full.
//! What the table does to the requests is not judged here, only that they go on beginning.

use anyhow::Result;

use super::story::Story;
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::sys;
use crate::sysctl::{self, Setting};
use crate::table::{self, Mix};
use crate::traffic::http::{Load, Report};

/// What an emulated machine bears easily.
const RATE: f64 = 40.0;
const SECONDS: f64 = 10.0;

pub(super) fn holds_its_rate(_: &Guest) -> Result<Outcome> {
    let story = Story::up(65_536)?;
    sys::run_first();
    let load = Load::new(([127, 0, 0, 1], 80).into(), RATE, SECONDS);
    let mut checks = Checks::new();
    let healthy = load.run()?;
    steady(&mut checks, "healthy", &healthy);
    checks.equal("healthy: requests that failed", healthy.failed.clone(), [].into());
    checks.equal("healthy: connections", healthy.connections, healthy.offered);

    let several = Load { per_connection: 10, ..load.clone() }.run()?;
    steady(&mut checks, "ten a connection", &several);
    checks.that(
        several.connections * 5 <= several.offered && several.connections * 10 >= several.offered,
        format!("{} connections for {} requests", several.connections, several.offered),
    );

    // No room for one more entry: connections to nginx or to redis fail, and the next ones begin on time all the same.
    let _limit = Setting::set(sysctl::MAX, sysctl::read(sysctl::COUNT)? + 100)?;
    table::fill(Mix::Assured)?;
    let before = Counters::read()?;
    let full = load.run()?;
    let dropped = Counters::read()?.since(&before).get("drop");
    steady(&mut checks, "full", &full);
    checks.figure("Δdrop", dropped);
    checks.that(
        dropped > 0 && full.all_failed() > full.offered / 2,
        format!("the table wasn't full: {full:?}"),
    );
    checks.that(full.most_in_flight as f64 > 2.0 * RATE, "requests waited for those before them");
    drop(story);
    Ok(Outcome::Passed(checks.finish()?))
}

fn steady(checks: &mut Checks, when: &str, report: &Report) {
    checks.equal(&format!("{when}: offered"), report.offered, (RATE * SECONDS) as u64);
    checks.equal(&format!("{when}: started"), report.started, report.offered);
    checks.equal(&format!("{when}: answered or failed"), report.ok + report.all_failed(), report.offered);
    // A CPU of an emulated machine may be away for a while; what counts is that starts catch up, and never fall behind.
    let rates: Vec<u64> = report.per_second.iter().map(|second| second.started).collect();
    checks.that(report.rate_held, format!("{when}: starts slipped by {:.3}: {rates:?}", report.slip));
    checks.that(report.start_lag_ms.max < 1000.0, format!("{when}: late by {:?} ms", report.start_lag_ms));
    let (steady, seconds) = report.steady_seconds;
    checks.figure(&format!("{}_steady_seconds", when.replace(' ', "_")), format!("{steady}/{seconds}"));
    checks.figure(&format!("{}_ok", when.replace(' ', "_")), report.ok);
    checks
        .figure(&format!("{}_lag_p99_ms", when.replace(' ', "_")), format!("{:.1}", report.start_lag_ms.p99));
}
