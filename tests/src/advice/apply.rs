//! The same host once more, fresh: it does what it was told before the same load comes, and undoes it afterwards.
//! Measures and writes down; what was promised is not known here.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::settings::Settings;
use super::{Entries, Sampler, load, story_up};
use crate::counters::Counters;
use crate::shell::run;
use crate::sys;

/// How long the load lasts, seconds.
const SECONDS: u64 = 100;
/// From here on things are steady: several runs of gc long.
const STEADY_FROM: Duration = Duration::from_secs(55);

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
    /// During the whole load.
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
}

/// Does it, and prints what came of it as JSON.
pub fn apply(apply: &Apply) -> Result<()> {
    story_up(apply.keepalive)?;
    let settings = Settings::read()?;
    each(apply.scripts.iter(), "now")?;
    let with_now = Settings::read()?;
    let before = Counters::read()?;
    let sampler = Sampler::start();
    let load = load(SECONDS as f64, apply.per_connection);
    let run = thread::spawn(move || {
        sys::run_first();
        load.run()
    });
    thread::sleep(Duration::from_secs(SECONDS));
    let entries = sampler.stop(STEADY_FROM, Duration::MAX)?;
    let report = run.join().expect("a load doesn't panic")?;
    let counters = Counters::read()?.since(&before);
    each(apply.scripts.iter(), "keep")?;
    let with_keep = Settings::read()?;
    each(apply.scripts.iter().rev(), "undo")?;
    let outcome = Outcome {
        entries,
        drops: counters.get("drop"),
        early_drops: counters.get("early_drop"),
        requests: report.started,
        answered: report.ok,
        connections: report.connections,
        rate_held: report.rate_held,
        now: settings.changes(&with_now),
        keep: with_now.changes(&with_keep),
        left: settings.changes(&Settings::read()?),
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
