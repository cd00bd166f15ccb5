//! Rule sets in a recording: the next morning NOTRACK is judged as it was live, by the rules in force that night.
//! What live says is asked while the table is full; the rules change before the recorder ends.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use ::ctwatch::record::Recording;
use ::ctwatch::record::rows::SnapshotReason;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::record::Recorder;
use super::story::Story;
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::nftables;
use crate::shell::run;
use crate::sys;
use crate::traffic::http::Load;

const WINDOW: &str = "12s";
/// One service is redirected, which forbids it; the other has no rule.
const RULES: &str = "table ip lead {\n chain out {\n  type nat hook output priority -100;\n  tcp dport 8000 dnat to \
                     127.0.0.1:80\n }\n}\ntable inet filter {\n chain in {\n  type filter hook input priority 0;\n  tcp dport 9 \
                     counter accept comment \"of acme\"\n }\n}\n";
const OTHER_RULES: &str = "table inet later {\n chain in {\n  type filter hook input priority 0;\n  ct state new tcp dport 10 \
                           accept\n }\n}\n";

fn load(port: u16) {
    thread::spawn(move || {
        sys::run_first();
        Load::new(([127, 0, 0, 1], port).into(), 10.0, 600.0).run()
    });
}

fn advise(args: &[&str]) -> Result<Value> {
    let text = run(&[&["ctwatch", "advise", "--format", "json", "--window", WINDOW], args].concat())?;
    serde_json::from_str(&text).context("reading the advice")
}

/// What is said of exempting each service: refused for which rules, or the commands.
fn verdicts(advice: &Value) -> Vec<(String, Value)> {
    let items = advice["items"].as_array().into_iter().flatten();
    let notrack = items.filter(|item| matches!(item["kind"].as_str(), Some("notrack" | "firewall")));
    let mut found: Vec<_> = notrack
        .map(|item| {
            let id = item["id"].as_str().unwrap_or_default().to_owned();
            (id, json!({ "refused": item["refused"], "commands": item["commands"] }))
        })
        .collect();
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

pub(super) fn judged_as_live(_: &Guest) -> Result<Outcome> {
    let _time_wait =
        crate::sysctl::Setting::set("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", 10)?;
    let _story = Story::up(150)?;
    let _buckets = crate::sysctl::Setting::set(crate::sysctl::BUCKETS, 512)?;
    nftables::load(RULES)?;
    load(8000);
    let folder = tempfile::tempdir().context("a folder for recordings")?;
    let file = folder.path().join("night.ctw");
    let mut recorder = Recorder::start(folder.path(), &file, &["--when", "drops>0", "--after", "20s"])?;
    recorder.wait_for("incident", 1)?;
    thread::sleep(Duration::from_secs(5));
    let live = advise(&[])?;
    let mut checks = Checks::new();
    // Behind the window, and long before the recorder ends.
    nftables::flush()?;
    nftables::load(OTHER_RULES)?;
    wait_for_rules(&file, 2)?;
    recorder.signal(Signal::SIGTERM)?;
    recorder.end()?;

    let recorded = advise(&["--recording", file.to_str().context("the file's path")?])?;
    let (live, recorded) = (verdicts(&live), verdicts(&recorded));
    checks.figure("verdicts", live.len());
    let of = |all: &[(String, Value)], id: &str| {
        all.iter().find(|(one, _)| one == id).map(|(_, what)| what.clone())
    };
    for id in ["notrack-6379-tcp-lo", "notrack-8000-tcp-lo"] {
        let said = of(&live, id).with_context(|| format!("live says nothing of {id}: {live:?}"))?;
        checks.equal(&format!("{id}: recorded"), of(&recorded, id), Some(said.clone()));
        let is_refused = said["refused"].as_array().is_some_and(|why| !why.is_empty());
        checks.equal(&format!("{id}: refused"), is_refused, id.contains("8000"));
    }
    for (id, said) in &live {
        let then = of(&recorded, id);
        checks.that(
            then.is_none() || then.as_ref() == Some(said),
            format!("{id}: live {said}, recorded {then:?}"),
        );
    }
    stored(&file, &mut checks)?;
    hidden(&file, &mut checks)?;
    Ok(Outcome::Passed(checks.finish()?))
}

/// Waits until the recording holds so many rule sets.
fn wait_for_rules(file: &Path, count: usize) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(180);
    loop {
        let recording = Recording::open(file)?;
        let run = recording.runs()?.first().context("no run")?.id;
        let found = recording.rules(run)?.len();
        if found >= count {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{found} rule sets are in the recording");
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Two, though counters moved all the time.
fn stored(file: &Path, checks: &mut Checks) -> Result<()> {
    let recording = Recording::open(file)?;
    recording.verify()?;
    let rules = recording.rules(1)?;
    let why: Vec<_> = rules.iter().map(|one| one.reason).collect();
    // An incident lists them, too: whichever comes first finds that they have changed.
    let is_expected =
        matches!(why[..], [SnapshotReason::Start, SnapshotReason::Changed | SnapshotReason::Trigger]);
    checks.that(is_expected, format!("rules were stored for {why:?}"));
    for (stored, word) in rules.iter().zip(["of acme", "later"]) {
        let packed = stored.rules.as_ref().context("rules were dropped")?;
        checks.that(packed.unpack()?.contains(word), format!("{word} is not in the rules stored"));
        checks.figure(word, format!("{} of {} bytes", packed.bytes.len(), packed.size));
    }
    Ok(())
}

/// Nothing of the rules is in what is anonymized, and the verdicts are.
fn hidden(file: &Path, checks: &mut Checks) -> Result<()> {
    for args in
        [&["export", "--to", "ndjson", "--anonymize"][..], &["report", "--format", "json", "--anonymize"]]
    {
        let output = Command::new("ctwatch").args(args).arg(file).output().context("starting ctwatch")?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for word in ["of acme", "table ip lead", "dnat to", "ip lead"] {
            checks.that(!text.contains(word), format!("`{word}` is in {args:?}"));
        }
        let verdict =
            if args[0] == "report" { "a rule translates these flows" } else { "\"type\":\"rules\"" };
        checks.that(text.contains(verdict), format!("no verdict in {args:?}"));
    }
    fs::metadata(file).context("the recording")?;
    Ok(())
}
