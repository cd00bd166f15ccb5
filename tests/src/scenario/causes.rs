//! Losses that aren't a full table: hash chains grown too long, and two packets racing to make one entry.
//! Each has its own kernel counters, which must be explained without a rest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Barrier;
use std::thread;

use anyhow::{Result, anyhow};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::own_inode;
use crate::sysctl::{self, Setting};
use crate::traffic::icmp::Icmp;
use crate::traffic::udp::{self, Plan};
use crate::traffic::{Tally, loopback, sctp};
use crate::{nftables, sys};

pub(super) fn chain_too_long(guest: &Guest) -> Result<Outcome> {
    if guest.is_5_10() {
        return Ok(Outcome::Skipped("5.10 has no limit on the length of a hash chain".into()));
    }
    let ports: Vec<u16> = (20_000..20_010).collect();
    nftables::track()?;
    let _limit = Setting::set(sysctl::MAX, 100_000)?;
    // The kernel rounds 16 up to a page of buckets: 512.
    let _buckets = Setting::set(sysctl::BUCKETS, 16)?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    let before = Counters::read()?;
    // A fresh source port a round: each send is a new flow.
    let plan = Plan { fresh_source_every: 1, ..Plan::new(loopback(&ports), 900) };
    let sent = udp::send_on_every_cpu(&plan)?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("flows", sent.total_accepted());
    checks.figure("refused", sent.total_refused());
    checks.figure("Δchaintoolong", kernel.get("chaintoolong"));
    checks.figure("Δinsert_failed", kernel.get("insert_failed"));
    checks.figure("Δdrop", kernel.get("drop"));
    checks.that(kernel.get("chaintoolong") > 50, "too few chains were too long to show anything");
    checks.equal(
        "counted.chain_too_long against Δchaintoolong",
        run.end.counted("chain_too_long"),
        kernel.get("chaintoolong"),
    );
    checks.equal_maps(
        "chain_too_long rows per port against EPERM",
        &run.end.per_port(netns, "udp", "chain_too_long"),
        &sent.refused(),
    );
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn clash(_: &Guest) -> Result<Outcome> {
    if sys::cpus() < 2 {
        return Ok(Outcome::Skipped("a clash needs two CPUs".into()));
    }
    // UDP lets both packets of a clash pass; protocols without allow_clash lose one: ICMP up to 6.12, and those that
    // only nf_conntrack_proto_generic.c knows. Slow rules between conntrack's look-up and its confirmation widen the race.
    nftables::track()?;
    let slow = "  icmp id 1 meta mark set 1\n".repeat(400);
    nftables::load(&format!(
        "table ip ctw_slow {{\n chain post {{\n  type filter hook postrouting priority 0;\n{slow} }}\n}}\n"
    ))?;
    let drops = Drops::start(&[])?;
    let before = Counters::read()?;
    let rounds = 1500;
    let barrier = Barrier::new(2);
    let sent = thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|cpu| {
                scope.spawn({
                    let barrier = &barrier;
                    move || race(cpu, rounds, barrier)
                })
            })
            .collect();
        let mut sum = Tally::default();
        for sender in senders {
            sum.add(&sender.join().map_err(|_| anyhow!("a sender panicked"))??);
        }
        Ok::<_, anyhow::Error>(sum)
    })?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("races", rounds);
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("Δinsert_failed", kernel.get("insert_failed"));
    checks.equal(
        "counted.clash against Δinsert_failed",
        run.end.counted("clash"),
        kernel.get("insert_failed"),
    );
    checks.equal("counted.clash against Δdrop", run.end.counted("clash"), kernel.get("drop"));
    checks.equal("clash rows summed against EPERM", run.end.row_sum("clash"), sent.total_refused());
    for row in run.end.rows.iter().filter(|row| row.cause() == "clash") {
        checks
            .that(row.proto() != "udp" && row.proto() != "tcp", format!("a clash nobody provoked: {row:?}"));
    }
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    let figures = checks.finish()?;
    if kernel.get("insert_failed") == 0 {
        return Ok(Outcome::Skipped(format!("no race was lost in this run: {figures}")));
    }
    Ok(Outcome::Passed(figures))
}

