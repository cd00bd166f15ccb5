//! Who fills the table, from one census and counted inserts and deletes, against `conntrack -L`; and when it will be full.
//! `conntrack -L` is asked only in quiet moments: while flows come and go no two readings are the same table.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::ctnetlink::{Entry, Maker, TcpState};
use crate::ctwatch::{Drops, Tick};
use crate::netns::{Netns, own_inode};
use crate::nftables;
use crate::shell::run;
use crate::sysctl::{self, Setting};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

/// Entries per (protocol, service port), as conntrack lists them.
fn listed() -> Result<BTreeMap<(String, u16), u64>> {
    let mut ports = BTreeMap::new();
    for line in run(&["conntrack", "-L"])?.lines() {
        let mut words = line.split_whitespace();
        let proto = words.next().unwrap_or_default().to_owned();
        let port = words.find_map(|word| word.strip_prefix("dport=")).and_then(|port| port.parse().ok());
        if let Some(port) = port {
            *ports.entry((proto, port)).or_default() += 1;
        }
    }
    // IPv6 is listed apart.
    for line in run(&["conntrack", "-L", "-f", "ipv6"])?.lines() {
        let mut words = line.split_whitespace();
        let proto = words.next().unwrap_or_default().to_owned();
        let port = words.find_map(|word| word.strip_prefix("dport=")).and_then(|port| port.parse().ok());
        if let Some(port) = port {
            *ports.entry((proto, port)).or_default() += 1;
        }
    }
    Ok(ports)
}

fn occupants(tick: &Tick, netns: u64) -> BTreeMap<(String, u16), u64> {
    let table = tick.tables.iter().find(|table| table.netns == netns);
    table
        .map(|table| {
            let ports = table.occupants.iter().filter(|one| one.entries > 0);
            ports.filter_map(|one| Some(((one.proto.clone(), one.port?), one.entries))).collect()
        })
        .unwrap_or_default()
}

/// Compares at a quiet moment: a tick after the last change.
fn compare(checks: &mut Checks, when: &str, drops: &Drops, netns: u64) -> Result<()> {
    drops.wait_for_ticks(3)?;
    let last = drops.last_tick().context("no tick yet")?;
    checks.equal_maps(
        &format!("{when}: entries per port against conntrack -L"),
        &occupants(&last, netns),
        &listed()?,
    );
    Ok(())
}

/// How long a flow without an answer is kept, seconds.
const UDP_TIMEOUT: u64 = 4;

pub(super) fn equals_conntrack_l(_: &Guest) -> Result<Outcome> {
    // Short timeouts: a hundred thousand flows come and go within a minute.
    nftables::track()?;
    let _limit = Setting::set(sysctl::MAX, 60_000)?;
    let _udp = Setting::set("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", UDP_TIMEOUT)?;
    let netns = own_inode()?;
    // What was there before: a thousand entries that stay.
    Maker::open()?.create((0..1000).map(|index| Entry::nth(index, 6379, Some(TcpState::TimeWait), true)))?;
    let drops = Drops::start(&["--interval", "300ms"])?;
    let mut checks = Checks::new();
    compare(&mut checks, "at the start", &drops, netns)?;

    let _receivers: Vec<_> =
        loopback(&[5301, 5302]).into_iter().map(UdpSocket::bind).collect::<Result<_, _>>()?;
    let plan = Plan { fresh_source_every: 1, ..Plan::new(loopback(&[5301, 5302]), 12_500) };
    let sent = udp::send_on_every_cpu(&plan)?;
    checks.figure("flows", sent.total_accepted() + sent.total_refused());
    // Whatever has timed out goes when gc comes by, or now: the listing itself reaps it. Before that it would only be long.
    thread::sleep(Duration::from_secs(UDP_TIMEOUT));
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until && listed()?.len() > 1 {
        thread::sleep(Duration::from_secs(1));
    }
    compare(&mut checks, "after the flows came and went", &drops, netns)?;

    Maker::open()?
        .create((2000..2500).map(|index| Entry::nth(index, 443, Some(TcpState::Established), true)))?;
    run(&[
        "conntrack",
        "-I",
        "-p",
        "udp",
        "-s",
        "10.1.1.1",
        "-d",
        "10.1.1.2",
        "--sport",
        "5",
        "--dport",
        "53",
        "-t",
        "600",
    ])?;
    compare(&mut checks, "after entries were created over ctnetlink", &drops, netns)?;
    run(&["conntrack", "-D", "-p", "tcp", "--dport", "443"])?;
    compare(&mut checks, "after conntrack -D", &drops, netns)?;
    run(&["conntrack", "-F"])?;
    compare(&mut checks, "after conntrack -F", &drops, netns)?;
    let last = drops.last_tick().context("no tick yet")?;
    let exact = last.tables.iter().find(|table| table.netns == netns).and_then(|table| table.occupancy_exact);
    checks.equal("occupancy_exact", exact, Some(true));
    drops.stop()?;
    Ok(Outcome::Passed(checks.finish()?))
}

