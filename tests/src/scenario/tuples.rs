//! A few drops of each protocol, at both hooks, compared field by field with what was sent.
//! A field ctwatch can't know may be null; a field it states must be right.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::ctwatch::{Drop, Drops};
use crate::netns::{Netns, Veth, own_inode};
use crate::nftables;
use crate::table::{self, LIMIT, Mix};
use crate::traffic::icmp::Icmp;
use crate::traffic::{sctp, tcp};

/// What of a drop identifies the packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fields {
    proto: &'static str,
    src: String,
    dst: String,
    ports: Option<(u16, u16)>,
    icmp: Option<(u8, u8, u16)>,
    hook: &'static str,
}

const UDP_PORT: u16 = 5353;
const TCP_PORT: u16 = 6379;
const SCTP_PORTS: (u16, u16) = (36_412, 38_412);
const ECHO_ID: u16 = 0x1234;

pub(super) fn right_in_all_fields(_: &Guest) -> Result<Outcome> {
    let other = Netns::create("peer")?;
    let veth = Veth::join(&other, 2)?;
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--events"])?;

    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let mut expected = Vec::new();
    for (from, to) in [(v4, v4), (v6, v6)] {
        expected.extend(one_of_each(from, to, "output")?);
    }
    for (from, to) in [(veth.v4.1, veth.v4.0), (veth.v6.1, veth.v6.0)] {
        expected.extend(other.run(|| one_of_each(from, to, "prerouting"))?);
    }
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    checks.figure("packets", expected.len());
    checks.figure("events", run.drops.len());
    // A SYN may have been sent again meanwhile: the same tuple twice is one tuple.
    let expected: BTreeSet<_> = expected.iter().map(|fields| format!("{fields:?}")).collect();
    let got: BTreeSet<_> = run.drops.iter().map(|drop| format!("{:?}", fields_of(drop))).collect();
    for missing in expected.difference(&got) {
        checks.that(false, format!("no event for {missing}"));
    }
    for surplus in got.difference(&expected) {
        checks.that(false, format!("an event nobody sent: {surplus}"));
    }
    for drop in &run.drops {
        let here = |what: &str| format!("{what} of {drop:?}");
        checks.equal(&here("netns"), drop.netns, netns);
        checks.equal(&here("cause"), drop.cause.as_str(), "table_full");
        checks.equal(&here("certainty"), drop.certainty.as_str(), "exact");
        checks.equal(&here("max"), drop.max, Some(LIMIT));
        // The packet's own attempt may be in the count: alloc adds one before it gives up.
        checks.that(drop.count.is_some_and(|count| count.abs_diff(LIMIT) <= 4), here("count"));
        checks.that(drop.fill.is_some_and(|fill| (fill - 1.0).abs() < 0.01), here("fill"));
        let source = drop.fill_source.as_deref();
        checks.that(matches!(source, Some("event" | "sample")), here("fill_source"));
        match drop.hook.as_deref() {
            Some("prerouting") => {
                checks.equal(&here("in"), drop.device_in.as_deref(), Some(veth.here.as_str()));
                checks.equal(&here("out"), drop.device_out.as_deref(), None);
            }
            _ => {
                checks.equal(&here("in"), drop.device_in.as_deref(), None);
                checks.that(matches!(drop.device_out.as_deref(), None | Some("lo")), here("out"));
            }
        }
    }
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Sends one packet of each protocol and says how its drop must look.
fn one_of_each(from: IpAddr, to: IpAddr, hook: &'static str) -> Result<Vec<Fields>> {
    let fields =
        |proto, ports, icmp| Fields { proto, src: from.to_string(), dst: to.to_string(), ports, icmp, hook };
    let mut sent = Vec::new();

    let udp = UdpSocket::bind((from, 0)).context("a UDP socket")?;
    may_be_refused(udp.send_to(b"tuple", (to, UDP_PORT)))?;
    sent.push(fields("udp", Some((udp.local_addr()?.port(), UDP_PORT)), None));

    // The socket lives until its first retransmit would come, so that the source port isn't reused.
    let tcp = tcp::start(SocketAddr::from((to, TCP_PORT)))?;
    let source = std::net::TcpStream::from(tcp);
    sent.push(fields("tcp", Some((source.local_addr()?.port(), TCP_PORT)), None));
    thread::sleep(Duration::from_millis(100));
    drop(source);

    may_be_refused(Icmp::open(to)?.echo(to, ECHO_ID, 1))?;
    let (proto, kind) = if to.is_ipv4() { ("icmp", 8) } else { ("icmpv6", 128) };
    sent.push(fields(proto, None, Some((kind, 0, ECHO_ID))));

    let socket = sctp::open(to)?;
    may_be_refused(sctp::init(&socket, to, SCTP_PORTS.0, SCTP_PORTS.1))?;
    sent.push(fields("sctp", Some(SCTP_PORTS), None));
    Ok(sent)
}

fn may_be_refused(sent: std::io::Result<usize>) -> Result<()> {
    match sent {
        Err(error) if error.raw_os_error() != Some(libc::EPERM) => Err(error).context("sending"),
        _ => Ok(()),
    }
}

fn fields_of(drop: &Drop) -> Fields {
    let known =
        |text: &str, names: &[&'static str]| names.iter().find(|name| **name == text).copied().unwrap_or("?");
    Fields {
        proto: known(&drop.proto, &["udp", "tcp", "icmp", "icmpv6", "sctp"]),
        src: drop.src.clone(),
        dst: drop.dst.clone(),
        ports: drop.sport.zip(drop.dport),
        icmp: match (drop.icmp_type, drop.icmp_code, drop.icmp_id) {
            (Some(kind), Some(code), Some(id)) => Some((kind, code, id)),
            _ => None,
        },
        hook: known(drop.hook.as_deref().unwrap_or_default(), &["output", "prerouting"]),
    }
}
