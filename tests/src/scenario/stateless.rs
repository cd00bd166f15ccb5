//! The advice to take away rules that make conntrack track, followed by its own script under traffic: no new entries, no
//! request lost, and every rule back after `undo`. Where state decides what passes, it is refused.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};

use super::story::Story;
use super::{Guest, Outcome};
use crate::advice::settings::Settings;
use crate::checks::Checks;
use crate::nftables;
use crate::shell::{run, run_with_input};
use crate::sysctl::{self, Setting};
use crate::traffic::http::{Load, Report};

const RATE: f64 = 15.0;
const WINDOW: &str = "3s";
const TIME_WAIT_PATH: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
const TIME_WAIT: u64 = 5;

/// A table of its own besides, which has to stay where it is, and a set that has to keep its elements.
const NFT: &str = "table inet guard {
 set trusted {\n  type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.7 }\n }
 chain in {\n  type filter hook input priority 0; policy accept;
  ct state vmap { established : accept, related : accept, invalid : drop }
  ip saddr @trusted tcp dport 22 accept\n  ct state new counter comment \"it's new\"\n }
 chain out {\n  type filter hook output priority 0; ct state new counter\n }
}
table ip mine {\n chain in {\n  type filter hook input priority 0; tcp dport 9 counter accept\n }\n}
";
const IPTABLES: &str =
    "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:mine - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment \"what is known\" -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP\n-A INPUT -j mine\n-A mine -p tcp -m tcp --dport 22 -j ACCEPT
-A OUTPUT -m state --state NEW -j ACCEPT\nCOMMIT\n";

pub(super) fn taken_away_and_put_back(_: &Guest) -> Result<Outcome> {
    let _time_wait = Setting::set(TIME_WAIT_PATH, TIME_WAIT)?;
    let story = Story::up(65_536)?;
    let mut checks = Checks::new();
    nftables::load(NFT)?;
    try_it("nft", &mut checks)?;
    nftables::flush()?;
    for restore in ["iptables-restore", "ip6tables-restore"] {
        run_with_input(&[restore], IPTABLES)?;
    }
    try_it("iptables-nft", &mut checks)?;
    nftables::flush()?;
    run_with_input(&["iptables-legacy-restore"], IPTABLES)?;
    try_it("iptables-legacy", &mut checks)?;
    run_with_input(&["iptables-legacy-restore"], "*filter\nCOMMIT\n")?;

    refused(
        "a router",
        "table inet filter {\n chain forward {\n  type filter hook forward priority 0; policy drop;\n  ct state \
         established,related accept\n  tcp dport 80 accept\n }\n}\n",
        "established",
        &mut checks,
    )?;
    drop(story);
    Ok(Outcome::Passed(checks.finish()?))
}

/// A load for so many seconds.
fn send(seconds: f64) -> thread::JoinHandle<Result<Report>> {
    thread::spawn(move || Load::new(([127, 0, 0, 1], 80).into(), RATE, seconds).run())
}

/// The script for this piece of advice, asked for under load, however long that takes.
fn script() -> Result<String> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            while !is_over.load(Relaxed) {
                send(1.0).join().expect("a load doesn't panic")?;
            }
            Ok(())
        });
        thread::sleep(Duration::from_secs(1));
        let text = run(&["ctwatch", "advise", "--window", WINDOW, "--format", "sh", "--item", "firewall"]);
        is_over.store(true, Relaxed);
        load.join().expect("a load doesn't panic")?;
        text
    })
}

fn try_it(tool: &str, checks: &mut Checks) -> Result<()> {
    let text = script().with_context(|| format!("asking with rules of {tool}"))?;
    let before = Settings::read()?;
    let file = tempfile::NamedTempFile::new().context("a file for the script")?;
    fs::write(file.path(), &text).context("writing the script")?;
    let file = file.path().to_str().context("the script's path")?;
    let step = |step: &str| run(&["sh", file, step]).with_context(|| format!("{tool}: `{step}` of\n{text}"));

    step("now")?;
    checks.that(
        !before.changes(&Settings::read()?).is_empty(),
        format!("{tool}: `now` changed nothing: {text}"),
    );
    // What waited expires, and nothing comes after it.
    thread::sleep(Duration::from_secs(TIME_WAIT + 1));
    let waiting = run(&["conntrack", "-L", "-p", "tcp", "--state", "TIME_WAIT"])?;
    checks.equal(&format!("{tool}: TIME_WAIT entries after `now`"), waiting.lines().count(), 0);
    let _ = run(&["conntrack", "-F"]);
    let report = send(3.0).join().expect("a load doesn't panic")?;
    checks.figure(&format!("{tool}_requests"), report.ok);
    checks.equal(&format!("{tool}: requests that failed without the rules"), report.all_failed(), 0);
    checks.equal(&format!("{tool}: entries without the rules"), sysctl::read(sysctl::COUNT)?, 0);

    // Once more must not save the rules without those that were taken away.
    let _ = step("now");
    step("keep")?;
    step("undo")?;
    let left = before.changes(&Settings::read()?);
    checks.that(left.is_empty(), format!("{tool}: after `undo`: {left:?}"));
    step("undo").context("undoing twice")?;
    checks.that(
        before.changes(&Settings::read()?).is_empty(),
        format!("{tool}: a second `undo` changed something"),
    );
    let report = send(2.0).join().expect("a load doesn't panic")?;
    checks.equal(&format!("{tool}: requests that failed after `undo`"), report.all_failed(), 0);
    checks.that(sysctl::read(sysctl::COUNT)? > 0, format!("{tool}: nothing is tracked after `undo`"));
    let _ = run(&["conntrack", "-F"]);
    Ok(())
}

fn refused(what: &str, rules: &str, why: &str, checks: &mut Checks) -> Result<()> {
    nftables::flush()?;
    nftables::load(rules)?;
    let text = script().with_context(|| what.to_owned())?;
    checks.that(text.contains(why), format!("{what}: the script doesn't say why it is refused: {text}"));
    let before = Settings::read()?;
    run(&["sh", "-c", &text, "script", "now"])?;
    let changed = before.changes(&Settings::read()?);
    checks.that(changed.is_empty(), format!("{what}: its script does {changed:?}"));
    Ok(())
}