/// Sends new flows at a rate that may grow, until the table is full or the time is up; returns when it was full.
fn fill_at(rate: Rate, limit: Duration, full: u64) -> Result<Option<Duration>> {
    let _receiver = UdpSocket::bind(("127.0.0.1", 5400))?;
    let started = Instant::now();
    let (mut sent, mut due) = (0u64, 0.0);
    let mut last = 0.0;
    loop {
        let at = started.elapsed();
        if at > limit {
            return Ok(None);
        }
        let now = at.as_secs_f64();
        due += rate(now) * (now - last);
        last = now;
        while sent < due as u64 {
            let socket = UdpSocket::bind(("127.0.0.1", 0))?;
            let _ = socket.send_to(b"new flow", ("127.0.0.1", 5400));
            sent += 1;
        }
        if sysctl::read(sysctl::COUNT)? >= full {
            return Ok(Some(at));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// New flows per second, by seconds since the start.
type Rate = fn(f64) -> f64;

/// Name, how long entries last without an answer, arrivals: two that fill the table with entries that outlive the fill,
/// and one whose entries go as fast as they come.
const CASES: [(&str, u64, Rate); 3] =
    [("steady", 600, |_| 100.0), ("rising", 600, |at| 40.0 + 5.0 * at), ("levels_off", 6, |_| 100.0)];

pub(super) fn forecasts_when_it_will_be_full(_: &Guest) -> Result<Outcome> {
    let full = 4000;
    let _limit = Setting::set(sysctl::MAX, full)?;
    let tables: Vec<Netns> = CASES.iter().map(|(name, ..)| Netns::create(name)).collect::<Result<_>>()?;
    for (table, (_, timeout, _)) in tables.iter().zip(CASES) {
        table.run(|| {
            nftables::track()?;
            // Each netns has its own timeouts, and it ends with them.
            std::mem::forget(Setting::set("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", timeout)?);
            Ok(())
        })?;
    }
    let drops = Drops::start(&[])?;
    let started = Instant::now();
    let filled: Vec<Option<Duration>> = thread::scope(|scope| {
        let fillers: Vec<_> = tables
            .iter()
            .zip(CASES)
            .map(|(table, (_, _, rate))| {
                scope.spawn(move || table.run(|| fill_at(rate, Duration::from_secs(48), full)))
            })
            .collect();
        fillers.into_iter().map(|filler| filler.join().expect("a filler panicked")).collect::<Result<_>>()
    })?;
    let ticks = drops.ticks_with_times();
    drops.stop()?;

    let mut checks = Checks::new();
    for ((table, (name, ..)), filled) in tables.iter().zip(CASES).zip(filled) {
        let forecasts: Vec<(f64, Option<f64>)> = ticks
            .iter()
            .filter_map(|(at, tick)| {
                let table = tick.tables.iter().find(|one| one.netns == table.inode())?;
                Some((at.duration_since(started).as_secs_f64(), table.full_in_s))
            })
            .collect();
        match filled {
            Some(filled) => judge(&mut checks, name, filled.as_secs_f64(), &forecasts),
            None => {
                checks.equal("the table that never fills", name, "levels_off");
                // Once lifetimes have shown, it must know that it will never be full.
                let late: Vec<_> = forecasts.iter().filter(|(at, _)| *at > 20.0).collect();
                let wrong: Vec<_> = late.iter().filter(|(_, forecast)| forecast.is_some()).collect();
                checks.figure("levels_off_forecasts", late.len());
                checks.that(late.len() > 10 && wrong.is_empty(), format!("of {}: {wrong:?}", late.len()));
            }
        }
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// From two fifths of the way on, until the last seconds, where a tick's length is all there is.
fn judge(checks: &mut Checks, name: &str, filled: f64, forecasts: &[(f64, Option<f64>)]) {
    checks.figure(&format!("{name}_full_after_s"), format!("{filled:.1}"));
    checks.that(name != "levels_off", "the table that was to level off filled up");
    let judged: Vec<_> =
        forecasts.iter().filter(|(at, _)| *at > filled * 0.4 && *at < filled - 4.0).collect();
    let off: Vec<_> = judged
        .iter()
        .filter(|(at, forecast)| {
            let truth = filled - at;
            forecast.is_none_or(|forecast| (forecast - truth).abs() > 0.2 * truth + 1.0)
        })
        .collect();
    checks.figure(&format!("{name}_forecasts"), judged.len());
    checks.that(
        judged.len() >= 5 && off.len() * 10 <= judged.len(),
        format!(
            "{name}: full after {filled:.1} s; {} of {} forecasts are off: {off:?}",
            off.len(),
            judged.len()
        ),
    );
}
