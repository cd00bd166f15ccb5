//! The story's host with a table that is full: it asks `ctwatch advise` what would help.
//! What it is told is left in /out as it came: the JSON, and a script for each piece of advice that has commands.

use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::{Entries, RATE, Sampler, load, story_up};
use crate::counters::Counters;
use crate::shell::run;
use crate::sys;

/// By then the table has been full for a while.
const FULL_AFTER: Duration = Duration::from_secs(55);
/// What predictions rest on.
const WINDOW: &str = "15s";
/// A script is asked for once more; it has to say the same.
const SHORT_WINDOW: &str = "5s";
/// Where the VM takes files from.
const OUT: &str = "/out";

/// The host as it was when it asked.
#[derive(Debug, Serialize)]
struct Baseline {
    entries: Entries,
    drops: u64,
    /// Flows that really came, each second.
    flows_per_s: f64,
}

/// Asks, and writes what is said.
pub fn ask() -> Result<()> {
    story_up(false)?;
    // It ends with this process.
    thread::spawn(|| {
        sys::run_first();
        load(600.0, 1).run()
    });
    thread::sleep(FULL_AFTER);
    let (sampler, before) = (Sampler::start(), Counters::read()?);
    let json = run(&["ctwatch", "advise", "--window", WINDOW, "--format", "json"])?;
    let drops = Counters::read()?.since(&before).get("drop");
    let entries = sampler.stop(Duration::ZERO)?;
    ensure!(drops > 0, "the table wasn't full: {entries:?}");
    fs::create_dir_all(OUT)?;
    write("advice.json", &json)?;
    let baseline = Baseline { entries, drops, flows_per_s: 2.0 * RATE };
    write("baseline.json", &serde_json::to_string(&baseline)?)?;
    let advice: Value = serde_json::from_str(&json).context("reading the advice")?;
    for item in advice["items"].as_array().context("the advice has no items")? {
        let now = lines(&item["commands"]["now"]);
        if !now.is_empty() {
            let id = item["id"].as_str().context("an item without an id")?;
            write(&format!("{id}.sh"), &script(id, &now)?)?;
        }
    }
    Ok(())
}

/// The script of a piece of advice; it has to hold the commands that the prediction was made for.
fn script(id: &str, now: &[&str]) -> Result<String> {
    let ask = |window| run(&["ctwatch", "advise", "--window", window, "--format", "sh", "--item", id]);
    let holds = |script: &str| now.iter().flat_map(|lines| lines.lines()).all(|line| script.contains(line));
    let mut script = ask(SHORT_WINDOW)?;
    if !holds(&script) {
        script = ask(WINDOW)?;
    }
    ensure!(holds(&script), "the script for {id} doesn't do what the JSON says, {now:?}:\n{script}");
    Ok(script)
}

fn lines(value: &Value) -> Vec<&str> {
    value.as_array().map(|lines| lines.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn write(name: &str, text: &str) -> Result<()> {
    fs::write(format!("{OUT}/{name}"), text).with_context(|| format!("writing {OUT}/{name}"))
}
