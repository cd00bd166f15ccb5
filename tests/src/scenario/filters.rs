//! The same losses seen through every key and every filter: sums agree, and no filter touches `counted`.
//! Each case is its own ctwatch; a few run at once, all watching the same traffic.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::{Drops, Row, Run};
use crate::netns::{Netns, Veth, own_inode};
use crate::nftables::{self, Witness};
use crate::table::{self, Mix};
use crate::traffic::Tally;
use crate::traffic::icmp::Icmp;
use crate::traffic::udp::{self, Plan};

/// A group of packets that were lost together.
struct Loss {
    netns: u64,
    proto: &'static str,
    src: String,
    dst: IpAddr,
    port: Option<u16>,
    packets: u64,
}

impl Loss {
    fn on_loopback(&self) -> bool {
        self.dst.is_loopback()
    }
}

/// The stage: a full table here and one in a second netns, and a third netns that sends over veth.
struct Stage {
    own: u64,
    second: Netns,
    sender: Netns,
    veth: Veth,
    witness: Witness,
}

/// Arguments, and which losses the rows must then hold.
struct Case {
    args: Vec<String>,
    keeps: Box<dyn Fn(&Loss) -> bool>,
    key: Key,
}

/// How rows and losses are grouped for comparison.
#[derive(Clone, Copy)]
enum Key {
    Port,
    Src,
    Dst,
    Proto,
    Cause,
    Flow,
}

pub(super) fn filters_and_keys(_: &Guest) -> Result<Outcome> {
    let second = Netns::create("second")?;
    let sender = Netns::create("sender")?;
    let veth = Veth::join(&sender, 3)?;
    nftables::track()?;
    second.run(nftables::track)?;
    let witness = Witness::place("prerouting", "udp", &[53, 514])?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    second.run(|| table::fill(Mix::Assured))?;
    let stage = Stage { own: own_inode()?, second, sender, veth, witness };

    let mut checks = Checks::new();
    let (mut runs, mut packets) = (0, 0);
    for group in cases(&stage).chunks(4) {
        let watchers = group
            .iter()
            .map(|case| Drops::spawn(&case.args.iter().map(String::as_str).collect::<Vec<_>>()))
            .collect::<Result<Vec<_>>>()?;
        for watcher in &watchers {
            watcher.wait_for_start()?;
        }
        let before = (Counters::read()?, stage.second.counters()?);
        let losses = traffic(&stage)?;
        for watcher in &watchers {
            watcher.wait_for_ticks(2)?;
        }
        let kernel = Counters::read()?.since(&before.0).get("drop")
            + stage.second.counters()?.since(&before.1).get("drop");
        let sum: u64 = losses.iter().map(|loss| loss.packets).sum();
        checks.equal("losses the senders and nft saw against Δdrop", sum, kernel);
        for (case, watcher) in group.iter().zip(watchers) {
            compare(&mut checks, case, &watcher.stop()?, &losses, kernel);
            runs += 1;
        }
        packets += kernel;
    }
    checks.figure("runs", runs);
    checks.figure("Δdrop", packets);
    Ok(Outcome::Passed(checks.finish()?))
}

/// The same mix of losses each time it is called.
fn traffic(stage: &Stage) -> Result<Vec<Loss>> {
    let (v4, v6) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST));
    let mut losses = Vec::new();
    for (to, port, rounds) in [(v4, 6379, 60), (v6, 6379, 30), (v4, 53, 20), (v6, 8125, 10)] {
        let sent = udp::send_on_every_cpu(&Plan::new(vec![SocketAddr::new(to, port)], rounds))?;
        losses.push(udp_loss(stage.own, to.to_string(), to, port, sent.total_refused()));
    }
    let icmp = Icmp::open(v4)?;
    let mut tally = Tally::default();
    for sequence in 0..15 {
        tally.book(0, icmp.echo(v4, 77, sequence))?;
    }
    losses.push(Loss {
        netns: stage.own,
        proto: "icmp",
        src: v4.to_string(),
        dst: v4,
        port: None,
        packets: tally.total_refused(),
    });
    let there = stage.second.run(|| udp::send(&Plan::new(vec![SocketAddr::new(v4, 6379)], 25)))?;
    losses.push(udp_loss(stage.second.inode(), v4.to_string(), v4, 6379, there.total_refused()));

    for (to, from, port, rounds) in
        [(stage.veth.v4.0, stage.veth.v4.1, 53, 40), (stage.veth.v6.0, stage.veth.v6.1, 514, 20)]
    {
        let lost_before = stage.witness.lost()?[&port];
        stage.sender.run(|| udp::send(&Plan::new(vec![SocketAddr::new(to, port)], rounds)))?;
        let lost = stage.witness.lost()?[&port] - lost_before;
        losses.push(udp_loss(stage.own, from.to_string(), to, port, lost));
    }
    Ok(losses)
}

fn udp_loss(netns: u64, src: String, dst: IpAddr, port: u16, packets: u64) -> Loss {
    Loss { netns, proto: "udp", src, dst, port: Some(port), packets }
}

