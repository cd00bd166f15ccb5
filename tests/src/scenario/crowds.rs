//! Many namespaces: more than there were when the watch began, and thousands that come and go.
//! Their losses must stay exact, and what is kept of those that are gone must not grow with their number.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};

use super::lives::{live, lose};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::lab::Room;
use crate::netns::Netns;
use crate::sysctl::{self, Setting};
use crate::table::Mix;
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};
use crate::{nftables, table};

const MANY: usize = 300;
/// Namespaces in churn, the first of which are only there to get everything going.
const LIVES: usize = 10_000;
const WARM_UP: usize = 1_000;
/// One in so many loses something.
const LOSERS: usize = 500;
/// So many at a time.
const AT_ONCE: usize = 4;

pub(super) fn three_hundred_and_more(_: &Guest) -> Result<Outcome> {
    let before = many("first")?;
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let drops = Drops::start(&["--top", "200"])?;
    let mut more = many("more")?;
    let last = more.pop().context("there are many")?;
    let inode = last.inode();
    let lost = live(last, &[6379, 53], 30)?;
    thread::sleep(Duration::from_secs(5));
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    checks.figure("namespaces", before.len() + more.len() + 1);
    checks.figure("Δdrop", lost.drop);
    checks.equal_maps("rows of the last one", &run.end.per_port(inode, "udp", "table_full"), &lost.refused);
    checks.equal("counted.table_full", run.end.counted("table_full"), lost.drop);
    checks.equal("kernel_counters.drop", run.end.kernel_counters.get("drop").copied(), Some(lost.drop));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Namespaces that end together: only open files hold them, and these are closed one right after another.
const TOGETHER: usize = 700;
/// An emulated 5.10 takes a minute for them.
const CLEANED_UP: Duration = Duration::from_secs(200);

pub(super) fn destroyed_at_once(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = Setting::set(sysctl::MAX, TINY)?;
    let drops = Drops::start(&["--top", "20"])?;
    let rooms = (0..TOGETHER).map(|_| Room::new()).collect::<Result<Vec<_>>>()?;
    let mut lost = 0;
    for room in rooms.iter().step_by(100).chain(rooms.last()) {
        lost += room.run(|| {
            nftables::track()?;
            table::fill(Mix::Assured)?;
            udp::send(&Plan::new(loopback(&[6379]), 20))?;
            Ok(Counters::read()?.get("drop"))
        })?;
    }
    drops.wait_for_ticks(2)?;
    drop(rooms);
    // The kernel cleans up behind them in its own time.
    let begun = Instant::now();
    let mut told = None;
    while begun.elapsed() < CLEANED_UP && told != Some(lost) {
        drops.wait_for_ticks(1)?;
        told = drops.last_tick().and_then(|tick| tick.kernel_counters.get("drop").copied());
    }
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    checks.figure("namespaces", TOGETHER);
    checks.figure("Δdrop", lost);
    checks.that(lost > 100, "too little was lost to show anything");
    checks.equal("counted.table_full", run.end.counted("table_full"), lost);
    checks.equal("kernel_counters.drop", run.end.kernel_counters.get("drop").copied(), Some(lost));
    checks.equal("namespaces whose last counts are missing", run.end.netns_gone, 0);
    let verdicts: Vec<&str> = run.end.agreement.values().map(String::as_str).collect();
    checks.equal("verdicts once all are gone", verdicts, vec!["agree"; 4]);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// More than there are records for, if few are there at the start.
const TOO_MANY: usize = 1_024 + 76;
/// So few entries make a table full.
const TINY: u64 = 8;

pub(super) fn more_than_there_is_room_for(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = Setting::set(sysctl::MAX, TINY)?;
    let drops = Drops::start(&["--top", "2000"])?;
    let (mut there, mut expected, mut dropped) = (Vec::new(), BTreeMap::new(), 0);
    for number in 0..TOO_MANY {
        let netns = Netns::create(&format!("crowd{number}"))?;
        let life = lose(&netns, &[6379], 2)?;
        dropped += life.drop;
        expected.insert(netns.inode(), life.refused);
        there.push(netns);
    }
    drops.wait_for_notice("netns_crowded")?;
    thread::sleep(Duration::from_secs(5));
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    checks.figure("namespaces", there.len());
    checks.figure("Δdrop", dropped);
    checks.that(dropped >= 2 * TOO_MANY as u64, "some namespaces lost nothing");
    let of = |inode: &u64| (*inode, run.end.per_port(*inode, "udp", "table_full"));
    let rows: BTreeMap<_, _> = expected.keys().map(of).collect();
    let differ = expected.iter().filter(|(inode, refused)| rows[*inode] != **refused).count();
    checks.equal("namespaces whose rows differ from EPERM", differ, 0);
    checks.equal("counted.table_full", run.end.counted("table_full"), dropped);
    checks.equal("kernel_counters.drop", run.end.kernel_counters.get("drop").copied(), Some(dropped));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

fn many(name: &str) -> Result<Vec<Netns>> {
    (0..MANY).map(|number| Netns::create(&format!("{name}{number}"))).collect()
}

/// Makes and destroys so many namespaces.
pub(super) fn come_and_go(lives: usize) -> Result<()> {
    thread::scope(|scope| {
        let makers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..lives / AT_ONCE {
                        // A netns ends with the thread that made it.
                        let short = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET));
                        short.join().map_err(|_| anyhow!("a thread panicked"))?.context("making a netns")?;
                    }
                    Ok(())
                })
            })
            .collect();
        makers.into_iter().try_for_each(|maker| maker.join().map_err(|_| anyhow!("a maker panicked"))?)
    })
}

