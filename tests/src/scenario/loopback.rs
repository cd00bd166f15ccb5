//! Losses on loopback, where the sender itself knows what it lost: the story's own case.
//! Every number expected here comes from the sender or from nft, none from a conntrack hook.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::own_inode;
use crate::nftables::{self, Witness};
use crate::sys;
use crate::table::{self, Mix};
use crate::traffic::udp::{self, Plan};
use crate::traffic::{loopback, tcp};

pub(super) fn udp_losses_equal_eperm(_: &Guest) -> Result<Outcome> {
    let ports = [53, 514, 6379, 8125, 9999, 11_211];
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&ports), 400))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("refused", sent.total_refused());
    checks.figure("accepted", sent.total_accepted());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("counted", run.end.counted("table_full"));
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.that(sent.total_refused() > 4000, "too few sends were refused to show anything");
    checks.equal_maps(
        "table_full rows per port against EPERM",
        &run.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("the senders' EPERM against Δdrop", sent.total_refused(), kernel.get("drop"));
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    checks.equal(
        "kernel_counters.drop",
        run.end.kernel_counters.get("drop").copied(),
        Some(kernel.get("drop")),
    );
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    for row in run.end.rows.iter().filter(|row| row.cause() == "table_full") {
        checks.equal("loopback of a row on 127.0.0.1 or ::1", row.loopback, Some(true));
        checks.equal("unit of a table_full row", row.unit.as_deref(), Some("packets"));
        checks.equal("certainty of a table_full row", row.certainty.as_deref(), Some("exact"));
    }
    let of_ticks: u64 = run.ticks.iter().flat_map(|tick| &tick.rows).map(|row| row.losses).sum();
    let of_end: u64 = run.end.rows.iter().map(|row| row.losses).sum();
    checks.that(of_ticks <= of_end, format!("ticks sum up to {of_ticks}, the end line to {of_end}"));
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    let full = run
        .ticks
        .iter()
        .flat_map(|tick| &tick.tables)
        .any(|table| table.netns == netns && table.max == Some(4000));
    checks.that(full, "no tick shows this netns's table with max 4000");
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn tcp_losses_equal_nft_counters(_: &Guest) -> Result<Outcome> {
    let ports = [80, 443, 6379];
    nftables::track()?;
    // Conntrack passes an invalid packet on at LOCAL_OUT and meets it again at PRE_ROUTING: both hooks can lose one.
    let witnesses = [Witness::place("output", "tcp", &ports)?, Witness::place("prerouting", "tcp", &ports)?];
    let listeners = tcp::listen(&ports)?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    // Connections start on both CPUs; the retransmits leave from a timer softirq, whatever runs there.
    let connections = thread::scope(|scope| {
        let starters: Vec<_> = (0..sys::cpus())
            .map(|cpu| {
                scope.spawn(move || -> Result<Vec<_>> {
                    sys::pin(cpu)?;
                    let to = loopback(&ports);
                    to.iter().cycle().take(to.len() * 50).map(|to| tcp::start(*to)).collect()
                })
            })
            .collect();
        starters
            .into_iter()
            .map(|starter| starter.join().expect("a starter panicked"))
            .collect::<Result<Vec<_>>>()
    })?;
    let started: usize = connections.iter().map(Vec::len).sum();
    // Past the second retransmit (3 s), which slow emulation may send late.
    thread::sleep(Duration::from_millis(4500));
    // From here on nothing moves, so that nft's counters before and after conntrack belong together.
    tcp::abort(connections, listeners)?;
    thread::sleep(Duration::from_millis(1500));
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let syns = witnesses[0].syns()?;
    let (mut lost, mut lost_in_all) = (BTreeMap::new(), 0);
    for witness in &witnesses {
        for (port, packets) in witness.lost()? {
            *lost.entry(port).or_default() += packets;
        }
        lost_in_all += witness.lost_in_all()?;
    }

    let mut checks = Checks::new();
    checks.figure("connects", started);
    checks.figure("SYNs", syns);
    checks.figure("lost", lost_in_all);
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("counted", run.end.counted("table_full"));
    checks.that(syns > started as u64 + 200, "hardly any SYN was sent again: the retransmits are missing");
    let rows = run.end.per_port(netns, "tcp", "table_full");
    let known: BTreeMap<_, _> =
        rows.iter().filter(|(port, _)| ports.contains(port)).map(|(port, lost)| (*port, *lost)).collect();
    checks.equal_maps("table_full rows per port against nft counters", &known, &lost);
    // A server's answer whose entry was evicted is, to conntrack, a new flow to the client's port.
    checks.equal("table_full rows of all TCP ports against nft", rows.values().sum::<u64>(), lost_in_all);
    checks.equal("what nft saw vanish against Δdrop", lost_in_all, kernel.get("drop"));
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
