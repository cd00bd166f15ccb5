//! What people met in odd places: tables of other namespaces in trouble, tables without a limit, rows that sum up others.
//! Judged by what ctwatch says where a person or a script reads it.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::usage::{ended, said};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::ctwatch::Drops;
use crate::environments::Environment;
use crate::netns::Netns;
use crate::nftables;
use crate::sysctl::{self, Setting};
use crate::table::{self, LIMIT, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

fn ctwatch(arguments: &[&str]) -> Result<Output> {
    ended(Command::new("ctwatch").args(arguments))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Each netns that loses something or is half full is listed and told, on each backend and without any trigger.
pub(super) fn tables_in_trouble(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let (half_full, calm) = (Netns::create("half")?, Netns::create("calm")?);
    for (netns, entries) in [(&half_full, LIMIT * 3 / 4), (&calm, LIMIT / 4)] {
        netns.run(|| {
            nftables::track()?;
            table::fill_to(Mix::Assured, entries).map(drop)
        })?;
    }
    let folder = TempDir::new()?;
    let mut checks = Checks::new();
    for backend in ["kprobe", "tracepoint", "counters"] {
        let path = folder.path().join(format!("{backend}.ctw"));
        let path = path.to_str().context("a path")?;
        let recorded = ctwatch(&["record", "-o", path, "--backend", backend, "--duration", "8s"])?;
        checks.equal(&format!("{backend}: exit code of record"), recorded.status.code(), Some(0));
        let report: Value = serde_json::from_slice(&ctwatch(&["report", path, "--format", "json"])?.stdout)?;
        let tables = report["hosts"][0]["tables"].as_array().cloned().unwrap_or_default();
        let told: Vec<&str> = tables.iter().filter_map(|table| table["netns"].as_str()).collect();
        checks.equal(&format!("{backend}: tables in trouble"), told, vec![half_full.name()]);
        let table = tables.first().unwrap_or(&Value::Null);
        let held: u64 = table["occupants"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["entries"].as_u64())
            .sum();
        checks.equal(&format!("{backend}: entries told"), held, LIMIT * 3 / 4);
        let listings = text(&ctwatch(&["export", path, "--to", "csv", "--table", "listings"])?);
        checks.that(listings.contains(half_full.name()), format!("{backend}: not listed: {listings}"));
        checks.that(!listings.contains(calm.name()), format!("{backend}: one that is calm was listed"));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// nf_conntrack_max = 0 is "no limit" wherever a limit stands, and a trigger on fill says that it can't fire.
pub(super) fn no_limit(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = Setting::set(sysctl::MAX, 0)?;
    table::fill_to(Mix::OneWay, 400)?;
    let folder = TempDir::new()?;
    let path = folder.path().join("a.ctw");
    let path = path.to_str().context("a path")?;
    let mut checks = Checks::new();
    for condition in ["fill>=90%", "full_in<60s"] {
        let refused = ctwatch(&["record", "-o", path, "--duration", "3s", "--once", "--when", condition])?;
        said(&mut checks, condition, &refused, 3, "nf_conntrack_max is 0, so the table has no limit");
    }
    checks.that(fs::read_dir(folder.path())?.next().is_none(), "a refused recording left something");
    let conditions = ["--when", "fill>=90%", "--when", "drops>0"];
    let recorded = ctwatch(&[&["record", "-o", path, "--duration", "3s"][..], &conditions].concat())?;
    said(&mut checks, "one trigger of two", &recorded, 0, "fill>=90%: it can't fire");
    let report = text(&ctwatch(&["report", path])?);
    for line in ["entries, no limit, in ", "Table full: never, it has no limit", "entries, no limit in "] {
        checks.that(report.contains(line), format!("no `{line}`: {report}"));
    }
    for wrong in [" of 0", "0 to 50 %", "  ?  "] {
        checks.that(!report.contains(wrong), format!("`{wrong}`: {report}"));
    }
    for arguments in [&["table"][..], &["drops", "--duration", "2s"], &["advise", "--window", "3s"]] {
        let shown = text(&ctwatch(arguments)?);
        checks.that(shown.contains(", no limit"), format!("{arguments:?} doesn't say it: {shown}"));
        checks.that(!shown.contains(" of 0") && !shown.contains("/0"), format!("{arguments:?}: {shown}"));
    }
    let script = text(&ctwatch(&["advise", "--window", "3s", "--format", "sh"])?);
    checks.that(!script.contains("entries of 0"), format!("the script: {script}"));
    Ok(Outcome::Passed(checks.finish()?))
}

/// What sums up the rest stands with the rows it sums up, one is one, and times keep their columns.
pub(super) fn rows_and_columns(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let folder = TempDir::new()?;
    let out = folder.path().join("out");
    let mut child = Command::new("ctwatch")
        .args(["drops", "--duration", "8s", "--by", "flow", "--top", "2"])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out)?)
        .spawn()
        .context("starting ctwatch")?;
    let until = Instant::now() + Duration::from_secs(90);
    while !fs::read_to_string(&out)?.contains("Columns:") {
        ensure!(Instant::now() < until, "drops doesn't start");
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_secs(1));
    table::fill(Mix::Assured)?;
    let refused = udp::send(&Plan::new(loopback(&[53, 514, 6379]), 1))?.total_refused();
    ensure!(child.wait()?.success(), "drops failed");
    let shown = fs::read_to_string(&out)?;
    let summary = shown.split("\nSummary of ").nth(1).context("no summary")?;
    let at = |word: &str| summary.lines().position(|line| line.contains(word));
    let mut checks = Checks::new();
    checks.figure("refused", refused);
    checks.that(refused >= 4, "too few were refused to show anything");
    let (rest, occupants) = (at("other flows"), at("top occupants"));
    checks.that(rest.is_some() && rest < occupants, format!("the rest is not with the rows: {summary}"));
    checks.that(!summary.contains(" 1 packets"), format!("1 packets: {summary}"));
    checks.that(summary.contains(" 1 packet "), format!("no row of one packet: {summary}"));
    // A first tick that is late on a busy host makes the times of a short interval as wide as those of a long one.
    for (interval, possible) in [("1500ms", &[8][..]), ("500ms", &[8, 10])] {
        let shown = text(&ctwatch(&["drops", "--interval", interval, "--duration", "2s"])?);
        let is_time =
            |word: &&str| word.len() >= 8 && word.as_bytes()[2] == b':' && word.as_bytes()[5] == b':';
        let widths: Vec<usize> =
            shown.lines().filter_map(|line| line.split(' ').next()).filter(is_time).map(str::len).collect();
        let is_one = possible.iter().any(|width| !widths.is_empty() && widths.iter().all(|one| one == width));
        checks.that(is_one, format!("{interval}: times of {widths:?} columns: {shown}"));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// Rights as containers and user namespaces leave them, where there are kprobes to be refused: what `check` says has been tried, no
/// root is told to become root, and what falls to the counters counts as the kernel does.
pub(super) fn rights(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let words = |output: &Output| {
        let all = format!("{}{}", text(output), String::from_utf8_lossy(&output.stderr));
        all.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let mut checks = Checks::new();
    let host = words(&ctwatch(&["check"])?);
    for tried in ["one was attached to early_drop", "get through", "table: tried", "programs load"] {
        checks.that(host.contains(tried), format!("`{tried}` is not said on the host: {host}"));
    }
    for (name, right, wrong) in [
        ("docker run", "missing CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_NET_ADMIN", "run as root"),
        ("docker run", "perf_event_open() (EPERM), setns() (EPERM) are refused", "kptr_restrict"),
        ("docker run", "--cap-add SYS_ADMIN", "sudo"),
        (
            "podman run, rootless",
            "in a user namespace: capabilities of the initial one are needed",
            "are present",
        ),
        ("unshare -U -r -n", "run it on the host", "one was attached"),
        ("unshare -U -r -n", "CAP_SYSLOG of the initial user namespace is missing", "kptr_restrict"),
        (
            "a seccomp profile that refuses the calls",
            "bpf() (EPERM), perf_event_open() (EPERM), setns() (EPERM)",
            "sudo",
        ),
        ("a seccomp profile that refuses the calls", "--security-opt seccomp=unconfined", "one was entered"),
    ] {
        let there = Environment::named(name)?;
        let check = words(&there.run(&["ctwatch", "check"])?);
        checks.that(check.contains(right), format!("{name}: `{right}` is not said: {check}"));
        checks.that(!check.contains(wrong), format!("{name}: `{wrong}`: {check}"));
        checks.that(check.contains("would use the counters backend"), format!("{name}: {check}"));
        let named = there.run(&["ctwatch", "drops", "--duration", "1s", "--backend", "kprobe"])?;
        checks.equal(&format!("{name}: exit code of a backend that was named"), named.status.code(), Some(3));
    }
    // Without a right, in the host's netns: the counters alone count what the senders are refused.
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let mut drops = Drops::start_by(
        &["setpriv", "--inh-caps", "-all", "--bounding-set", "-all"],
        &["--duration", "20s"],
    )?;
    let refused = udp::send(&Plan::new(loopback(&[6379]), 40))?.total_refused();
    let run = drops.finish()?;
    checks.figure("refused", refused);
    checks.equal("backend without any right", run.start.backend.as_str(), "counters");
    checks.equal("kernel_counters.drop", run.end.kernel_counters.get("drop").copied(), Some(refused));
    checks
        .that(run.stderr.contains("totals only"), format!("stderr doesn't say what is lost: {}", run.stderr));
    Ok(Outcome::Passed(checks.finish()?))
}