fn cases(stage: &Stage) -> Vec<Case> {
    let case = |line: &str, key: Key, keeps: Box<dyn Fn(&Loss) -> bool>| Case {
        args: line.split_whitespace().map(str::to_owned).collect(),
        keeps,
        key,
    };
    let (own, second) = (stage.own, stage.second.inode());
    let (veth4, veth6) = (stage.veth.v4, stage.veth.v6);
    vec![
        case("--by port", Key::Port, Box::new(|_| true)),
        case("--by src", Key::Src, Box::new(|_| true)),
        case("--by dst", Key::Dst, Box::new(|_| true)),
        case("--by proto", Key::Proto, Box::new(|_| true)),
        case("--by cause", Key::Cause, Box::new(|_| true)),
        case("--by flow --top 1000", Key::Flow, Box::new(|_| true)),
        case("--port 53,514", Key::Port, Box::new(|loss| matches!(loss.port, Some(53 | 514)))),
        case(
            "--port 6379 --loopback",
            Key::Port,
            Box::new(|loss| loss.port == Some(6379) && loss.on_loopback()),
        ),
        case("--src 10.9.3.0/24", Key::Port, Box::new(move |loss| loss.src == veth4.1.to_string())),
        case("--src fd09:3::/64", Key::Port, Box::new(move |loss| loss.src == veth6.1.to_string())),
        case("--dst 127.0.0.0/8", Key::Port, Box::new(|loss| loss.dst.is_ipv4() && loss.on_loopback())),
        case("--dst ::1", Key::Port, Box::new(|loss| loss.dst.is_ipv6() && loss.on_loopback())),
        case("--proto icmp", Key::Port, Box::new(|loss| loss.proto == "icmp")),
        case("--proto udp", Key::Port, Box::new(|loss| loss.proto == "udp")),
        case("--cause evicted", Key::Port, Box::new(|_| false)),
        case("--cause table_full", Key::Port, Box::new(|_| true)),
        case(
            &format!("--netns {}", stage.second.name()),
            Key::Port,
            Box::new(move |loss| loss.netns == second),
        ),
        case("--top 1", Key::Port, Box::new(|_| true)),
        case("--no-inserts", Key::Port, Box::new(move |loss| loss.netns == own || loss.netns == second)),
    ]
}

fn compare(checks: &mut Checks, case: &Case, run: &Run, losses: &[Loss], kernel: u64) {
    let line = case.args.join(" ");
    let kept: Vec<_> = losses.iter().filter(|loss| (case.keeps)(loss)).collect();
    let rows: Vec<_> = run.end.rows.iter().filter(|row| row.cause() == "table_full" || row.rest).collect();
    let (got, want): (u64, u64) =
        (rows.iter().map(|row| row.losses).sum(), kept.iter().map(|loss| loss.packets).sum());
    checks.equal(&format!("{line}: losses in all rows"), got, want);
    if line.starts_with("--top") {
        checks.equal(
            &format!("{line}: rows that aren't the rest"),
            rows.iter().filter(|row| !row.rest).count(),
            1,
        );
        checks.equal(&format!("{line}: rest rows"), rows.iter().filter(|row| row.rest).count(), 1);
        checks.equal(
            &format!("{line}: port of the first row"),
            rows.first().and_then(|row| row.port),
            Some(6379),
        );
    } else {
        let (mut by_row, mut by_loss) = (BTreeMap::new(), BTreeMap::new());
        for row in &rows {
            *by_row.entry(key_of_row(case.key, row)).or_default() += row.losses;
        }
        for loss in &kept {
            *by_loss.entry(key_of_loss(case.key, loss)).or_default() += loss.packets;
        }
        by_loss.retain(|_, packets| *packets > 0);
        checks.equal_maps(&format!("{line}: rows"), &by_row, &by_loss);
    }
    // --netns narrows what is watched, so what it counts is not compared with both netns.
    if !line.contains("--netns") {
        checks.equal(
            &format!("{line}: counted.table_full against Δdrop"),
            run.end.counted("table_full"),
            kernel,
        );
    }
    checks.that(run.end.all_explained(), format!("{line}: unexplained {:?}", run.end.unexplained));
}

fn key_of_row(key: Key, row: &Row) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let port = |port: Option<u16>| port.map_or_else(String::new, |port| port.to_string());
    match key {
        Key::Port => format!(
            "{} {} {} {}",
            row.netns.unwrap_or(0),
            row.proto(),
            port(row.service_port()),
            row.loopback.unwrap_or(false)
        ),
        Key::Src => text(&row.src),
        Key::Dst => text(&row.dst),
        Key::Proto => text(&row.proto),
        Key::Cause => text(&row.cause),
        Key::Flow => {
            format!("{} {} → {} {}", row.proto(), text(&row.src), text(&row.dst), port(row.service_port()))
        }
    }
}

fn key_of_loss(key: Key, loss: &Loss) -> String {
    let port = loss.port.map_or_else(String::new, |port| port.to_string());
    match key {
        Key::Port => format!("{} {} {port} {}", loss.netns, loss.proto, loss.on_loopback()),
        Key::Src => loss.src.clone(),
        Key::Dst => loss.dst.to_string(),
        Key::Proto => loss.proto.to_owned(),
        Key::Cause => "table_full".to_owned(),
        Key::Flow => format!("{} {} → {} {port}", loss.proto, loss.src, loss.dst),
    }
}
