//! `ctwatch advise` where flows never get in, where nothing comes any more, and where it is asked in a netns of its own.
//! Judged by the kernel's own count and drops after the advice was followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::netns::Netns;
use crate::shell::run;
use crate::sysctl::{self, Setting};
use crate::table::{self, Mix};
use crate::traffic::icmp::Icmp;
use crate::traffic::udp::{self, Plan};
use crate::traffic::{loopback, sctp, tcp};
use crate::{nftables, sys};

/// Entries of long-lived connections that fill the table.
const OLD: u64 = 300;

const TIMEOUTS: [(&str, u64); 5] = [
    ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", 20),
    ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_syn_sent", 30),
    ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", 30),
    ("/proc/sys/net/netfilter/nf_conntrack_icmpv6_timeout", 25),
    ("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_cookie_wait", 8),
];

/// What comes: protocol, port, and how often a second.
const FLOWS: [(&str, u64, f64); 4] =
    [("udp", 5353, 12.0), ("udp", 5355, 8.0), ("tcp", 8081, 6.0), ("sctp", 7007, 5.0)];

/// New flows of each kind at its rate, until told to end; refusals are no errors here.
fn flows(over: &Arc<AtomicBool>) -> Result<()> {
    let server = tcp::listen(&[8081])?.swap_remove(0);
    thread::spawn(move || server.incoming().for_each(drop));
    let udp_to = |at: SocketAddr, from: IpAddr| {
        move |_: u16| {
            let socket = UdpSocket::bind((from, 0));
            let _ = socket.and_then(|socket| socket.send_to(b"conntrack?", at));
        }
    };
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    every(over, FLOWS[0].2, udp_to((v4, 5353).into(), v4));
    every(over, FLOWS[1].2, udp_to((v6, 5355).into(), v6));
    every(over, FLOWS[2].2, move |_| {
        // The SYN is sent again after a second; then this client has waited long enough.
        let Ok(connection) = tcp::start((v4, 8081).into()) else { return };
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(1_500));
            drop(connection);
        });
    });
    let init = sctp::open(v4)?;
    every(over, FLOWS[3].2, move |index| drop(sctp::init(&init, v4, 10_000 + index, 7007)));
    Ok(())
}

fn every(over: &Arc<AtomicBool>, per_s: f64, mut send: impl FnMut(u16) + Send + 'static) {
    let over = over.clone();
    thread::spawn(move || {
        sys::run_first();
        let began = Instant::now();
        for index in 0.. {
            let due = began + Duration::from_secs_f64(f64::from(index) / per_s);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if over.load(Relaxed) {
                return;
            }
            send((index % 50_000) as u16);
        }
    });
}

fn advise(args: &[&str]) -> Result<Value> {
    let text = run(&[&["ctwatch", "advise", "--format", "json"], args].concat())?;
    serde_json::from_str(&text).context("reading the advice")
}

