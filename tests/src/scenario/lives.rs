//! Network namespaces that come and go: what they lost is kept, and a later one with the same inode number is another one.
//! Also many causes in many namespaces at once, where nothing may be booked under a wrong name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::{Drops, End, Run};
use crate::netns::{Netns, own_inode};
use crate::nftables;
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

/// One life of a netns: its inode number, what its senders were refused, what the kernel counted.
pub(super) struct Life {
    pub inode: u64,
    pub refused: BTreeMap<u16, u64>,
    pub drop: u64,
    pub early_drop: u64,
}

/// A whole life: the netns ends with it.
pub(super) fn live(netns: Netns, ports: &[u16], rounds: u32) -> Result<Life> {
    lose(&netns, ports, rounds)
}

/// Fills a netns's table and sends into it.
pub(super) fn lose(netns: &Netns, ports: &[u16], rounds: u32) -> Result<Life> {
    netns.run(nftables::track)?;
    netns.run(|| table::fill(Mix::Assured))?;
    let sent = netns.run(|| udp::send(&Plan::new(loopback(ports), rounds)))?;
    let kernel = netns.counters()?;
    Ok(Life {
        inode: netns.inode(),
        refused: sent.refused(),
        drop: kernel.get("drop"),
        early_drop: kernel.get("early_drop"),
    })
}

