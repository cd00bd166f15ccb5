//! The tracepoint backend on the kernel this machine really runs, in a private netns that ends with this process.
//! No sysctl is written and nothing outside the netns is touched: the table is filled up to the present limit.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::{leave_for_private, own_inode};
use crate::shell::{exists, sh};
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};
use crate::{nftables, sysctl};

/// Filling more than this would take minutes and gigabytes; a host with such a limit is the wrong place.
const LARGEST_TABLE: u64 = 2_000_000;

/// Runs the comparison and prints one line.
pub fn run() -> Result<()> {
    let needed = [
        ("nft", "nftables (apt-get install nftables)"),
        ("ip", "iproute2 (apt-get install iproute2)"),
        ("ctwatch", "ctwatch on PATH (cargo build --release)"),
    ];
    let missing: Vec<_> =
        needed.into_iter().filter(|(tool, _)| !exists(tool)).map(|(_, what)| what).collect();
    ensure!(missing.is_empty(), "needed for this test and missing: {}", missing.join("; "));

    leave_for_private()?;
    sh("ip link set lo up")?;
    nftables::track().context("switching conntrack on in a private netns with nft")?;
    let limit = sysctl::read(sysctl::MAX)?;
    if limit == 0 || limit > LARGEST_TABLE {
        bail!("nf_conntrack_max is {limit} here; this test fills a table and changes no setting");
    }
    let started = Instant::now();
    let entries = table::fill(Mix::Assured)?;
    let filled_in = started.elapsed();

    let ports = [53, 514, 6379, 8125];
    let netns = own_inode()?;
    let drops = Drops::start(&["--backend", "tracepoint"])?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&ports), 5000))?;
    drops.wait_for_ticks(2)?;
    let watched = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("entries", entries);
    checks.figure("filled_in", format!("{:.1}s", filled_in.as_secs_f64()));
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("claimed", watched.end.packets_lost());
    checks.figure("ambiguous", watched.end.ambiguous.unwrap_or(0));
    checks.figure("lost_events", watched.end.lost_events);
    checks.that(sent.total_refused() > 10_000, "too few sends were refused to show anything");
    checks.equal("the senders' EPERM against Δdrop", sent.total_refused(), kernel.get("drop"));
    checks.equal("backend", watched.start.backend.as_str(), "tracepoint");
    checks.equal_maps(
        "table_full rows per port against EPERM",
        &watched.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    checks.equal("counted.table_full against Δdrop", watched.end.counted("table_full"), kernel.get("drop"));
    for row in watched.end.rows.iter().filter(|row| row.netns == Some(netns)) {
        checks.equal("certainty of a row", row.certainty.as_deref(), Some("inferred"));
        checks.equal("loopback of a row", row.loopback, Some(true));
    }
    checks.that(watched.end.all_explained(), format!("unexplained {:?}", watched.end.unexplained));
    checks.that(started.elapsed() < Duration::from_secs(300), "slower than five minutes");
    let figures = checks.finish()?;
    println!("ok tracepoint_backend_on_this_kernel ({:.1} s) {figures}", started.elapsed().as_secs_f64());
    Ok(())
}
