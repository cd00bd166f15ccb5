//! A scan of all ports of two protocols and families, once while flows still get in and once through a full table: more keys
//! than there are slots. Whoever loses packets after it has a row, and no loss is missing anywhere.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::{Drops, End, Row};
use crate::netns::own_inode;
use crate::nftables;
use crate::sys;
use crate::table::{self, Mix};
use crate::traffic::udp::{self, Plan};
use crate::traffic::{Tally, loopback, syn};

/// The port that loses packets after the scan. The scan leaves it out.
const VICTIM: u16 = 6379;
const LOSSES: u32 = 500;
/// The time a new victim has to get a row.
const IN_TIME: Duration = Duration::from_secs(10);
/// What ctwatch may need in all of it.
const MOST_KB: u64 = 40 << 10;

/// UDP from one CPU, TCP from another.
fn scan() -> Result<(Tally, Tally)> {
    let ports: Vec<u16> = (1..=u16::MAX).filter(|port| *port != VICTIM).collect();
    let to = loopback(&ports);
    thread::scope(|scope| {
        let udp = scope.spawn(|| {
            sys::pin(0)?;
            udp::send(&Plan { fresh_source_every: 0, ..Plan::new(to.clone(), 1) })
        });
        let tcp = scope.spawn(|| {
            sys::pin(1 % sys::cpus())?;
            syn::send(&to)
        });
        let joined = |what: &str, result: thread::Result<Result<Tally>>| {
            result.map_err(|_| anyhow!("the {what} sender panicked"))?
        };
        Ok((joined("UDP", udp.join())?, joined("TCP", tcp.join())?))
    })
}

fn is_victim(row: &Row) -> bool {
    row.service_port() == Some(VICTIM) && row.proto() == "udp" && row.cause() == "table_full"
}

pub(super) fn new_victim_has_its_row(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    let before = Counters::read()?;
    let mut checks = Checks::new();

    // The table is empty: flows come, and soon push one another out.
    let begun = Instant::now();
    let (udp, tcp) = scan()?;
    let accepted = udp.total_accepted() + tcp.total_accepted();
    checks.figure("let in", accepted);
    checks.figure("seconds", begun.elapsed().as_secs());
    checks.that(accepted > 65_535, format!("only {accepted} packets of the first scan got in"));
    let mut refused = udp.total_refused() + tcp.total_refused();

    // Nothing gives way: all of it is lost.
    crate::shell::run(&["conntrack", "-F"])?;
    table::fill(Mix::Assured)?;
    let begun = Instant::now();
    let (udp, tcp) = scan()?;
    checks.figure("refused", udp.total_refused() + tcp.total_refused());
    checks.figure("seconds", begun.elapsed().as_secs());
    for (protocol, tally) in [("udp", &udp), ("tcp", &tcp)] {
        let ports = tally.refused().len();
        checks.that(ports > 65_000, format!("only {ports} {protocol} ports lost packets"));
    }
    refused += udp.total_refused() + tcp.total_refused();

    // A new one.
    table::fill(Mix::Assured)?;
    let begun = Instant::now();
    let plan = Plan { fresh_source_every: 0, ..Plan::new(vec![([127, 0, 0, 1], VICTIM).into()], LOSSES) };
    let sent = udp::send(&plan)?;
    checks.equal("the victim's refusals", sent.total_refused(), u64::from(LOSSES));
    refused += sent.total_refused();
    let total = |rows: &[Row]| rows.iter().filter(|row| is_victim(row)).map(|row| row.losses_total).max();
    let mut seen = None;
    while begun.elapsed() < IN_TIME && seen != Some(u64::from(LOSSES)) {
        drops.wait_for_ticks(1)?;
        seen = total(&drops.last_tick().context("no tick yet")?.rows).max(seen);
    }
    checks.figure("row after ms", begun.elapsed().as_millis());
    checks.equal("the victim's row in time", seen, Some(u64::from(LOSSES)));
    let most_kb = peak_kb(drops.pid().as_raw())?;
    checks.figure("VmHWM kB", most_kb);
    checks.that(most_kb <= MOST_KB, format!("ctwatch needed {most_kb} kB"));

    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let end = &run.end;
    let victims: Vec<&Row> = end.rows.iter().filter(|row| is_victim(row)).collect();
    checks.equal("rows of the victim", victims.len(), 1);
    for row in victims {
        checks.equal("its losses", row.losses, u64::from(LOSSES));
        checks.equal("its netns", row.netns, Some(netns));
        let may_lack_some = end.overflow.get("table_full").is_some_and(|losses| *losses > 0);
        checks.equal("it is exact", row.exact, Some(!may_lack_some));
    }
    checks.equal("table_full against all refusals", end.counted("table_full"), refused);
    checks.equal("table_full against Δdrop", end.counted("table_full"), kernel.get("drop"));
    checks.equal("evicted against Δearly_drop", end.counted("evicted"), kernel.get("early_drop"));
    checks.that(end.all_explained(), format!("unexplained {:?}", end.unexplained));
    // A rest may sum up several causes of one unit.
    let units = [("packets", "table_full", end.packets_lost()), ("entries", "evicted", entries_lost(end))];
    for (unit, cause, counted) in units {
        let rows = || end.rows.iter().filter(|row| row.unit.as_deref() == Some(unit));
        let sum = |of: &dyn Fn(&Row) -> bool| rows().filter(|row| of(row)).map(|row| row.losses).sum::<u64>();
        checks.equal(&format!("rows in {unit}"), sum(&|_| true), counted);
        let said = end.overflow.get(cause).copied().unwrap_or(0);
        checks.figure(&format!("{cause} without a counter"), said);
        let without_counter = sum(&|row| row.overflow && row.cause() == cause);
        checks.equal(&format!("{cause} without a counter, as the end says"), said, without_counter);
        let said = end.summed_up.get(cause).copied().unwrap_or(0);
        checks.figure(&format!("{cause} summed up"), said);
        let summed_up = sum(&|row| row.rest && !row.overflow);
        checks.that(
            (1..=summed_up).contains(&said),
            format!("{said} {cause} are said to be summed up, {summed_up} {unit} are in rests"),
        );
    }
    Ok(Outcome::Passed(checks.finish()?))
}

fn entries_lost(end: &End) -> u64 {
    ["evicted", "gc_evicted"].iter().map(|cause| end.counted(cause)).sum()
}

/// The most memory that a process has had.
fn peak_kb(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("ctwatch's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    line.trim().trim_end_matches("kB").trim().parse().context("VmHWM is no number")
}
