//! `ctwatch table` where not all is well: churn and resizes, an empty table, too few rights, no conntrack.
//! What the kernel was told before is the judge: entries that stay must be counted once, whatever goes on around them.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::module::without_conntrack;
use super::usage::{ended, said};
use super::{Guest, Outcome};
use crate::census::{ctwatch_table, rows_by, table_of};
use crate::checks::Checks;
use crate::ctnetlink::{Entry, Maker, TcpState};
use crate::netns::{Netns, own_inode};
use crate::nftables;
use crate::shell::run;
use crate::sysctl::{self, Setting};

/// Entries that stay, while others on another port come and go.
const STAY: u16 = 6379;
const GO: u16 = 7000;

/// Entries of the stayers' row, and the table.
fn look(netns: u64) -> Result<(Option<u64>, Value)> {
    let report = ctwatch_table(&["--netns", "host"])?;
    let rows = rows_by(&report, netns, |row| row["port"].as_u64())?;
    Ok((rows.get(&u64::from(STAY)).copied(), table_of(&report, netns)?.clone()))
}

pub(super) fn churn_and_resize(_: &Guest) -> Result<Outcome> {
    // Long chains, for it is within a chain that a dump repeats itself.
    let _buckets = Setting::set(sysctl::BUCKETS, 2_048)?;
    let _limit = Setting::set(sysctl::MAX, 100_000)?;
    let stayers = 12_000_u32;
    let tcp = |index, port| Entry::nth(index, port, Some(TcpState::Established), true);
    Maker::open()?.create((0..stayers).map(|index| tcp(index, STAY)))?;
    let netns = own_inode()?;
    let mut checks = Checks::new();

    let stop = AtomicBool::new(false);
    let churn = || -> Result<u64> {
        let (mut maker, mut rounds) = (Maker::open()?, 0);
        while !stop.load(Ordering::Relaxed) {
            let entries = || (0..6_000).map(|index| tcp(100_000 + index, GO));
            maker.create(entries())?;
            maker.delete(entries())?;
            rounds += 1;
        }
        Ok(rounds)
    };
    let (looks, duplicates, differences, rounds) = thread::scope(|scope| -> Result<_> {
        let churning = scope.spawn(churn);
        let (mut looks, mut duplicates, mut differences) = (0, 0, 0);
        let until = Instant::now() + Duration::from_secs(90);
        let looked = loop {
            let (stay, table) = match look(netns) {
                Ok(seen) => seen,
                Err(error) => break Err(error),
            };
            checks.equal(&format!("stayers in look {looks} under churn"), stay, Some(stayers.into()));
            looks += 1;
            duplicates += table["duplicates"].as_u64().unwrap_or(0);
            let unlisted = table["unlisted"].as_i64().unwrap_or(0);
            differences += u32::from(unlisted != 0);
            checks.that(
                unlisted == 0 || table["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()),
                format!("a difference without a reason: {table}"),
            );
            if (looks >= 5 && duplicates > 0) || Instant::now() > until {
                break Ok(());
            }
        };
        stop.store(true, Ordering::Relaxed);
        let rounds = churning.join().expect("the churn panicked")?;
        looked?;
        Ok((looks, duplicates, differences, rounds))
    })?;
    checks.figure("churn_rounds", rounds);
    checks.figure("looks", looks);
    checks.figure("duplicates", duplicates);
    checks.figure("differences", differences);
    checks.that(duplicates > 0, "no dump repeated itself, so this shows nothing");

    let mut restarts = 0;
    for (round, buckets) in
        [4_096, 2_048, 8_192, 2_048, 16_384, 4_096].into_iter().cycle().take(24).enumerate()
    {
        let (stay, table) = thread::scope(|scope| -> Result<_> {
            let looking = scope.spawn(|| look(netns));
            thread::sleep(Duration::from_millis(30 * (round as u64 % 8)));
            std::fs::write(sysctl::BUCKETS, buckets.to_string()).context("resizing the table")?;
            looking.join().expect("a look panicked")
        })?;
        checks.that(table["resized"].is_null(), format!("one resize spoilt the last listing too: {table}"));
        checks.equal(&format!("stayers while the table gets {buckets} buckets"), stay, Some(stayers.into()));
        restarts += table["restarts"].as_u64().unwrap_or(0);
    }
    checks.figure("restarts", restarts);
    checks.that(restarts > 0, "no resize fell into a listing, so this shows nothing");
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn empty_table(_: &Guest) -> Result<Outcome> {
    // 5.10 has no such module, and Debian's 6.1 was built without it.
    let kernel_tells = run(&["modprobe", "nfnetlink_hook"]).is_ok();
    let other = Netns::create("empty")?;
    let netns = other.inode();
    let mut checks = Checks::new();
    let mut judge = |what: &str, tracks: bool, words: &str| -> Result<()> {
        let report = ctwatch_table(&["--netns", other.name()])?;
        let table = table_of(&report, netns)?;
        checks.equal(&format!("{what}: listed"), table["listed"].as_u64(), Some(0));
        checks.equal(&format!("{what}: rows"), report["rows"].as_array().map(Vec::len), Some(0));
        let (tracks, words) = match kernel_tells {
            true => (Some(tracks), words),
            false => (None, "can't tell"),
        };
        checks.equal(&format!("{what}: tracks"), table["tracks"].as_bool(), tracks);
        let shown = run(&["ctwatch", "table", "--netns", other.name()])?
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        checks.that(shown.contains("the table is empty"), format!("{what}: {shown}"));
        checks.that(shown.contains(words), format!("{what}: {shown}"));
        Ok(())
    };
    judge("without a rule", false, "no rule here enables conntrack")?;
    other.run(nftables::track)?;
    judge("with a rule", true, "rules here enable conntrack")?;
    other.run(nftables::flush)?;
    judge("when the rule is gone", false, "no rule here enables conntrack")?;
    checks.figure("kernel_tells", kernel_tells);
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn rights_and_mistakes(_: &Guest) -> Result<Outcome> {
    use std::os::unix::process::CommandExt as _;
    nftables::track()?;
    Maker::open()?.create((0..10).map(|index| Entry::nth(index, 80, None, true)))?;
    let mut checks = Checks::new();
    let nobody = ended(Command::new("ctwatch").arg("table").uid(65_534).gid(65_534))?;
    said(&mut checks, "a table for nobody", &nobody, 3, "CAP_NET_ADMIN");
    let mistakes: [(&[&str], i32, &str); 5] = [
        (&["table", "--netns", "nowhere"], 2, "nowhere"),
        (&["table", "--by", "colour"], 2, "direction"),
        (&["table", "--by", "port,port"], 2, "twice"),
        (&["table", "--by", "port,state,src"], 2, "not more"),
        (&["table", "--watch", "soon"], 2, "soon"),
    ];
    for (line, code, word) in mistakes {
        said(&mut checks, &line.join(" "), &ended(Command::new("ctwatch").args(line))?, code, word);
    }

    // With the one right that a table takes, and no other.
    let other = Netns::create("unseen")?;
    let only = "--reuid 65534 --regid 65534 --clear-groups --inh-caps -all,+net_admin --ambient-caps -all,+net_admin \
                --bounding-set -all,+net_admin";
    let mut command = Command::new("setpriv");
    let alone = ended(command.args(only.split_whitespace()).args(["ctwatch", "table", "--format", "json"]))?;
    let said_so = String::from_utf8_lossy(&alone.stderr).into_owned();
    checks.equal("exit code with CAP_NET_ADMIN alone", alone.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&alone.stdout).with_context(|| said_so)?;
    checks.equal("own_netns_only", report["own_netns_only"].as_bool(), Some(true));
    checks.equal("tables", report["tables"].as_array().map(Vec::len), Some(1));
    checks.equal("listed", table_of(&report, own_inode()?)?["listed"].as_u64(), Some(10));
    let mut command = Command::new("setpriv");
    let refused =
        ended(command.args(only.split_whitespace()).args(["ctwatch", "table", "--netns", other.name()]))?;
    said(&mut checks, "a netns that may not be entered", &refused, 3, "CAP_SYS_ADMIN");
    let check = ended(Command::new("ctwatch").args(["check", "--format", "json"]))?;
    let check: Value = serde_json::from_slice(&check.stdout).context("JSON of check")?;
    for name in ["census", "other netns"] {
        let item = check["items"].as_array().and_then(|items| items.iter().find(|item| item["name"] == name));
        checks.equal(&format!("check: {name}"), item.and_then(|item| item["ok"].as_bool()), Some(true));
    }
    again_and_again(&mut checks)?;
    Ok(Outcome::Passed(checks.finish()?))
}

fn again_and_again(checks: &mut Checks) -> Result<()> {
    for signal in ["INT", "TERM"] {
        let line = format!(
            "ctwatch table --format json --watch 200ms > /tmp/looks & pid=$!; sleep 4; kill -{signal} $pid; \
             wait $pid; echo $? $(wc -l < /tmp/looks)"
        );
        let output = ended(Command::new("bash").args(["-c", &line]))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (code, looks) = said.trim().split_once(' ').context("a code and a number")?;
        checks.equal(&format!("exit code after SIG{signal}"), code, "0");
        checks.that(looks.parse::<u32>().is_ok_and(|looks| looks >= 2), format!("{looks} looks in 4 s"));
    }
    let line = "ctwatch table --watch 100ms | head -1 > /dev/null; echo ${PIPESTATUS[0]}";
    let output = ended(Command::new("bash").args(["-c", line]))?;
    checks.equal("exit code with a closed pipe", String::from_utf8_lossy(&output.stdout).trim(), "0");
    checks.that(output.stderr.is_empty(), String::from_utf8_lossy(&output.stderr).into_owned());
    Ok(())
}

pub(super) fn not_loaded(_: &Guest) -> Result<Outcome> {
    without_conntrack(&["table"], |checks| {
        // The first look brings ctnetlink, as `conntrack -L` does.
        let report = ctwatch_table(&[])?;
        checks.equal("listed", table_of(&report, own_inode()?)?["listed"].as_u64(), Some(0));
        Ok(())
    })
}
