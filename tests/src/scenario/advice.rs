//! `ctwatch advise` on a small story: its numbers against the load's own, its commands against the kernel, its refusals.
//! How near predictions come is measured by `cargo xtask bench advice`, where a busy host can't disturb.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::module::without_conntrack;
use super::story::Story;
use super::usage::{ended, said};
use super::{Guest, Outcome};
use crate::advice::settings::Settings;
use crate::checks::Checks;
use crate::counters::Counters;
use crate::shell::run;
use crate::sysctl::{self, Setting};
use crate::traffic::http::{Begun, Load};
use crate::{nftables, sys};

/// Requests a second, which an emulated machine bears while its host is busy with others.
const RATE: f64 = 15.0;
/// Too few entries for them,
const MAX: u64 = 200;
/// since each request is two flows, whose entries wait so long, seconds.
const TIME_WAIT: u64 = 10;

const WINDOW: &str = "30s";
/// For what is known to be advised: the same flows come, only fewer of them are seen.
const SHORT_WINDOW: &str = "10s";

/// How long the table may take until it is full.
const PATIENCE: Duration = Duration::from_secs(90);

/// The fewest there can be: each is looked at about once a second, which takes what has expired out of it. With more, a
/// full table waits for gc, which comes every 18 to 120 s, and a window may hold none of its bursts.
const BUCKETS: u64 = 512;

const TIME_WAIT_PATH: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";

/// A load that goes on until this process ends.
fn load(port: u16) -> Begun {
    let load = Load::new(([127, 0, 0, 1], port).into(), RATE, 600.0);
    let begun = load.begun.clone();
    thread::spawn(move || {
        sys::run_first();
        load.run()
    });
    begun
}

fn advise(args: &[&str]) -> Result<Value> {
    let text = run(&[&["ctwatch", "advise", "--format", "json"], args].concat())?;
    serde_json::from_str(&text).context("reading the advice")
}

fn item<'a>(advice: &'a Value, id: &str) -> Result<&'a Value> {
    let items = advice["items"].as_array().context("the advice has no items")?;
    items.iter().find(|item| item["id"] == id).with_context(|| {
        let ids: Vec<&str> = items.iter().filter_map(|item| item["id"].as_str()).collect();
        format!("no advice is called {id}; there is {}", ids.join(", "))
    })
}

