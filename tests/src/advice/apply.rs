//! The same host once more, fresh: it does what it was told before the same load comes, and undoes it afterwards.
//! Measures and writes down; what was promised is not known here.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::settings::Settings;
use super::{Entries, RATE, Sampler, load, story_up};
use crate::counters::Counters;
use crate::shell::run;
use crate::sys;
use crate::traffic::http::Load;

/// While a table is empty gc comes once a minute, and after that as its entries last: it shall know them before the load
/// comes. So a minute of less goes before it, seconds and requests a second.
const RUN_UP: (u64, f64) = (60, 30.0);
/// How long the load lasts after that, seconds.
const SECONDS: u64 = 90;
/// From here on in the load things are steady: several runs of gc long.
const STEADY_FROM: u64 = 45;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Apply {
    /// A script of `ctwatch advise`
    #[arg(long = "script")]
    scripts: Vec<String>,
    /// The Lua code calls set_keepalive
    #[arg(long)]
    keepalive: bool,
    /// Requests that a client sends over one connection
    #[arg(long, default_value_t = 1)]
    per_connection: u32,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Once things were steady.
    entries: Entries,
    /// During the whole load and what goes before it.
    drops: u64,
    early_drops: u64,
    requests: u64,
    answered: u64,
    connections: u64,
    rate_held: bool,
    /// What `now` changed.
    now: Vec<String>,
    /// What `keep` changed besides.
    keep: Vec<String>,
    /// What was not as before after `undo`.
    left: Vec<String>,
    /// Steps of the scripts that failed.
    failed: Vec<String>,
}

/// Does it, and prints what came of it as JSON.
pub fn apply(apply: &Apply) -> Result<()> {
    story_up(apply.keepalive)?;
    let settings = Settings::read()?;
    each(apply.scripts.iter(), "now")?;
    let with_now = Settings::read()?;
    let before = Counters::read()?;
    let sampler = Sampler::start();
    let per_connection = apply.per_connection;
    let send = |seconds: u64, rate: f64| {
        let load = Load { rate, ..load(seconds as f64, per_connection) };
        let run = thread::spawn(move || {
            sys::run_first();
            load.run()
        });
        thread::sleep(Duration::from_secs(seconds));
        run
    };
    let run_up = send(RUN_UP.0, RUN_UP.1);
    let run = send(SECONDS, RATE);
    let entries = sampler.stop(Duration::from_secs(RUN_UP.0 + STEADY_FROM))?;
    let run_up = run_up.join().expect("a load doesn't panic")?;
    let report = run.join().expect("a load doesn't panic")?;
    let counters = Counters::read()?.since(&before);
    let mut failed = Vec::new();
    let kept = each(apply.scripts.iter(), "keep");
    let with_keep = Settings::read()?;
    let undone = each(apply.scripts.iter().rev(), "undo");
    failed.extend([kept, undone].into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
    let outcome = Outcome {
        entries,
        drops: counters.get("drop"),
        early_drops: counters.get("early_drop"),
        requests: run_up.started + report.started,
        answered: run_up.ok + report.ok,
        connections: run_up.connections + report.connections,
        rate_held: run_up.rate_held && report.rate_held,
        now: settings.changes(&with_now),
        keep: with_now.changes(&with_keep),
        left: settings.changes(&Settings::read()?),
        failed,
    };
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn each<'a>(scripts: impl Iterator<Item = &'a String>, step: &str) -> Result<()> {
    for script in scripts {
        run(&["sh", script, step]).with_context(|| format!("{step} of {script}"))?;
    }
    Ok(())
}
