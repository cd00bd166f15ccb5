//! Two tables in one kernel: the limit is global, counts and counters are each netns's own.
//! Also what the kernel counted before anybody watched.

use std::thread;

use anyhow::Result;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::{Netns, own_inode};
use crate::nftables;
use crate::shell::run;
use crate::table::{self, LIMIT, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

pub(super) fn two_full_at_once(_: &Guest) -> Result<Outcome> {
    let (ports, other_ports) = ([53, 6379], [6379, 8125]);
    let other = Netns::create("second")?;
    nftables::track()?;
    other.run(nftables::track)?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    other.run(|| table::fill(Mix::Realistic))?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    table::fill(Mix::Realistic)?;
    other.run(|| table::fill(Mix::Realistic))?;
    let (before, other_before) = (Counters::read()?, other.counters()?);
    let (sent, other_sent) = thread::scope(|scope| {
        let there =
            scope.spawn(|| other.run(|| udp::send_on_every_cpu(&Plan::new(loopback(&other_ports), 300))));
        let here = udp::send_on_every_cpu(&Plan::new(loopback(&ports), 300))?;
        Ok::<_, anyhow::Error>((here, there.join().expect("the other netns's sender panicked")?))
    })?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let (kernel, other_kernel) = (Counters::read()?.since(&before), other.counters()?.since(&other_before));

    let mut checks = Checks::new();
    checks.figure("refused", sent.total_refused());
    checks.figure("refused_in_the_other", other_sent.total_refused());
    for (what, inode, sent, kernel) in
        [("own netns", netns, &sent, &kernel), ("other netns", other.inode(), &other_sent, &other_kernel)]
    {
        checks.equal_maps(
            &format!("{what}: table_full rows per port against EPERM"),
            &run.end.per_port(inode, "udp", "table_full"),
            &sent.refused(),
        );
        checks.equal(&format!("{what}: EPERM against Δdrop"), sent.total_refused(), kernel.get("drop"));
        let full = run.ticks.iter().flat_map(|tick| &tick.tables).any(|table| {
            table.netns == inode
                && table.max == Some(LIMIT)
                && table.count.is_some_and(|count| count + 100 > LIMIT)
        });
        checks.that(full, format!("{what}: no tick shows its table full"));
    }
    checks.equal(
        "counted.table_full against both Δdrop",
        run.end.counted("table_full"),
        kernel.get("drop") + other_kernel.get("drop"),
    );
    checks.equal(
        "counted.evicted against both Δearly_drop",
        run.end.counted("evicted"),
        kernel.get("early_drop") + other_kernel.get("early_drop"),
    );
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// The source of the kernel's counters, wherever it is told.
pub(super) fn judge_is_named(guest: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let (words, name) = if guest.kernel == "6.12-no-procfs" {
        ("ctnetlink", "ctnetlink")
    } else {
        ("/proc/net/stat/nf_conntrack", "procfs")
    };
    let mut checks = Checks::new();
    let check = run(&["ctwatch", "check"])?;
    let line = check.lines().find(|line| line.contains("kernel counters")).unwrap_or_default();
    checks.that(line.contains(words), format!("check names another source than {words}: {check}"));
    let mut drops = Drops::start(&["--duration", "2s"])?;
    let json = drops.finish()?;
    checks.equal("source at the start", json.start.kernel_counters_from.as_deref(), Some(name));
    checks.equal("source at the end", json.end.kernel_counters_from.as_deref(), Some(name));
    let text = run(&["ctwatch", "drops", "--duration", "2s"])?;
    checks.that(
        text.contains(&format!("Kernel counters: {words}.")),
        format!("the end names another source than {words}: {text}"),
    );
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn since_boot(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let before_us = udp::send(&Plan::new(loopback(&[53]), 60))?;
    let kernel = Counters::read()?;
    let drops = Drops::start(&[])?;
    let later = udp::send(&Plan::new(loopback(&[6379]), 40))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    checks.figure("before", before_us.total_refused());
    checks.figure("later", later.total_refused());
    for counter in ["drop", "early_drop", "insert_failed", "chaintoolong"] {
        let said = run.start.since_boot.get(counter).copied().unwrap_or(0);
        checks.equal(&format!("since_boot.{counter}"), said, kernel.get(counter));
        checks.figure(&format!("since_boot.{counter}"), said);
    }
    checks.equal(
        "counted.table_full, without what came before",
        run.end.counted("table_full"),
        later.total_refused(),
    );
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
