//! `ctwatch table` against an independent reading of `conntrack -L`: by every key, in every direction, in two netns.
//! Entries outlive each scenario: what is compared may not expire between two listings.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Guest, Outcome};
use crate::census::{Line, conntrack_by, ctwatch_table, rows_by, table_of, text};
use crate::checks::Checks;
use crate::ctnetlink::{Entry, Maker, TcpState};
use crate::netns::{Netns, Veth, own_inode};
use crate::nftables;
use crate::shell::{run, sh};
use crate::sysctl::{self, Setting};

const UDP_TIMEOUT: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";

/// A flow per packet: each comes from a socket of its own.
fn send_flows(to: SocketAddr, flows: u32) -> Result<()> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let sockets: Vec<UdpSocket> =
        (0..flows).map(|_| UdpSocket::bind(any)).collect::<Result<_, _>>().context("sockets")?;
    for socket in &sockets {
        socket.send_to(b"a flow", to).with_context(|| format!("sending to {to}"))?;
    }
    Ok(())
}

/// The same to all hosts of a network.
fn send_broadcasts(to: SocketAddr, flows: u32) -> Result<()> {
    // Kept until the end, so that none gets another's port.
    let mut sockets = Vec::new();
    for _ in 0..flows {
        let socket = UdpSocket::bind("0.0.0.0:0").context("a socket")?;
        socket.set_broadcast(true).context("SO_BROADCAST")?;
        socket.send_to(b"a flow", to).with_context(|| format!("sending to {to}"))?;
        sockets.push(socket);
    }
    Ok(())
}

/// Entries of every kind, with marks and zones, and flows that nft marks.
fn populate() -> Result<()> {
    nftables::track()?;
    nftables::load(
        "table inet ctw_marks {\n\
         chain early { type filter hook output priority -310; udp dport 5602 ct zone set 5; }\n\
         chain late { type filter hook output priority 0; udp dport 5601 ct mark set 0x2a; }\n}\n",
    )?;
    let made = (0..6_000_u32).map(|index| {
        let kinds = [
            (6379, Some(TcpState::TimeWait), true),
            (6379, Some(TcpState::Established), true),
            (80, Some(TcpState::SynSent), false),
            (443, Some(TcpState::Established), true),
            (53, None, false),
            (53, None, true),
        ];
        let (port, tcp, assured) = kinds[(index % 97 % 6) as usize];
        let entry = Entry::nth(index, port, tcp, assured);
        let src = IpAddr::from([10, 70, (index % 300 / 100) as u8, (index % 100) as u8]);
        let timeout = 2_000 + index % 500;
        let sport = 1_024 + index as u16;
        Entry { src: (src, sport), timeout, mark: index % 4 * 16, zone: (index % 3) as u16, ..entry }
    });
    Maker::open()?.create(made)?;
    let v6 = (0..500_u32).map(|index| Entry {
        src: (format!("fd00::{index:x}").parse().expect("an address"), 1_024),
        dst: (format!("fd01::{:x}", index % 7).parse().expect("an address"), 8125),
        ..Entry::nth(index, 8125, None, false)
    });
    Maker::open()?.create(v6)?;
    for (port, flows) in [(5601, 40), (5602, 30), (5603, 20)] {
        send_flows(([127, 0, 0, 1], port).into(), flows)?;
    }
    Ok(())
}

type Parts = Vec<String>;

/// The value of one key in a line of `conntrack -L`.
fn of_line(line: &Line, key: &str) -> Parts {
    let port = line.dport.map(|port| port.to_string()).unwrap_or_default();
    match key {
        "port" => vec![line.proto.clone(), port],
        "state" => vec![line.proto.clone(), line.state.clone()],
        "proto" => vec![line.proto.clone()],
        "src" => vec![line.src.clone()],
        "dst" => vec![line.dst.clone()],
        "zone" => vec![line.zone.to_string()],
        "mark" => vec![line.mark.to_string()],
        other => unreachable!("{other}"),
    }
}

/// The same in a row.
fn of_row(row: &Value, key: &str) -> Option<Parts> {
    let number = |name: &str| row[name].as_u64().map(|number| number.to_string());
    Some(match key {
        "port" => vec![text(row, "proto")?, number("port").unwrap_or_default()],
        "state" => vec![text(row, "proto")?, text(row, "state")?],
        "proto" | "src" | "dst" => vec![text(row, key)?],
        _ => vec![number(key)?],
    })
}

