//! Packets a firewall drops look much like packets conntrack drops: they may not be counted as conntrack's.
//! Rules that drop are loaded here only; what they took is known from their ports.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use anyhow::{Context, Result};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctnetlink::{Entry, Maker, TcpState};
use crate::ctwatch::{Drops, End};
use crate::netns::own_inode;
use crate::nftables;
use crate::shell::sh;
use crate::table::{self, Mix};
use crate::traffic::icmp::Icmp;
use crate::traffic::udp::{self, Plan};
use crate::traffic::{Tally, loopback, sctp};

const NFT_FILTER: u16 = 1001;
const NFT_RAW: u16 = 1002;
const LEGACY_FILTER: u16 = 1003;
const LEGACY_RAW: u16 = 1004;
/// A TCP flow of the table; segments with impossible flags in it are invalid.
const TCP_FLOW: (u16, u16) = (4321, 1005);
/// Where flows the table knows come from.
const KNOWN_SOURCE: u16 = 4001;
const FULL: [u16; 3] = [53, 6379, 8125];

/// Rules that drop before and behind conntrack, with nft and with legacy iptables.
fn load_firewall() -> Result<()> {
    nftables::load(&format!(
        "table inet ctw_fw {{\n\
         chain raw {{ type filter hook output priority -300; udp dport {NFT_RAW} drop; }}\n\
         chain filter {{ type filter hook output priority 0; udp dport {NFT_FILTER} drop; \
         meta l4proto icmp ct state invalid drop; }}\n}}\n"
    ))?;
    sh(&format!("iptables-legacy -w -t raw -A OUTPUT -p udp --dport {LEGACY_RAW} -j DROP"))?;
    sh(&format!("iptables-legacy -w -A OUTPUT -p udp --dport {LEGACY_FILTER} -j DROP"))?;
    sh("iptables-legacy -w -A OUTPUT -p tcp -m conntrack --ctstate INVALID -j DROP")?;
    Ok(())
}

/// Entries for the flows that must pass conntrack to meet a filter behind it.
fn admit_known_flows() -> Result<()> {
    let local = |port| (Ipv4Addr::LOCALHOST.into(), port);
    let udp = [NFT_FILTER, LEGACY_FILTER].map(|port| Entry {
        src: local(KNOWN_SOURCE),
        dst: local(port),
        tcp: None,
        assured: true,
        timeout: 3600,
        mark: 0,
        zone: 0,
    });
    let tcp = Entry {
        src: local(TCP_FLOW.0),
        dst: local(TCP_FLOW.1),
        tcp: Some(TcpState::Established),
        assured: true,
        timeout: 3600,
        mark: 0,
        zone: 0,
    };
    Maker::open()?.create(udp.into_iter().chain([tcp]))
}

/// Traffic into every dropping rule; each send is refused by the firewall, not by conntrack.
fn into_the_firewall(rounds: u32) -> Result<Tally> {
    let mut tally = Tally::default();
    let known = UdpSocket::bind((Ipv4Addr::LOCALHOST, KNOWN_SOURCE)).context("the known flows' socket")?;
    let icmp = Icmp::open(Ipv4Addr::LOCALHOST.into())?;
    let tcp = sctp::open_tcp()?;
    for _ in 0..rounds {
        for port in [NFT_FILTER, NFT_RAW, LEGACY_FILTER, LEGACY_RAW] {
            tally.book(port, known.send_to(b"firewall", SocketAddr::from((Ipv4Addr::LOCALHOST, port))))?;
        }
        tally.book(0, icmp.unreachable_about_nothing(Ipv4Addr::LOCALHOST))?;
        tally.book(TCP_FLOW.1, sctp::tcp_syn_fin(&tcp, TCP_FLOW.0, TCP_FLOW.1))?;
    }
    Ok(tally)
}

/// Both at once: a firewall that drops, and a full table.
fn mixed_traffic() -> Result<(Tally, Tally)> {
    thread::scope(|scope| {
        let firewall = scope.spawn(|| into_the_firewall(400));
        let full = udp::send_on_every_cpu(&Plan::new(loopback(&FULL), 300))?;
        Ok((full, firewall.join().expect("the firewall's traffic panicked")?))
    })
}