pub(super) fn churn(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let drops = Drops::start(&["--top", "200"])?;
    let pid = drops.pid();
    let (mut dropped, mut evicted) = (0, 0);
    let mut lose = || -> Result<()> {
        let life = live(Netns::create("loser")?, &[9999], 10)?;
        dropped += life.drop;
        evicted += life.early_drop;
        Ok(())
    };
    come_and_go(WARM_UP)?;
    lose()?;
    let idle_before = quiet_cpu(pid)?;
    let rss_before = rss_kb(pid)?;
    let started = Instant::now();
    for _ in 0..(LIVES - WARM_UP) / LOSERS {
        come_and_go(LOSERS)?;
        lose()?;
    }
    let took = started.elapsed();
    let idle_after = quiet_cpu(pid)?;
    let rss_after = rss_kb(pid)?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    checks.figure("lives", LIVES);
    checks.figure("took_s", took.as_secs());
    checks.figure("Δdrop", dropped);
    checks.figure("rss_kb", format!("{rss_before}->{rss_after}"));
    checks.figure("cpu_ticks_in_10_s", format!("{idle_before}->{idle_after}"));
    checks.that(rss_after < rss_before + 1_500, format!("memory grew from {rss_before} to {rss_after} KB"));
    checks.that(idle_after <= idle_before + 10, format!("CPU time rose from {idle_before} to {idle_after}"));
    checks.equal("counted.table_full", run.end.counted("table_full"), dropped);
    checks.equal("kernel_counters.drop", run.end.kernel_counters.get("drop").copied(), Some(dropped));
    checks.equal("counted.evicted", run.end.counted("evicted"), evicted);
    checks.equal("namespaces whose last counts are missing", run.end.netns_gone, 0);
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn rss_kb(pid: nix::unistd::Pid) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("ctwatch's status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    line.split_whitespace().next().context("a number")?.parse().context("VmRSS")
}

/// Clock ticks that ctwatch takes in ten seconds, once the kernel has cleaned up.
fn quiet_cpu(pid: nix::unistd::Pid) -> Result<u64> {
    thread::sleep(Duration::from_secs(12));
    let before = cpu_ticks(pid)?;
    thread::sleep(Duration::from_secs(10));
    Ok(cpu_ticks(pid)? - before)
}

pub(super) fn cpu_ticks(pid: nix::unistd::Pid) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("ctwatch's stat")?;
    let (_, rest) = text.rsplit_once(')').context("a name in brackets")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}