pub(super) fn equals_conntrack_l(_: &Guest) -> Result<Outcome> {
    let _udp = Setting::set(UDP_TIMEOUT, 1_000)?;
    populate()?;
    let netns = own_inode()?;
    let mut checks = Checks::new();
    let keys = ["port", "state", "proto", "src", "dst", "zone", "mark"];
    let crossed = [("port", "state"), ("src", "dst"), ("zone", "mark"), ("mark", "src"), ("state", "dst")];
    let all = keys.iter().map(|key| (*key, None)).chain(crossed.map(|(first, second)| (first, Some(second))));
    for (first, second) in all {
        let each = || std::iter::once(first).chain(second);
        let by = each().collect::<Vec<_>>().join(",");
        let want = conntrack_by(|line| Some(each().flat_map(|key| of_line(line, key)).collect::<Parts>()))?;
        let report = ctwatch_table(&["--by", &by])?;
        let got = rows_by(&report, netns, |row| {
            let parts: Option<Vec<Parts>> = each().map(|key| of_row(row, key)).collect();
            Some(parts?.concat())
        })?;
        checks.equal_maps(&format!("by {by}: entries against conntrack -L"), &got, &want);
        checks.that(want.len() >= 2, format!("by {by}: {} rows show nothing", want.len()));
        let table = table_of(&report, netns)?;
        checks.equal(&format!("by {by}: listed"), table["listed"].as_u64(), Some(want.values().sum()));
        checks.equal(&format!("by {by}: count"), table["count"].as_u64(), table["listed"].as_u64());
        checks.equal(&format!("by {by}: unlisted"), table["unlisted"].as_i64(), Some(0));
    }
    filters_and_medians(&mut checks, netns)?;
    ages(&mut checks)?;
    Ok(Outcome::Passed(checks.finish()?))
}

/// The kernel keeps the age of what is made while nf_conntrack_timestamp is on.
fn ages(checks: &mut Checks) -> Result<()> {
    let _timestamps = Setting::set("/proc/sys/net/netfilter/nf_conntrack_timestamp", 1)?;
    let made = Instant::now();
    send_flows(([127, 0, 0, 1], 5604).into(), 10)?;
    thread::sleep(Duration::from_secs(3));
    let report = ctwatch_table(&["--port", "5603,5604"])?;
    let most = made.elapsed().as_secs_f64();
    let age = |port| {
        let row = report["rows"].as_array()?.iter().find(|row| row["port"] == port)?;
        Some(row["age_median_s"].as_f64())
    };
    checks.equal("age of flows made before", age(5603), Some(None));
    let told = age(5604).flatten().unwrap_or(-1.0);
    checks.that((2.0..=most).contains(&told), format!("age {told} s of flows made {most:.1} s ago"));
    Ok(())
}

fn filters_and_medians(checks: &mut Checks, netns: u64) -> Result<()> {
    let wanted = |line: &Line| line.dport == Some(53) && line.src.starts_with("10.70.1.");
    let want = conntrack_by(|line| wanted(line).then(|| line.src.clone()))?;
    let report = ctwatch_table(&["--by", "src", "--port", "53", "--proto", "udp", "--src", "10.70.1.0/24"])?;
    checks.equal_maps(
        "filtered by port and source",
        &rows_by(&report, netns, |row| text(row, "src"))?,
        &want,
    );
    let table = table_of(&report, netns)?;
    checks.equal("matched", table["matched"].as_u64(), Some(want.values().sum()));
    let mut left = Vec::new();
    crate::census::conntrack_lists(|line| {
        if line.dport == Some(6379) {
            left.push(line.left);
        }
    })?;
    left.sort_unstable();
    let report = ctwatch_table(&["--port", "6379"])?;
    let rows = report["rows"].as_array().context("no rows")?;
    let row = rows.iter().find(|row| row["port"] == 6379).context("no row of 6379")?;
    for (name, part) in [("timeout_left_median_s", 0.5), ("timeout_left_p90_s", 0.9)] {
        let truth = f64::from(left[(left.len() as f64 * part) as usize]);
        let told = row[name].as_f64().unwrap_or_default();
        checks.that((told - truth).abs() < truth * 0.1, format!("{name} {told}, counted {truth}"));
    }
    Ok(())
}

