//! The capabilities of docs/privileges.md where kprobes are: each command of a live watch runs with exactly those of its row,
//! counts to the last loss with them, and says what it lacks, and what that costs, without one.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::usage::{ended, said};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::nftables;
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

const WATCHES: &[&str] = &["net_admin", "sys_admin", "sys_ptrace", "syslog", "dac_read_search"];

/// A command line that has these capabilities and little locked memory; what it runs comes after it.
fn starter(rights: &[&str]) -> Vec<String> {
    let set: String = rights.iter().map(|one| format!(",+{one}")).collect();
    let line = format!("ulimit -l 64; exec setpriv --inh-caps -all --bounding-set -all{set} \"$@\"");
    ["bash", "-c", &line, "bash"].map(str::to_owned).into()
}

fn with(rights: &[&str], line: &[&str]) -> Command {
    let starter = starter(rights);
    let mut command = Command::new(&starter[0]);
    command.args(&starter[1..]).arg("ctwatch").args(line);
    command
}

pub(super) fn exactly_those(guest: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let mut checks = Checks::new();
    let mut rights = WATCHES.to_vec();
    if guest.is_5_10() {
        rights.push("sys_resource");
    }
    let limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let starter = starter(&rights);
    let drops =
        Drops::start_by(&starter.iter().map(String::as_str).collect::<Vec<_>>(), &["--by", "process"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&[53, 6379]), 100))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    drop(limit);
    checks.figure("refused", sent.total_refused());
    checks.equal("backend", run.start.backend.as_str(), "kprobe");
    checks.that(sent.total_refused() > 50, "too few sends were refused to show anything");
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.that(run.end.all_explained(), format!("unexplained: {:?}", run.end.unexplained));

    for missing in rights.iter().copied() {
        let word = match missing {
            "sys_admin" => "CAP_SYS_ADMIN",
            "net_admin" => "CAP_NET_ADMIN",
            "syslog" => "only zeroes",
            "sys_resource" => "ulimit -l",
            // Without the others it goes on with less.
            _ => continue,
        };
        let rest: Vec<&str> = rights.iter().copied().filter(|one| *one != missing).collect();
        let output = ended(&mut with(&rest, &["drops", "--backend", "kprobe", "--duration", "1s"]))?;
        said(&mut checks, &format!("kprobe without {missing}"), &output, 3, word);
        // Where no backend was asked for by name the kernel's counters do.
        let output = ended(&mut with(&rest, &["drops", "--duration", "1s", "--format", "json"]))?;
        said(&mut checks, &format!("without {missing}"), &output, 0, word);
        said(&mut checks, &format!("without {missing}"), &output, 0, "totals only");
        let start = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
        let start: Value = serde_json::from_str(&start).with_context(|| format!("a start line: {start}"))?;
        checks.equal(&format!("backend without {missing}"), start["backend"].as_str(), Some("counters"));
    }

    // The programs that advice runs have what they need, too.
    rights.push("net_raw");
    let advice = ended(&mut with(&rights, &["advise", "--window", "3s", "--format", "json"]))?;
    checks.equal("exit code of advise", advice.status.code(), Some(0));
    let text = String::from_utf8_lossy(&advice.stderr).into_owned();
    let advice: Value = serde_json::from_slice(&advice.stdout).with_context(|| text)?;
    let notes = advice["notes"].to_string();
    checks.that(!notes.contains("failed") && !notes.contains("permitted"), format!("notes: {notes}"));

    let check = ended(Command::new("ctwatch").args(["check", "--format", "json"]))?;
    let check: Value = serde_json::from_slice(&check.stdout).context("JSON of check")?;
    let items = check["items"].as_array().context("check has no items")?;
    let item = items.iter().find(|item| item["name"] == "sandbox").context("check has no line `sandbox`")?;
    // Debian's 5.10 has no Landlock, and that is no obstacle.
    checks.equal("sandbox", item["ok"].as_bool(), (!guest.is_5_10()).then_some(true));
    checks.figure("sandbox", item["found"].to_string());
    Ok(Outcome::Passed(checks.finish()?))
}
