//! The open-loop load itself: it must hold its rate while the server answers, and still when the table is full.
//! What the table does to the requests is not judged here, only that they go on beginning.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::story::Story;
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::sys;
use crate::sysctl::{self, Setting};
use crate::table::{self, Mix};
use crate::traffic::http::{Load, Report};

/// What an emulated machine bears easily, even while its host is busy with others.
const RATE: f64 = 10.0;
const SECONDS: f64 = 15.0;

pub(super) fn holds_its_rate(_: &Guest) -> Result<Outcome> {
    let story = Story::up(65_536)?;
    let load = Load::new(([127, 0, 0, 1], 80).into(), RATE, SECONDS);
    let patient = Load { timeout: Duration::from_secs(10), ..load.clone() };
    let mut checks = Checks::new();
    let healthy = steady(&mut checks, "healthy", &patient)?;
    checks.equal("healthy: requests that failed", healthy.failed.clone(), [].into());
    checks.equal("healthy: connections", healthy.connections, healthy.offered);

    let several = steady(&mut checks, "several", &Load { per_connection: 10, ..patient })?;
    checks.equal("several: requests that failed", several.failed.clone(), [].into());
    checks.that(several.connections < several.offered, "no connection carried a second request");
    checks.that(several.connections * 10 >= several.offered, "a connection carried more than ten requests");

    // No room for one more entry: connections fail, and the next ones begin on time all the same.
    let _limit = Setting::set(sysctl::MAX, sysctl::read(sysctl::COUNT)? + 100)?;
    table::fill(Mix::Assured)?;
    let before = Counters::read()?;
    let full = steady(&mut checks, "full", &load)?;
    let dropped = Counters::read()?.since(&before).get("drop");
    checks.figure("Δdrop", dropped);
    checks.that(
        dropped > 0 && full.all_failed() > full.offered / 2,
        format!("the table wasn't full: {full:?}"),
    );
    checks.that(full.most_in_flight as f64 > 2.0 * RATE, "requests waited for those before them");
    drop(story);
    Ok(Outcome::Passed(checks.finish()?))
}

/// How late a thread wakes up that does nothing else: an emulated CPU may be away for a second when its host is busy.
struct Clock {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Clock {
    fn start() -> Self {
        const TICK: Duration = Duration::from_millis(5);
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = thread::spawn(move || {
            sys::run_first();
            let mut latest = Duration::ZERO;
            while !until.load(Ordering::Relaxed) {
                let slept = Instant::now();
                thread::sleep(TICK);
                latest = latest.max(slept.elapsed().saturating_sub(TICK));
            }
            latest
        });
        Self { over, thread }
    }

    fn latest(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("a thread that only sleeps doesn't panic")
    }
}

/// Runs a load on a thread that comes first, and checks that it kept time as well as this machine can.
fn steady(checks: &mut Checks, when: &str, load: &Load) -> Result<Report> {
    let clock = Clock::start();
    let run = thread::scope(|scope| {
        let run = scope.spawn(|| {
            sys::run_first();
            load.run()
        });
        run.join().expect("a load doesn't panic")
    });
    let (report, away) = (run?, clock.latest().as_secs_f64());
    checks.equal(&format!("{when}: offered"), report.offered, (RATE * SECONDS) as u64);
    checks.equal(&format!("{when}: started"), report.started, report.offered);
    checks.equal(&format!("{when}: answered or failed"), report.ok + report.all_failed(), report.offered);
    // Starts catch up after the CPU was away, and never fall behind by more than that and a bit of work.
    let rates: Vec<u64> = report.per_second.iter().map(|second| second.started).collect();
    let allowed = 0.01 + away / (0.75 * SECONDS);
    checks.that(
        report.slip.abs() <= allowed,
        format!("{when}: starts slipped by {:.3}: {rates:?}", report.slip),
    );
    let lag = report.start_lag_ms.max / 1e3;
    checks.that(
        lag <= 2.0 * away + 0.3,
        format!("{when}: {lag:.3} s late, where a CPU was away for {away:.3} s"),
    );
    let (steady, seconds) = report.steady_seconds;
    checks.figure(&format!("{when}_ok"), report.ok);
    checks.figure(&format!("{when}_steady_seconds"), format!("{steady}/{seconds}"));
    checks.figure(&format!("{when}_lag_max_s"), format!("{lag:.3}"));
    checks.figure(&format!("{when}_cpu_away_s"), format!("{away:.3}"));
    Ok(report)
}