pub(super) fn directions(_: &Guest) -> Result<Outcome> {
    let _udp = Setting::set(UDP_TIMEOUT, 1_000)?;
    let _forward = Setting::set("/proc/sys/net/ipv4/ip_forward", 1)?;
    let (client, server) = (Netns::create("client")?, Netns::create("server")?);
    let (left, right) = (Veth::join(&client, 1)?, Veth::join(&server, 2)?);
    for (netns, via) in [(&client, left.v4.0), (&server, right.v4.0)] {
        sh(&format!("ip -n {} route add default via {via}", netns.name()))?;
    }
    nftables::load(&format!(
        "table inet ctw_dir {{\n\
         chain track {{ type filter hook output priority 0; ct state new counter; }}\n\
         chain nat {{ type nat hook prerouting priority -100; udp dport 5705 dnat ip to {}; }}\n}}\n",
        right.v4.1
    ))?;
    // Nobody answers on the other side; nobody has to.
    let to = |address: IpAddr, port: u16| SocketAddr::from((address, port));
    send_flows(to([127, 0, 0, 1].into(), 5701), 11)?;
    send_flows(to(left.v4.0, 5701), 12)?;
    send_flows(to(left.v4.1, 5702), 13)?;
    send_flows(to(left.v6.1, 5702), 14)?;
    client.run(|| {
        send_flows(to(left.v4.0, 5703), 15)?;
        send_flows(to(left.v6.0, 5703), 16)?;
        send_flows(to(right.v4.1, 5704), 17)?;
        // To this host, which sends it on.
        send_flows(to(left.v4.0, 5705), 18)
    })?;
    // What many hosts hear leaves by a device of theirs, though its source and its destination are both this host's.
    sh(&format!("ip addr add 10.8.0.1/24 brd 10.8.0.255 dev {}", left.here))?;
    send_broadcasts(to([10, 8, 0, 255].into(), 5706), 19)?;
    let mut checks = Checks::new();
    let (netns, report) = (own_inode()?, ctwatch_table(&["--by", "direction,port", "--proto", "udp"])?);
    let mut got =
        rows_by(&report, netns, |row| Some((text(row, "direction")?, row["port"].as_u64().unwrap_or(0))))?;
    got.retain(|(_, port), _| (5700..5800).contains(port));
    let want = [
        ("loopback", 5701, 23),
        ("out", 5702, 27),
        ("in", 5703, 31),
        ("forwarded", 5704, 17),
        ("forwarded", 5705, 18),
        ("out", 5706, 19),
    ];
    let want: BTreeMap<_, _> =
        want.into_iter().map(|(direction, port, flows)| ((direction.to_owned(), port), flows)).collect();
    checks.equal_maps("flows by direction and port against those sent", &got, &want);
    let report = ctwatch_table(&["--loopback", "--port", "5700-5799"])?;
    let got = rows_by(&report, netns, |row| row["port"].as_u64())?;
    checks.equal_maps("--loopback", &got, &BTreeMap::from([(5701, 23)]));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn two_netns(_: &Guest) -> Result<Outcome> {
    let other = Netns::create("second")?;
    nftables::track()?;
    let make = |port, entries| {
        Maker::open()?
            .create((0..entries).map(|index| Entry::nth(index, port, Some(TcpState::Established), true)))
    };
    make(80, 700)?;
    other.run(|| make(80, 50).and_then(|()| make(6379, 900)))?;
    let own = own_inode()?;
    let mut checks = Checks::new();
    let report = ctwatch_table(&[])?;
    for (what, netns, want) in [
        ("own", own, BTreeMap::from([(80, 700)])),
        ("other", other.inode(), BTreeMap::from([(80, 50), (6379, 900)])),
    ] {
        let got = rows_by(&report, netns, |row| row["port"].as_u64())?;
        checks.equal_maps(&format!("{what} netns by port"), &got, &want);
        let listed = table_of(&report, netns)?["listed"].as_u64();
        checks.equal(&format!("{what} netns: listed"), listed, Some(want.values().sum()));
    }
    checks.equal(
        "name of the other netns",
        table_of(&report, other.inode())?["name"].as_str(),
        Some(other.name()),
    );
    let top = run(&["ctwatch", "table", "--format", "json", "--top", "1"])?;
    let top: Value = serde_json::from_str(&top)?;
    let rests = rows_by(&top, other.inode(), |row| Some(row["rest"].as_bool().unwrap_or(false)))?;
    checks.equal_maps("--top 1: the other netns", &rests, &BTreeMap::from([(false, 900), (true, 50)]));
    let rests = rows_by(&top, own, |row| Some(row["rest"].as_bool().unwrap_or(false)))?;
    checks.equal_maps("--top 1: the own netns", &rests, &BTreeMap::from([(true, 700)]));
    let report = ctwatch_table(&["--by", "netns", "--netns", other.name()])?;
    let rows = rows_by(&report, other.inode(), |row| text(row, "name"))?;
    checks.equal_maps("--by netns --netns", &rows, &BTreeMap::from([(other.name().to_owned(), 950)]));
    checks.equal("tables with --netns", report["tables"].as_array().map(Vec::len), Some(1));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn errors_of_a_bounded_top(_: &Guest) -> Result<Outcome> {
    /// Cells for keys with addresses.
    const CELLS: u64 = 1 << 15;
    let _limit = Setting::set(sysctl::MAX, 150_000)?;
    // One source in a hundred entries is one of ten, ten in a hundred come five times; the others come once each.
    let source = |index: u32| match index % 100 {
        0 => u32::from_be_bytes([10, 1, 1, (index / 100 % 10) as u8]),
        1..=10 => 0x0A02_0000 + (index / 100 * 10 + index % 100 - 1) % 2_000,
        _ => 0x0B00_0000 + index,
    };
    let mut truth: BTreeMap<String, u64> = BTreeMap::new();
    let entries = 100_000_u32;
    for index in 0..entries {
        *truth.entry(IpAddr::from(source(index).to_be_bytes()).to_string()).or_default() += 1;
    }
    Maker::open()?.create((0..entries).map(|index| Entry {
        src: (IpAddr::from(source(index).to_be_bytes()), 1_024 + (index / 10) as u16),
        ..Entry::nth(index, 53, None, true)
    }))?;
    let netns = own_inode()?;
    let mut checks = Checks::new();
    let report = ctwatch_table(&["--by", "src"])?;
    let rows: Vec<&Value> = report["rows"].as_array().context("no rows")?.iter().collect();
    let bound = u64::from(entries).div_ceil(CELLS);
    let (mut largest_error, mut wrong) = (0, Vec::new());
    for row in rows.iter().filter(|row| row["netns"] == netns && row["rest"].is_null()) {
        let (entries, error) = (row["entries"].as_u64().unwrap_or(0), row["error"].as_u64().unwrap_or(0));
        let counted = truth.get(row["src"].as_str().unwrap_or_default()).copied().unwrap_or(0);
        if !(entries..=entries + error).contains(&counted) || error > bound {
            wrong.push(format!("{row} counted {counted}"));
        }
        if error > 0 {
            let bounds = (row["entries_min"].as_u64(), row["entries_max"].as_u64());
            if bounds != (Some(entries), Some(entries + error)) || entries <= 1 {
                wrong.push(format!("{row}: no bounds, or bounds that say nothing"));
            }
        }
        largest_error = largest_error.max(error);
    }
    checks.that(wrong.is_empty(), format!("{} rows break their errors: {:?}", wrong.len(), wrong.first()));
    checks.that(largest_error > 0, "nothing was approximate, so this shows nothing");
    checks.figure("largest_error", largest_error);
    let mut first: Vec<String> = rows.iter().take(10).filter_map(|row| text(row, "src")).collect();
    first.sort();
    let heavy: Vec<String> = (0..10).map(|number| format!("10.1.1.{number}")).collect();
    checks.equal("the ten heavy sources come first", first, heavy);
    let sum: u64 = rows_by(&report, netns, |_| Some(()))?.values().sum();
    // What is certain of a row, what may be, and the rest.
    let of_netns = rows.iter().filter(|row| row["netns"] == netns && row["rest"].is_null());
    let errors: u64 = of_netns.filter_map(|row| row["error"].as_u64()).sum();
    checks.equal(
        "rows and rest against listed",
        Some(sum + errors),
        table_of(&report, netns)?["listed"].as_u64(),
    );
    Ok(Outcome::Passed(checks.finish()?))
}