pub(super) fn invalid(_: &Guest) -> Result<Outcome> {
    // SYN and FIN at once: the TCP tracker calls it invalid, and nothing drops it. On loopback conntrack meets it twice.
    let packets = 300u64;
    nftables::track()?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--cause", "invalid", "--events"])?;
    let unasked = Drops::start(&[])?;
    let before = Counters::read()?;
    let socket = sctp::open_tcp()?;
    for _ in 0..packets {
        sctp::tcp_syn_fin(&socket, 4321, 8321)?;
    }
    drops.wait_for_ticks(2)?;
    let (run, unasked) = (drops.stop()?, unasked.stop()?);
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("packets", packets);
    checks.figure("Δinvalid", kernel.get("invalid"));
    // The host answers with RST, which is no better: that goes to the other port.
    let ports = run.end.per_port(netns, "tcp", "invalid");
    checks.equal("rows of both ports", ports.values().sum::<u64>(), kernel.get("invalid"));
    checks.equal("rows of the port", ports.get(&8321).copied(), Some(2 * packets));
    checks.that(kernel.get("invalid") >= packets, "conntrack found the packets valid");
    checks.equal("events", run.drops.len() as u64, kernel.get("invalid"));
    checks.equal("counted.invalid where nobody asked", unasked.end.counted("invalid"), 0);
    checks.equal("rows where nobody asked", unasked.end.rows.len(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn nat_port_exhaustion(_: &Guest) -> Result<Outcome> {
    // Every flow is to leave from the same port. get_unique_tuple (nf_nat_core.c) never fails: it keeps a used tuple,
    // and the confirmation finds it in the table.
    let ports = [7443, 7444];
    nftables::track()?;
    for family in ["ip 127.0.0.1", "ip6 [::1]"] {
        let (family, address) = family.split_once(' ').unwrap_or_default();
        nftables::load(&format!(
            "table {family} ctw_nat {{\n chain post {{\n  type nat hook postrouting priority 100;\n  \
             udp dport {{ 7443, 7444 }} snat to {address}:5555\n }}\n}}\n"
        ))?;
    }
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    let single = Drops::start(&["--events", "--cause", "clash"])?;
    let before = Counters::read()?;
    let plan = Plan { fresh_source_every: 1, ..Plan::new(loopback(&ports), 150) };
    let sent = udp::send_on_every_cpu(&plan)?;
    drops.wait_for_ticks(2)?;
    let (run, single) = (drops.stop()?, single.stop()?);
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("accepted", sent.total_accepted());
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("Δinsert_failed", kernel.get("insert_failed"));
    checks.that(sent.total_refused() > 300, "too few sends were refused to show anything");
    // The tuple before NAT is the sender's; the reply goes to the one port that all were to leave from.
    checks.equal("single clashes", single.drops.len() as u64, kernel.get("insert_failed"));
    for clash in &single.drops {
        checks.equal("NAT of a clash", clash.nat, Some(true));
        let original = clash.original.as_ref().map(|ends| (ends.sport, ends.dport));
        checks.equal("original ports of a clash", original, Some((clash.sport, clash.dport)));
        let reply = clash.reply.as_ref().map(|ends| (ends.sport, ends.dport));
        checks.equal("reply ports of a clash", reply, Some((clash.dport, Some(5555))));
    }
    checks.equal(
        "counted.clash against Δinsert_failed",
        run.end.counted("clash"),
        kernel.get("insert_failed"),
    );
    checks.equal("counted.clash against Δdrop", run.end.counted("clash"), kernel.get("drop"));
    checks.equal_maps(
        "clash rows per port against EPERM",
        &run.end.per_port(netns, "udp", "clash"),
        &sent.refused(),
    );
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// RFC 3692: for experiments. Its flows are pairs of addresses.
const EXPERIMENTAL: i32 = 253;

/// Sends the same new ICMP echo as the other CPU, and a packet of an unknown protocol, at the same moment.
fn race(cpu: usize, rounds: u16, barrier: &Barrier) -> Result<Tally> {
    sys::pin(cpu)?;
    let to = IpAddr::from(Ipv4Addr::LOCALHOST);
    let icmp = Icmp::open(to)?;
    let unknown: UdpSocket = sys::socket(libc::AF_INET, libc::SOCK_RAW, EXPERIMENTAL)?.into();
    let mut tally = Tally::default();
    for round in 0..rounds {
        let [high, low] = round.to_be_bytes();
        let pair = SocketAddr::from((Ipv4Addr::new(127, 3, high, low), 0));
        barrier.wait();
        tally.book(0, icmp.echo(to, 1000 + round, 1))?;
        barrier.wait();
        tally.book(0, unknown.send_to(b"race", pair))?;
    }
    Ok(tally)
}