pub(super) fn followed_and_undone(_: &Guest) -> Result<Outcome> {
    let _time_wait = Setting::set(TIME_WAIT_PATH, TIME_WAIT)?;
    let _story = Story::up(MAX)?;
    let _buckets = Setting::set(sysctl::BUCKETS, BUCKETS)?;
    let before = Counters::read()?;
    let begun = load(80);
    let until = Instant::now() + PATIENCE;
    while Counters::read()?.since(&before).get("drop") == 0 {
        ensure!(Instant::now() < until, "the table wasn't full within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(200));
    }
    // By then entries go as fast as they come, in the bursts in which gc frees them.
    thread::sleep(Duration::from_secs(15));
    let before = Counters::read()?;
    let asked = Instant::now();
    let advice = advise(&["--window", WINDOW])?;
    // A host that is busy makes the load late, and then early: what advice saw is what came, not what was planned.
    let window = Duration::from_secs_f64(advice["window_s"].as_f64().context("the advice has no window")?);
    let (slowest, fastest) = begun.rates(asked, Instant::now(), window);
    let mut checks = Checks::new();
    checks.figure("begun", format!("{slowest:.1} to {fastest:.1}"));
    checks.that(slowest > RATE / 2.0, "too few requests began to show anything");
    checks.that(Counters::read()?.since(&before).get("drop") > 0, "the table was never full");
    for port in [80, 6379] {
        let services = advice["services"].as_array().context("the advice has no services")?;
        let service = services.iter().find(|one| one["port"] == port && one["direction"] == "loopback");
        let offered = service.and_then(|one| one["offered_per_s"].as_f64()).unwrap_or(0.0);
        checks.figure(&format!("offered_{port}"), format!("{offered:.1}"));
        checks.that(
            offered >= slowest * 0.75 && offered <= fastest * 1.25,
            format!("{slowest:.1} to {fastest:.1} flows/s came to port {port}, advise says {offered}"),
        );
    }
    let needed = advice["table"]["demand"]["needed"].as_f64().unwrap_or(0.0);
    checks.figure("needed", format!("{needed:.0}"));
    checks.that(
        needed >= 2.0 * slowest * TIME_WAIT as f64 * 0.75,
        format!("{needed} entries are too few for that demand"),
    );

    // A raised limit and a flow past conntrack: both have to work, and to leave no trace once undone.
    let settings = Settings::read()?;
    let folder = tempfile::tempdir().context("a folder for scripts")?;
    for id in ["max", "notrack-6379-tcp-lo"] {
        item(&advice, id)?;
        let text = run(&["ctwatch", "advise", "--window", SHORT_WINDOW, "--format", "sh", "--item", id])?;
        let script = folder.path().join(format!("{id}.sh"));
        fs::write(&script, text).with_context(|| format!("writing the script for {id}"))?;
        let script = script.to_str().context("the script's path")?;
        let unchanged = settings.changes(&Settings::read()?);
        checks.that(unchanged.is_empty(), format!("advise changed something: {unchanged:?}"));
        let without = run(&["sh", "-c", "sh $0 2>&1; echo $?", script])?;
        checks.equal(&format!("{id}: exit code without a word"), without.lines().last(), Some("2"));
        run(&["sh", script, "now"])?;
        let changed = settings.changes(&Settings::read()?);
        checks.that(!changed.is_empty(), format!("{id}: `now` changed nothing"));
        if id == "max" {
            // Retries of what was refused have passed by then.
            thread::sleep(Duration::from_secs(2));
            let before = Counters::read()?;
            thread::sleep(Duration::from_secs(12));
            checks.equal("drops with a larger table", Counters::read()?.since(&before).get("drop"), 0);
        }
        for step in ["keep", "undo"] {
            let done = run(&["sh", script, step]);
            checks.that(done.is_ok(), format!("{id}: `{step}`: {done:?}"));
        }
        let left = settings.changes(&Settings::read()?);
        checks.that(left.is_empty(), format!("{id}: after `undo`: {left:?}"));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn refused(_: &Guest) -> Result<Outcome> {
    let _time_wait = Setting::set(TIME_WAIT_PATH, TIME_WAIT)?;
    let _story = Story::up(65_536)?;
    let mut checks = Checks::new();
    let mut judge = |what: &str, rules: &str, port: u16, word: &str| -> Result<()> {
        nftables::load(rules)?;
        load(port);
        thread::sleep(Duration::from_secs(3));
        let advice = advise(&["--window", "6s"])?;
        let item = item(&advice, &format!("notrack-{port}-tcp-lo")).with_context(|| what.to_owned())?;
        let why = item["refused"].to_string();
        checks.that(why.contains(word), format!("{what}: refused because of {why}"));
        checks.equal(&format!("{what}: commands"), item["commands"]["now"].as_array().map(Vec::len), Some(0));
        // Its script says why, and does nothing.
        let id = format!("notrack-{port}-tcp-lo");
        let script = run(&["ctwatch", "advise", "--window", "3s", "--format", "sh", "--item", &id])?;
        let settings = Settings::read()?;
        run(&["sh", "-c", &script, "script", "now"])?;
        let changed = settings.changes(&Settings::read()?);
        checks.that(changed.is_empty(), format!("{what}: its script does {changed:?}"));
        let is_refused = |item: &Value| item["refused"].as_array().is_some_and(|why| !why.is_empty());
        let items = advice["items"].as_array().context("the advice has no items")?;
        checks.that(items.is_sorted_by_key(is_refused), format!("{what}: what is refused doesn't come last"));
        Ok(())
    };
    judge(
        "a port that NAT leads elsewhere",
        // With the names of iptables' own tables, but not made by it.
        "table ip nat {\n chain out {\n  type nat hook output priority -100; policy accept;\n  tcp dport 8000 dnat to \
         127.0.0.1:80\n }\n}\n",
        8000,
        "dnat",
    )?;
    nftables::flush()?;
    judge(
        "a firewall that takes answers for ESTABLISHED alone",
        "table inet guard {\n chain in {\n  type filter hook input priority 0; policy drop;\n  ct state \
         established,related accept\n  tcp dport { 80, 6379, 8000 } ct state new accept\n }\n}\n",
        80,
        "established",
    )?;
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn odds(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let mut checks = Checks::new();
    let nobody = ended(Command::new("ctwatch").args(["advise", "--window", "3s"]).uid(65_534).gid(65_534))?;
    said(&mut checks, "advice for nobody", &nobody, 3, "root");

    let empty = ended(Command::new("ctwatch").args(["advise", "--window", "3s"]))?;
    said(&mut checks, "advice on an empty table", &empty, 0, "");
    let shown = String::from_utf8_lossy(&empty.stdout).into_owned();
    checks.that(!shown.is_empty(), "nothing is said of an empty table");

    // A host without nft and iptables: they are hidden from this one command.
    let hide = "mkdir -p /run/nothing; mount --bind /run/nothing /usr/sbin; mount --bind /run/nothing /sbin; \
                exec ctwatch advise --window 3s";
    let bare = ended(Command::new("unshare").args(["-m", "bash", "-c", hide]))?;
    said(&mut checks, "advice without nft and iptables", &bare, 0, "");
    let shown = String::from_utf8_lossy(&bare.stdout).into_owned();
    checks.that(
        shown.contains("nft is not installed"),
        format!("it doesn't say that it can't read nft's rules: {shown}"),
    );
    let unknown = ended(Command::new("ctwatch").args(["advise", "--window", "3s", "--item", "luck"]))?;
    said(&mut checks, "an unknown piece of advice", &unknown, 2, "luck");
    let wrong = ended(Command::new("ctwatch").args(["advise", "--what-if", "luck=7"]))?;
    said(&mut checks, "an unknown what-if", &wrong, 2, "luck");
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn not_loaded(_: &Guest) -> Result<Outcome> {
    without_conntrack(&["advise", "--window", "3s"], |_| Ok(()))
}
