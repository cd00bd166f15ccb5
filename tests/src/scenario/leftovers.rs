//! Nothing may stay in the kernel when ctwatch ends, whichever way it ends.
//! bpftool says what is there; it is asked before and after.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::ctwatch::Drops;
use crate::nftables;
use crate::shell::run;

type Ids = BTreeSet<(&'static str, u64)>;

pub(super) fn nothing_is_left(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let before = in_kernel()?;
    let mut checks = Checks::new();
    checks.figure("before", before.len());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let drops = Drops::start(&[])?;
        let during: Ids = in_kernel()?.difference(&before).copied().collect();
        checks.that(!during.is_empty(), "bpftool shows nothing while ctwatch runs: this check is blind");
        checks.figure(&format!("during_{signal}"), during.len());
        if signal == Signal::SIGKILL {
            kill(drops.pid(), signal).context("killing ctwatch")?;
            drop(drops);
        } else {
            let run = drops.stop_with(signal)?;
            checks.equal(&format!("exit code after {signal}"), run.status.code(), Some(0));
        }
        let left = left_over(&before)?;
        checks.that(left.is_empty(), format!("after {signal}, still in the kernel: {left:?}"));
        let pinned = std::fs::read_to_string("/sys/kernel/tracing/kprobe_events").unwrap_or_default();
        checks.that(pinned.trim().is_empty(), format!("after {signal}, kprobe_events holds: {pinned}"));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// The kernel frees programs and maps after a grace period, so it gets a few seconds.
fn left_over(before: &Ids) -> Result<Ids> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let left: Ids = in_kernel()?.difference(before).copied().collect();
        if left.is_empty() || Instant::now() > until {
            return Ok(left);
        }
        thread::sleep(Duration::from_millis(300));
    }
}

fn in_kernel() -> Result<Ids> {
    let mut ids = Ids::new();
    for kind in ["prog", "map", "link"] {
        let text = run(&["bpftool", "-j", kind, "show"])?;
        let list: Value =
            serde_json::from_str(&text).with_context(|| format!("JSON of bpftool {kind} show"))?;
        // bpftool itself makes maps and programs for a moment; their names tell.
        for entry in list.as_array().into_iter().flatten() {
            let name = entry["name"].as_str().unwrap_or_default();
            if !name.starts_with("pid_iter") && !name.starts_with("libbpf_") {
                ids.insert((kind, entry["id"].as_u64().context("an object without id")?));
            }
        }
    }
    Ok(ids)
}