pub(super) fn one_inode_two_lives(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let drops = Drops::start(&[])?;
    let first = live(Netns::create("life")?, &[1111], 60)?;
    let Some(again) = again(first.inode)? else {
        return Ok(Outcome::Skipped("no netns got the inode number of the one before it".into()));
    };
    let second = live(again, &[1111, 2222], 40)?;
    let run = stop_when_all_is_told(drops)?;

    let mut checks = Checks::new();
    checks.figure("inode", first.inode);
    checks.figure("Δdrop_of_the_first", first.drop);
    checks.figure("Δdrop_of_the_second", second.drop);
    let mut rows: Vec<_> = run
        .end
        .rows
        .iter()
        .filter(|row| row.netns == Some(first.inode) && row.port == Some(1111))
        .map(|row| row.losses)
        .collect();
    rows.sort_unstable();
    let mut lives = vec![first.refused[&1111], second.refused[&1111]];
    lives.sort_unstable();
    checks.equal("rows of port 1111, one for each life", rows, lives);
    checks.equal(
        "losses at port 2222",
        run.end.per_port(first.inode, "udp", "table_full").get(&2222).copied(),
        second.refused.get(&2222).copied(),
    );
    checks.equal("counted.table_full", run.end.counted("table_full"), first.drop + second.drop);
    checks.equal(
        "kernel_counters.drop",
        run.end.kernel_counters.get("drop").copied(),
        Some(first.drop + second.drop),
    );
    checks.equal("counted.evicted", run.end.counted("evicted"), first.early_drop + second.early_drop);
    checks.equal("namespaces whose last counts are missing", run.end.netns_gone, 0);
    let gone =
        run.ticks.iter().flat_map(|tick| &tick.tables).any(|table| table.gone && table.netns == first.inode);
    checks.that(gone, "no tick says that the first netns is gone");
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Nobody tells of the first one's end, and the second one's counters start below where its own stood.
pub(super) fn taken_over_unnoticed(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let mut checks = Checks::new();
    for backend in ["counters", "tracepoint"] {
        let drops = Drops::start(&["--backend", backend])?;
        let netns = Netns::create("life")?;
        let first = lose(&netns, &[1111], 60)?;
        // What is read last is all that it counted.
        drops.wait_for_ticks(7)?;
        drop(netns);
        let Some(netns) = again(first.inode)? else {
            return Ok(Outcome::Skipped("no netns got the inode number of the one before it".into()));
        };
        let second = lose(&netns, &[2222], 20)?;
        drops.wait_for_ticks(8)?;
        let run = drops.stop()?;
        checks.figure(&format!("Δdrop of the first, {backend}"), first.drop);
        checks.figure(&format!("Δdrop of the second, {backend}"), second.drop);
        let kernel = |counter: &str| run.end.kernel_counters.get(counter).copied();
        checks.equal(
            &format!("kernel_counters.drop, {backend}"),
            kernel("drop"),
            Some(first.drop + second.drop),
        );
        checks.equal(
            &format!("kernel_counters.early_drop, {backend}"),
            kernel("early_drop"),
            Some(first.early_drop + second.early_drop),
        );
        let tables =
            || run.ticks.iter().flat_map(|tick| &tick.tables).filter(|table| table.netns == first.inode);
        checks.that(
            tables().any(|table| table.gone),
            format!("no tick says that the first is gone, {backend}"),
        );
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// Another netns with this inode number: the kernel hands out the lowest free one, so the next netns gets it as soon as it is free.
fn again(inode: u64) -> Result<Option<Netns>> {
    for _ in 0..60 {
        let netns = Netns::create("life")?;
        if netns.inode() == inode {
            return Ok(Some(netns));
        }
        drop(netns);
        thread::sleep(Duration::from_millis(200));
    }
    Ok(None)
}

/// The kernel cleans up behind a netns in its own time, and only then says what it counted last.
fn stop_when_all_is_told(drops: Drops) -> Result<Run> {
    thread::sleep(Duration::from_secs(5));
    drops.wait_for_ticks(2)?;
    drops.stop()
}

/// Flows that all must leave from one port: the second one clashes with the first.
fn one_port_for_all() -> Result<()> {
    for family in ["ip 127.0.0.1", "ip6 [::1]"] {
        let (family, address) = family.split_once(' ').unwrap_or_default();
        nftables::load(&format!(
            "table {family} ctw_nat {{\n chain post {{\n  type nat hook postrouting priority 100;\n  \
             udp dport 7443 snat to {address}:5555\n }}\n}}\n"
        ))?;
    }
    Ok(())
}

fn count_of(end: &End, netns: u64, cause: &str) -> u64 {
    end.rows.iter().filter(|row| row.netns == Some(netns) && row.cause() == cause).map(|row| row.losses).sum()
}

pub(super) fn three_causes_in_two_netns(_: &Guest) -> Result<Outcome> {
    let (evicting, full) = (Netns::create("evicting")?, Netns::create("full")?);
    nftables::track()?;
    one_port_for_all()?;
    evicting.run(nftables::track)?;
    full.run(nftables::track)?;
    let _limit = table::lower_limit()?;
    let drops = Drops::start(&["--top", "200"])?;
    evicting.run(|| table::fill(Mix::OneWay))?;
    full.run(|| table::fill(Mix::Assured))?;
    let before = [Counters::read()?, evicting.counters()?, full.counters()?];
    let stop = AtomicBool::new(false);
    let fresh = |ports: &[u16], rounds| Plan { fresh_source_every: 1, ..Plan::new(loopback(ports), rounds) };
    let (clashing, in_evicting, in_full, passing) = thread::scope(|scope| {
        let clashing = scope.spawn(|| udp::send(&fresh(&[7443], 200)));
        let in_evicting = scope.spawn(|| evicting.run(|| udp::send_on_every_cpu(&fresh(&[7777], 300))));
        let in_full =
            scope.spawn(|| full.run(|| udp::send_on_every_cpu(&Plan::new(loopback(&[53, 6379]), 300))));
        // Meanwhile others come, lose something, and go.
        let passing = scope.spawn(|| -> Result<(u64, u64)> {
            let (mut lives, mut drops) = (0, 0);
            while !stop.load(Ordering::Relaxed) && lives < 12 {
                drops += live(Netns::create("passing")?, &[9999], 5)?.drop;
                lives += 1;
            }
            Ok((lives, drops))
        });
        let all = (join(clashing)?, join(in_evicting)?, join(in_full)?);
        stop.store(true, Ordering::Relaxed);
        let passing = passing.join().expect("the passing namespaces panicked")?;
        Ok::<_, anyhow::Error>((all.0, all.1, all.2, passing))
    })?;
    let run = stop_when_all_is_told(drops)?;
    let after = [Counters::read()?, evicting.counters()?, full.counters()?];
    let [here, there, full_there] = [0, 1, 2].map(|at| after[at].since(&before[at]));
    ensure!(passing.0 > 0, "no netns came and went");

    let mut checks = Checks::new();
    let own = own_inode()?;
    checks.figure("clash", here.get("insert_failed"));
    checks.figure("evicted", there.get("early_drop"));
    checks.figure("table_full", there.get("drop") + full_there.get("drop"));
    checks.figure("netns_that_came_and_went", passing.0);
    checks.figure("their_Δdrop", passing.1);
    checks.that(
        here.get("insert_failed") > 100 && there.get("early_drop") > 100 && full_there.get("drop") > 100,
        "too little of one cause to show anything",
    );
    checks.equal("clash here", count_of(&run.end, own, "clash"), here.get("insert_failed"));
    checks.equal_maps("clash per port", &run.end.per_port(own, "udp", "clash"), &clashing.refused());
    checks.equal(
        "table_full here",
        count_of(&run.end, own, "table_full"),
        here.get("drop") - here.get("insert_failed"),
    );
    checks.equal("evicted there", count_of(&run.end, evicting.inode(), "evicted"), there.get("early_drop"));
    checks.equal_maps(
        "table_full per port there",
        &run.end.per_port(evicting.inode(), "udp", "table_full"),
        &in_evicting.refused(),
    );
    checks.equal_maps(
        "table_full per port in the full one",
        &run.end.per_port(full.inode(), "udp", "table_full"),
        &in_full.refused(),
    );
    let passed: u64 = run.end.rows.iter().filter(|row| row.port == Some(9999)).map(|row| row.losses).sum();
    checks.equal("losses of those that came and went", passed, passing.1);
    checks.equal(
        "kernel_counters.drop",
        run.end.kernel_counters.get("drop").copied(),
        Some(here.get("drop") + there.get("drop") + full_there.get("drop") + passing.1),
    );
    checks.equal("namespaces whose last counts are missing", run.end.netns_gone, 0);
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().expect("a sender panicked")
}
