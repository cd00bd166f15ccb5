//! What `replay`, `report`, `export` and `advise --recording` say of an incident whose figures are known.
//! The judge is whoever counted it live: the senders, and /proc/net/stat/nf_conntrack.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::checks::Checks;
use crate::counters::Counters;

/// Compares what all of them say with what was counted.
pub(super) fn agree(
    file: &Path,
    refused: &BTreeMap<u16, u64>,
    kernel: &Counters,
    checks: &mut Checks,
) -> Result<()> {
    let by_gc = replay(file, refused, kernel, checks)?;
    report(file, refused, kernel, by_gc, checks)?;
    export(file, refused, checks)?;
    let advice = lines(&["advise", "--format", "json", "--recording"], file)?;
    checks.that(
        advice.iter().any(|line| line["type"] == "advice" && line["table"]["max"].is_u64()),
        "no advice from the recording",
    );
    Ok(())
}

/// Gives what gc evicted meanwhile, if it came by: no counter of the kernel's has that.
fn replay(file: &Path, refused: &BTreeMap<u16, u64>, kernel: &Counters, checks: &mut Checks) -> Result<u64> {
    let said = lines(&["replay", "--speed", "max", "--format", "json"], file)?;
    let end = said.last().context("a replay without a line")?;
    checks.equal("replay: its last line", end["type"].as_str(), Some("end"));
    checks.equal("replay: table_full", end["counted"]["table_full"].as_u64(), Some(kernel.get("drop")));
    checks.equal("replay: evicted", end["counted"]["evicted"].as_u64(), Some(kernel.get("early_drop")));
    for counter in ["drop", "early_drop", "insert_failed", "chaintoolong"] {
        let replayed = end["kernel_counters"][counter].as_u64();
        checks.equal(&format!("replay: {counter}"), replayed, Some(kernel.get(counter)));
        checks.equal(
            &format!("replay: unexplained {counter}"),
            end["unexplained"][counter].as_i64(),
            Some(0),
        );
    }
    let rows = end["rows"].as_array().context("an end without rows")?;
    let per_port = rows
        .iter()
        .filter(|row| row["cause"] == "table_full")
        .filter_map(|row| Some((u16::try_from(row["port"].as_u64()?).ok()?, row["losses"].as_u64()?)));
    checks.equal_maps("replay: table_full per port against EPERM", &sums(per_port), refused);
    end["counted"]["gc_evicted"].as_u64().context("a replay's end without gc_evicted")
}

fn report(
    file: &Path,
    refused: &BTreeMap<u16, u64>,
    kernel: &Counters,
    by_gc: u64,
    checks: &mut Checks,
) -> Result<()> {
    let said = lines(&["report", "--format", "json"], file)?;
    let host = &said.first().context("a report without a line")?["hosts"][0];
    let story = &host["story"];
    checks.equal("report: packets lost", story["packets_lost"].as_u64(), Some(kernel.get("drop")));
    let entries = kernel.get("early_drop") + by_gc;
    checks.equal("report: entries lost", story["entries_lost"].as_u64(), Some(entries));
    checks.that(
        ["first_sign", "first_loss", "last_loss"].iter().all(|time| story[time].is_string()),
        format!("report: {story}"),
    );
    for counter in ["drop", "early_drop", "insert_failed", "chaintoolong"] {
        let reported = host["kernel_counters"][counter].as_u64();
        checks.equal(&format!("report: {counter}"), reported, Some(kernel.get(counter)));
        let ours = host["in_kernel_terms"][counter].as_u64();
        checks.equal(&format!("report: ours as {counter}"), ours, Some(kernel.get(counter)));
    }
    let ports = host["victims"]["ports"].as_array().context("a report without victims")?;
    let per_port = ports.iter().filter(|row| row["cause"] == "table_full").filter_map(|row| {
        let port = row["port"].as_str()?.strip_suffix("/udp")?.parse().ok()?;
        Some((port, row["losses"].as_u64()?))
    });
    checks.equal_maps("report: table_full per port against EPERM", &sums(per_port), refused);
    let by_fill = host["by_fill"].as_array().context("a report without bands of fill")?;
    let in_bands: u64 = by_fill.iter().filter_map(|band| band["packets_lost"].as_u64()).sum();
    checks.equal("report: packets lost, by fill", in_bands, kernel.get("drop"));
    checks.that(
        host["changes"].as_array().is_some_and(|changes| {
            changes.iter().any(|one| {
                one["name"].as_str().is_some_and(|name| name.ends_with("nf_conntrack_udp_timeout"))
                    && one["value"] == "31"
            })
        }),
        format!("report: changes {}", host["changes"]),
    );
    let processes = host["victims"]["processes"].as_array().context("a report without processes")?;
    checks.that(
        processes
            .iter()
            .any(|one| one["what"].as_str().is_some_and(|what| what.starts_with("ctwatch-tests"))),
        format!("report: processes {processes:?}"),
    );
    Ok(())
}

fn export(file: &Path, refused: &BTreeMap<u16, u64>, checks: &mut Checks) -> Result<()> {
    let said = lines(&["export", "--to", "ndjson"], file)?;
    let losses = said.iter().filter(|line| line["type"] == "losses" || line["type"] == "loss");
    let per_port = losses
        .filter(|line| line["cause"] == "table_full")
        .filter_map(|line| Some((u16::try_from(line["port"].as_u64()?).ok()?, line["losses"].as_u64()?)));
    checks.equal_maps("export: table_full per port against EPERM", &sums(per_port), refused);
    Ok(())
}

fn sums(pairs: impl Iterator<Item = (u16, u64)>) -> BTreeMap<u16, u64> {
    let mut sums = BTreeMap::new();
    for (port, losses) in pairs {
        *sums.entry(port).or_default() += losses;
    }
    sums
}

/// What ctwatch prints, a JSON object a line.
fn lines(arguments: &[&str], file: &Path) -> Result<Vec<Value>> {
    let output = Command::new("ctwatch").args(arguments).arg(file).output().context("starting ctwatch")?;
    ensure!(
        output.status.success(),
        "ctwatch {}: {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)?
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
        .collect()
}