pub(super) fn need_rate_times_timeout(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _timeouts: Vec<Setting> =
        TIMEOUTS.into_iter().map(|(path, value)| Setting::set(path, value)).collect::<Result<_>>()?;
    table::fill_to(Mix::Assured, OLD)?;
    let _limit = Setting::set(sysctl::MAX, sysctl::read(sysctl::COUNT)?)?;
    let over = Arc::new(AtomicBool::new(false));
    flows(&over)?;
    thread::sleep(Duration::from_secs(3));
    let advice = advise(&["--window", "18s"])?;
    let mut checks = Checks::new();
    for (proto, port, rate) in FLOWS {
        let services = advice["services"].as_array().context("the advice has no services")?;
        let service = services.iter().find(|one| one["proto"] == proto && one["port"] == port);
        let Some(service) = service else {
            checks.that(false, format!("{port}/{proto} is no service: {services:#?}"));
            continue;
        };
        let offered = service["offered_per_s"].as_f64().unwrap_or(0.0);
        checks.figure(&format!("offered_{port}"), format!("{offered:.1} of {rate}"));
        checks.that(
            (offered / rate - 1.0).abs() < 0.2,
            format!("{rate} flows/s come to {port}/{proto}, advise says {offered}"),
        );
        checks.that(service["basis"] != "measured", format!("{port}/{proto} never got in: {service}"));
    }
    let demand = &advice["table"]["demand"];
    checks.that(demand["assumed"].as_f64().is_some_and(|assumed| assumed > 100.0), format!("{demand}"));
    let items = advice["items"].as_array().context("the advice has no items")?;
    // Whatever leaves refused flows tracked can't be promised to suffice.
    let promised = |item: &&Value| item["solves"] == true && item["after"]["assumed"].as_f64() != Some(0.0);
    checks.that(!items.iter().any(|item| promised(&item)), "something is promised");
    let max = items.iter().find(|item| item["id"] == "max").context("no larger table is advised")?;
    checks.that(max["solves"] == false, format!("{max}"));
    let text = run(&["ctwatch", "advise", "--window", "6s", "--item", "max"])?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let head = text.split("raise nf_conntrack_max").nth(1).unwrap_or_default();
    checks.that(!head.contains("no drops") && text.contains("a lower bound"), text.clone());

    let script = run(&["ctwatch", "advise", "--window", "6s", "--format", "sh", "--item", "max"])?;
    let folder = tempfile::tempdir().context("a folder for the script")?;
    let file = folder.path().join("max.sh");
    fs::write(&file, script).context("writing the script")?;
    run(&["sh", file.to_str().context("the script's path")?, "now", "max"])?;
    // Retries of what was refused have passed by then.
    thread::sleep(Duration::from_secs(3));
    let before = Counters::read()?;
    let (mut counts, began) = (Vec::new(), Instant::now());
    while began.elapsed() < Duration::from_secs(140) {
        thread::sleep(Duration::from_millis(500));
        if began.elapsed() > Duration::from_secs(80) {
            counts.push((began.elapsed().as_secs(), sysctl::read(sysctl::COUNT)? as f64));
        }
    }
    checks.equal("drops after the advice was followed", Counters::read()?.since(&before).get("drop"), 0);
    let needed = demand["needed"].as_f64().unwrap_or(0.0);
    let seen = counts.iter().map(|(_, count)| count).sum::<f64>() / counts.len() as f64;
    // gc takes what has expired all at once.
    let fell = counts.windows(2).filter(|pair| pair[1].1 < pair[0].1 - 100.0);
    let fell: Vec<String> = fell.map(|pair| format!("{}s:{}→{}", pair[1].0, pair[0].1, pair[1].1)).collect();
    checks.figure("fell", fell.join(","));
    checks.figure("needed", format!("{needed:.0}"));
    checks.figure("seen", format!("{seen:.0}"));
    checks.that((needed / seen - 1.0).abs() < 0.15, format!("{needed:.0} entries for {seen:.0}"));
    over.store(true, Relaxed);
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn quiet_and_icmp(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let mut checks = Checks::new();
    let icmp = Icmp::open(Ipv6Addr::LOCALHOST.into())?;
    for id in 0..60 {
        icmp.echo(Ipv6Addr::LOCALHOST.into(), id, 1)?;
    }
    let told = advise(&["--window", "3s", "--what-if", "notrack=type 128/icmpv6/lo"])?;
    let services = told["services"].as_array().context("the advice has no services")?;
    let echo = services.iter().find(|one| one["proto"] == "icmpv6").context("no ICMPv6 service")?;
    checks.equal("type", echo["icmp_type"].as_u64(), Some(128));
    checks.that(echo["port"].is_null(), format!("a port: {echo}"));
    checks.that(
        told["what_if"]["change"] == "notrack=type 128 code 0/icmpv6/lo",
        format!("{}", told["what_if"]),
    );
    let shown = run(&["ctwatch", "advise", "--window", "3s", "--what-if", "notrack=128/icmpv6"])?;
    checks.that(shown.contains("type 128 code 0/icmpv6"), shown);

    // A burst that is over.
    let _limit = Setting::set(sysctl::MAX, 2_000)?;
    udp::send(&Plan { fresh_source_every: 1, ..Plan::new(loopback(&[9, 19]), 400) })?;
    thread::sleep(Duration::from_secs(2));
    let told = advise(&["--window", "5s"])?;
    checks.equal("pieces of advice", told["items"].as_array().map(Vec::len), Some(0));
    checks.that(
        told["table"]["earlier"].as_f64().is_some_and(|entries| entries > 500.0),
        format!("{}", told["table"]),
    );
    checks.that(
        told["table"]["demand"]["needed"].as_f64().is_some_and(|entries| entries < 50.0),
        format!("{}", told["table"]["demand"]),
    );
    let shown = run(&["ctwatch", "advise", "--window", "3s"])?;
    checks.that(shown.contains("nothing is wrong now") && shown.contains("--recording"), shown);
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn only_the_host(_: &Guest) -> Result<Outcome> {
    let blue = Netns::create("blue")?;
    let _limit = Setting::set(sysctl::MAX, 60)?;
    let over = Arc::new(AtomicBool::new(false));
    blue.run(|| {
        nftables::track()?;
        table::fill_to(Mix::Assured, 60)?;
        flows(&over)
    })?;
    let mut checks = Checks::new();
    let within: Value = blue.run(|| advise(&["--window", "6s"]))?;
    let from_host = advise(&["--netns", blue.name(), "--window", "6s"])?;
    let script =
        blue.run(|| run(&["ctwatch", "advise", "--window", "6s", "--format", "sh", "--item", "max"]))?;
    over.store(true, Relaxed);
    let max = |advice: &Value| {
        let items = advice["items"].as_array().context("the advice has no items")?;
        items.iter().find(|item| item["id"] == "max").cloned().context("no larger table is advised")
    };
    let (inside, outside) = (max(&within)?, max(&from_host)?);
    checks.equal("commands inside", inside["commands"]["now"].as_array().map(Vec::len), Some(0));
    checks.that(inside["settings"].to_string().contains("nf_conntrack_max="), format!("{inside}"));
    checks.that(inside["notes"].to_string().contains("only its root"), format!("{}", inside["notes"]));
    checks.that(outside["commands"]["now"].to_string().contains("nf_conntrack_max="), format!("{outside}"));
    let file = tempfile::NamedTempFile::new().context("a file for the script")?;
    fs::write(file.path(), &script).context("writing the script")?;
    let before = sysctl::read(sysctl::MAX)?;
    let ran = blue.run(|| run(&["sh", file.path().to_str().context("its path")?, "now"]));
    checks.that(ran.is_ok(), format!("the script fails inside: {ran:?}"));
    checks.equal("nf_conntrack_max", sysctl::read(sysctl::MAX)?, before);
    Ok(Outcome::Passed(checks.finish()?))
}
