//! Watchers that share hooks: two ways of seeing a full table, many short runs, and bpftrace beside them.
//! None may cost another a count.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::{Guest, Outcome};
use crate::bpftrace::Bpftrace;
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::own_inode;
use crate::nftables::{self, Witness};
use crate::shell::exists;
use crate::sys;
use crate::table::{self, Mix};
use crate::traffic::udp::{self, Plan};
use crate::traffic::{Tally, loopback, tcp};

const PORTS: [u16; 4] = [53, 443, 6379, 11_211];
const ROUNDS: usize = 50;

pub(super) fn both_ways_agree(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let free = Drops::start(&["--backend", "kprobe", "--table-full", "kfree-skb"])?;
    let simple = Drops::start(&["--backend", "kprobe", "--table-full", "init-conntrack"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&PORTS), 500))?;
    free.wait_for_ticks(2)?;
    simple.wait_for_ticks(2)?;
    let (free, simple) = (free.stop()?, simple.stop()?);
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    for (way, run) in [("kfree-skb", &free), ("init-conntrack", &simple)] {
        checks.equal_maps(
            &format!("{way}: table_full rows per port against EPERM"),
            &run.end.per_port(netns, "udp", "table_full"),
            &sent.refused(),
        );
        checks.equal(
            &format!("{way}: counted.table_full"),
            run.end.counted("table_full"),
            kernel.get("drop"),
        );
        checks.equal(
            &format!("{way}: counted.evicted"),
            run.end.counted("evicted"),
            kernel.get("early_drop"),
        );
        checks.equal(&format!("{way}: losses without a tuple"), run.end.unattributed(), 0);
        checks.that(run.end.all_explained(), format!("{way}: unexplained {:?}", run.end.unexplained));
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// Return probes on the functions ctwatch watches.
const NEIGHBOUR: &str = "kretprobe:init_conntrack* { @a = count(); }\nkretprobe:early_drop { @b = count(); }\n\
                         kretprobe:nf_ct_delete* { @c = count(); }\nkretprobe:__nf_conntrack_confirm { @d = count(); }";

pub(super) fn fifty_times_in_a_storm(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let long = Drops::start(&["--backend", "kprobe"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let neighbour = if exists("bpftrace") { Some(Bpftrace::start(NEIGHBOUR)?) } else { None };
    let stop = AtomicBool::new(false);
    let (sent, unexplained) = thread::scope(|scope| {
        let senders: Vec<_> = (0..sys::cpus())
            .map(|cpu| {
                scope.spawn({
                    let stop = &stop;
                    move || steadily(cpu, PAUSE, stop)
                })
            })
            .collect();
        let unexplained = short_runs();
        stop.store(true, Ordering::Relaxed);
        let mut sent = Tally::default();
        for sender in senders {
            sent.add(&sender.join().map_err(|_| anyhow!("a sender panicked"))??);
        }
        Ok::<_, anyhow::Error>((sent, unexplained?))
    })?;
    drop(neighbour);
    long.wait_for_ticks(2)?;
    let run = long.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("short_runs", ROUNDS);
    checks.figure("bpftrace", exists("bpftrace"));
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks
        .that(unexplained.is_empty(), format!("short runs that did not add up: {}", unexplained.join(", ")));
    checks.equal_maps(
        "table_full rows per port against EPERM",
        &run.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// A return probe of somebody else's, on the same function as ours, that takes its time. A softirq that interrupts it gets
/// no probe at all, neither theirs nor ours (kprobe_busy_begin, kernel/kprobes.c).
const SLOW: &str = "kretprobe:early_drop { $i = 0; while ($i < 300) { $i++; @a = $i; } }";

pub(super) fn a_slow_neighbour_costs_no_tuple(_: &Guest) -> Result<Outcome> {
    if !exists("bpftrace") {
        return Ok(Outcome::Skipped("there is no bpftrace".into()));
    }
    nftables::track()?;
    let service = [22];
    let witnesses =
        [Witness::place("output", "tcp", &service)?, Witness::place("prerouting", "tcp", &service)?];
    let listeners = tcp::listen(&service)?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let neighbour = Bpftrace::start(SLOW)?;
    // A server's answer whose entry was evicted has a row of its own, by the client's port.
    let drops = Drops::start(&["--backend", "kprobe", "--top", "1000"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let stop = AtomicBool::new(false);
    // The SYNs are sent again after 1, 3 and 7 s from timer softirqs, which interrupt the senders in their probes.
    let sent = thread::scope(|scope| {
        let senders: Vec<_> = (0..sys::cpus())
            .map(|cpu| {
                let stop = &stop;
                scope.spawn(move || steadily(cpu, PAUSE, stop))
            })
            .collect();
        let connections: Result<Vec<_>> =
            loopback(&service).iter().cycle().take(400).map(|to| tcp::start(*to)).collect();
        thread::sleep(Duration::from_millis(9000));
        stop.store(true, Ordering::Relaxed);
        let mut sent = Tally::default();
        for sender in senders {
            sent.add(&sender.join().map_err(|_| anyhow!("a sender panicked"))??);
        }
        tcp::abort(vec![connections?], listeners)?;
        Ok::<_, anyhow::Error>(sent)
    })?;
    thread::sleep(Duration::from_millis(1500));
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    drop(neighbour);
    let kernel = Counters::read()?.since(&before);
    let (mut syns, mut lost) = (0, 0);
    for witness in &witnesses {
        syns += witness.syns()?;
        lost += witness.lost_in_all()?;
    }

    let mut checks = Checks::new();
    checks.figure("refused", sent.total_refused());
    checks.figure("SYNs", syns);
    checks.figure("SYNs_lost", lost);
    checks.figure("Δdrop", kernel.get("drop"));
    checks.that(syns > 800, "hardly any SYN was sent again: nothing interrupted the senders");
    checks.equal_maps(
        "table_full rows per UDP port against EPERM",
        &run.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    let of_tcp: u64 = run.end.per_port(netns, "tcp", "table_full").values().sum();
    checks.equal("table_full rows of all TCP ports against nft", of_tcp, lost);
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    // An entry that is evicted where no probe can be has no witness at all.
    let nameless = run.end.rows.iter().filter(|row| row.unattributed && row.cause() == "table_full");
    checks.equal("refused packets without a tuple", nameless.map(|row| row.losses).sum::<u64>(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// The functions that free a lost packet, newest first, which say so to the tracepoint: `sk_skb_reason_drop` since 6.11.
const FREES: [&str; 3] = ["sk_skb_reason_drop", "kfree_skb_reason", "kfree_skb"];

pub(super) fn freed_long_after(_: &Guest) -> Result<Outcome> {
    if !exists("bpftrace") {
        return Ok(Outcome::Skipped("there is no bpftrace".into()));
    }
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let known = |name: &&&str| symbols.lines().any(|line| line.ends_with(&format!(" T {name}")));
    let frees = FREES.iter().find(known).context("no function that frees a packet is known")?;
    // Whoever shall be preempted is so where this ends: between the kernel's count and the tracepoint.
    let slow = format!("kprobe:{frees} {{ $i = 0; while ($i < 300) {{ $i++; @a = $i; }} }}");
    let neighbour = Bpftrace::start(&slow)?;
    let stop = AtomicBool::new(false);
    let (sent, run) = thread::scope(|scope| {
        let senders: Vec<_> = (0..sys::cpus())
            .map(|cpu| {
                let stop = &stop;
                scope.spawn(move || {
                    sys::run_last()?;
                    steadily(cpu, Duration::ZERO, stop)
                })
            })
            .collect();
        for cpu in 0..sys::cpus() {
            let stop = &stop;
            scope.spawn(move || hog(cpu, stop));
        }
        let ran = Drops::start(&["--backend", "kprobe", "--interval", "100ms"]).inspect(|_| {
            thread::sleep(Duration::from_secs(20));
        });
        stop.store(true, Ordering::Relaxed);
        let mut sent = Tally::default();
        for sender in senders {
            sent.add(&sender.join().map_err(|_| anyhow!("a sender panicked"))??);
        }
        let drops = ran?;
        drops.wait_for_ticks(2)?;
        Ok::<_, anyhow::Error>((sent, drops.stop()?))
    })?;
    drop(neighbour);
    let kernel = Counters::read()?;

    let mut checks = Checks::new();
    let dropped = kernel.get("drop") - run.start.since_boot.get("drop").copied().unwrap_or(0);
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", dropped);
    checks.figure("without_a_tuple", run.end.unattributed());
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), dropped);
    let named: u64 = run.end.per_port(netns, "udp", "table_full").values().sum();
    checks.equal(
        "rows, and those without a tuple",
        named + run.end.unattributed(),
        run.end.counted("table_full"),
    );
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Keeps a CPU from those who run last, most of the time.
fn hog(cpu: usize, stop: &AtomicBool) -> Result<()> {
    sys::pin(cpu)?;
    while !stop.load(Ordering::Relaxed) {
        let until = Instant::now() + Duration::from_millis(900);
        while Instant::now() < until {}
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Between two rounds, so that emulated CPUs have some time for attaching.
const PAUSE: Duration = Duration::from_millis(10);

/// Sends until told to stop.
fn steadily(cpu: usize, pause: Duration, stop: &AtomicBool) -> Result<Tally> {
    sys::pin(cpu)?;
    let plan = Plan { pause, ..Plan::new(loopback(&PORTS), 50) };
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        tally.add(&udp::send(&plan)?);
    }
    Ok(tally)
}

/// Attaches and detaches again and again, in both ways of seeing a full table at once: each meets the other's coming and
/// going, and what one waits for in the kernel the other needn't.
fn short_runs() -> Result<Vec<String>> {
    thread::scope(|scope| {
        let ways = ["kfree-skb", "init-conntrack"].map(|way| scope.spawn(move || short_runs_of(way)));
        let mut unexplained = Vec::new();
        for way in ways {
            unexplained.extend(way.join().map_err(|_| anyhow!("a series of short runs panicked"))??);
        }
        Ok(unexplained)
    })
}

fn short_runs_of(way: &str) -> Result<Vec<String>> {
    let mut unexplained = Vec::new();
    for round in 0..ROUNDS / 2 {
        let drops = Drops::start(&["--backend", "kprobe", "--interval", "200ms", "--table-full", way])?;
        drops.wait_for_ticks(1)?;
        let run = drops.stop()?;
        if !run.end.all_explained() {
            unexplained.push(format!("#{round} ({way}) {:?}", run.end.unexplained));
        }
    }
    Ok(unexplained)
}
