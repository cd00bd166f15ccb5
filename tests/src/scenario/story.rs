//! The night the project comes from: nginx with Lua opens a Redis connection per request, and the table fills.
//! The traffic is the real programs'; tests/guest/story.sh starts them, here and in the demo.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::own_inode;
use crate::shell::{exists, run};
use crate::sysctl;

/// As the script has it.
const LIMIT: u64 = 2000;
const SCRIPT: &str = include_str!("../../guest/story.sh");

/// nginx and redis as the story has them, stopped when dropped.
pub(super) struct Story {
    folder: TempDir,
}

impl Story {
    /// Starts them, with room for so many entries.
    pub(super) fn up(max: u64) -> Result<Self> {
        Self::start(max, "up")
    }

    /// The same, but nginx waits so long for redis.
    pub(super) fn up_patiently(max: u64, patience: Duration) -> Result<Self> {
        Self::start(max, &format!("up {}", patience.as_millis()))
    }

    fn start(max: u64, step: &str) -> Result<Self> {
        let missing: Vec<_> =
            ["bash", "nginx", "redis-server", "wrk"].into_iter().filter(|tool| !exists(tool)).collect();
        anyhow::ensure!(missing.is_empty(), "not on PATH: {}", missing.join(", "));
        let folder = tempfile::tempdir().context("a folder for the story")?;
        fs::write(folder.path().join("story.sh"), SCRIPT)?;
        let story = Self { folder };
        story.step(step)?;
        fs::write(sysctl::MAX, max.to_string()).context("setting nf_conntrack_max")?;
        Ok(story)
    }

    /// Runs a step of the script.
    fn step(&self, step: &str) -> Result<String> {
        let script = self.folder.path().join("story.sh");
        let mut line = vec!["bash", script.to_str().context("the script's path")?];
        line.extend(step.split(' '));
        run(&line)
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        let _ = self.step("down");
    }
}

pub(super) fn names_redis_first(_: &Guest) -> Result<Outcome> {
    let story = Story::up(LIMIT)?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    let before = Counters::read()?;
    let wrk = story.step("load")?;
    let count = sysctl::read(sysctl::COUNT)?;
    // The story's connections are still being sent again; without their owners they end.
    drop(story);
    drops.wait_for_ticks(3)?;
    let watched = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    let requests = wrk.lines().find(|line| line.contains("requests in")).unwrap_or_default().trim();
    checks.figure("wrk", format!("\"{requests}\""));
    checks.figure("entries", count);
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.that(kernel.get("drop") > 0, format!("the table never overflowed; wrk said: {wrk}"));
    let first = watched.end.rows.iter().find(|row| row.unit.as_deref() == Some("packets"));
    match first {
        None => checks.that(false, "no row at all"),
        Some(row) => {
            checks.figure("first_row_losses", row.losses);
            checks.equal("port of the first row", row.service_port(), Some(6379));
            checks.equal("proto of the first row", row.proto(), "tcp");
            checks.equal("loopback of the first row", row.loopback, Some(true));
            checks.equal("cause of the first row", row.cause(), "table_full");
            checks.equal("netns of the first row", row.netns, Some(netns));
        }
    }
    checks.equal("counted.table_full against Δdrop", watched.end.counted("table_full"), kernel.get("drop"));
    checks.equal(
        "counted.evicted against Δearly_drop",
        watched.end.counted("evicted"),
        kernel.get("early_drop"),
    );
    checks.equal("rows summed against Δdrop", watched.end.row_sum("table_full"), kernel.get("drop"));
    checks.equal("losses without a tuple", watched.end.unattributed(), 0);
    checks.that(watched.end.all_explained(), format!("unexplained {:?}", watched.end.unexplained));
    checks.that(Path::new("/run/ctwatch-story/error.log").exists(), "nginx wrote no error log");
    let log = fs::read_to_string("/run/ctwatch-story/error.log").unwrap_or_default();
    checks.that(log.contains("redis time out"), "nginx never logged \"redis time out\"");
    Ok(Outcome::Passed(checks.finish()?))
}