pub(super) fn add_nothing_with_kprobes(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    load_firewall()?;
    let _limit = table::lower_limit()?;
    admit_known_flows()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--backend", "kprobe"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let (full, firewall) = mixed_traffic()?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    figures(&mut checks, &full, &firewall, &kernel);
    checks.equal("backend", run.start.backend.as_str(), "kprobe");
    checks.equal_maps(
        "table_full rows per port against EPERM",
        &run.end.per_port(netns, "udp", "table_full"),
        &full.refused(),
    );
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("all packets counted as lost against Δdrop", run.end.packets_lost(), kernel.get("drop"));
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    // gc may come by a full table and take the fill's TCP entries in TIME_WAIT out of it, though they are assured
    // (gc_worker_can_early_drop, net/netfilter/nf_conntrack_core.c): entries, no packets.
    let others: Vec<_> =
        run.end.rows.iter().filter(|row| row.proto() != "udp" && row.cause() != "gc_evicted").collect();
    checks.that(others.is_empty(), format!("rows where only the firewall dropped: {others:?}"));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn tracepoint_alone_is_exact(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--backend", "tracepoint"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&FULL), 500))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("claimed", run.end.packets_lost());
    checks.figure("ambiguous", run.end.ambiguous.unwrap_or(0));
    checks.equal("backend", run.start.backend.as_str(), "tracepoint");
    checks.equal("claimed against Δdrop", run.end.packets_lost(), kernel.get("drop"));
    checks.equal_maps(
        "table_full rows per port against EPERM",
        &run.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    // Evictions free no packet, so this backend can't see them: it has to say so.
    let evictions = kernel.get("early_drop") as i64 - run.end.counted("evicted") as i64;
    for (counter, rest) in &run.end.unexplained {
        checks.equal(
            &format!("unexplained.{counter}"),
            *rest,
            if counter == "early_drop" { evictions } else { 0 },
        );
    }
    inferred(&mut checks, &run.end);
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn never_claimed_by_tracepoint(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    load_firewall()?;
    let _limit = table::lower_limit()?;
    admit_known_flows()?;
    table::fill(Mix::Realistic)?;
    let drops = Drops::start(&["--backend", "tracepoint"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    // First the firewall alone, where nothing may be claimed, then both.
    let alone = into_the_firewall(200)?;
    drops.wait_for_ticks(2)?;
    let alone_ticks = drops.ticks();
    let (full, mut firewall) = mixed_traffic()?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    firewall.add(&alone);
    let mut checks = Checks::new();
    figures(&mut checks, &full, &firewall, &kernel);
    let claimed = run.end.packets_lost();
    checks.figure("claimed", claimed);
    checks.equal("backend", run.start.backend.as_str(), "tracepoint");
    checks.that(claimed <= kernel.get("drop"), "more was claimed than the kernel dropped");
    let rows: u64 =
        run.end.rows.iter().filter(|row| row.unit.as_deref() == Some("packets")).map(|row| row.losses).sum();
    checks.that(rows <= kernel.get("drop"), format!("rows claim {rows}, the kernel dropped fewer"));
    for tick in &run.ticks[..alone_ticks] {
        let claimed: u64 =
            tick.counted.iter().filter(|(cause, _)| !cause.contains("evicted")).map(|(_, n)| n).sum();
        checks.equal("claimed while only the firewall dropped", claimed, 0);
    }
    match run.end.ambiguous {
        None => checks.that(false, "the end line has no `ambiguous`"),
        Some(ambiguous) => {
            checks.figure("ambiguous", ambiguous);
            checks.that(
                claimed + ambiguous + run.end.lost_events >= kernel.get("drop"),
                "some drops are neither claimed nor called ambiguous",
            );
        }
    }
    inferred(&mut checks, &run.end);
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn counters_backend_shows_totals(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let drops = Drops::start(&["--backend", "counters"])?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&FULL), 100))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.equal("backend", run.start.backend.as_str(), "counters");
    checks.equal(
        "kernel_counters.drop",
        run.end.kernel_counters.get("drop").copied(),
        Some(kernel.get("drop")),
    );
    let named = run.end.rows.iter().filter(|row| row.service_port().is_some()).count();
    checks.equal("rows that name a port without having seen one", named, 0);
    Ok(Outcome::Passed(checks.finish()?))
}

fn figures(checks: &mut Checks, full: &Tally, firewall: &Tally, kernel: &Counters) {
    checks.figure("refused_by_conntrack", full.total_refused());
    checks.figure("refused_by_firewall", firewall.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.equal("the conntrack senders' EPERM against Δdrop", full.total_refused(), kernel.get("drop"));
    checks.equal("packets the firewall let pass", firewall.total_accepted(), 0);
}

fn inferred(checks: &mut Checks, end: &End) {
    for row in end.rows.iter().filter(|row| row.unit.as_deref() == Some("packets")) {
        checks.equal("certainty of a row", row.certainty.as_deref(), Some("inferred"));
    }
}
