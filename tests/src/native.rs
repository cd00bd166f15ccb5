//! The tracepoint backend on the kernel this machine really runs, in a private netns that ends with this process.
//! No sysctl is written and nothing outside the netns is touched: the table is filled up to the present limit.

mod names;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::{Drops, Process};
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
    senders_and_listeners(&mut checks, netns)?;
    names::act_on_nothing(&mut checks)?;
    checks.that(started.elapsed() < Duration::from_secs(300), "slower than five minutes");
    let figures = checks.finish()?;
    println!("ok tracepoint_backend_on_this_kernel ({:.1} s) {figures}", started.elapsed().as_secs_f64());
    Ok(())
}

/// Whose packets were refused: this process sends some, and listens for others that come in from a neighbour.
fn senders_and_listeners(checks: &mut Checks, netns: u64) -> Result<()> {
    const PORT: u16 = 9125;
    let neighbour = Neighbour::join()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("a socket to listen with")?;
    let drops = Drops::start(&["--backend", "tracepoint", "--by", "process"])?;
    // Meanwhile gc may have reaped what had timed out.
    table::fill(Mix::Assured)?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&[514]), 1000))?;
    neighbour.send(PORT, 200)?;
    // To nobody: forwarded or refused, it is no process's here.
    neighbour.send(PORT + 1, 50)?;
    drops.wait_for_ticks(2)?;
    let watched = drops.stop()?;
    drop(socket);
    let losses = |role: Option<&str>| -> u64 {
        let rows = watched.end.rows.iter().filter(|row| row.netns == Some(netns));
        rows.filter(|row| match (&row.process, role) {
            (None, None) => true,
            (Some(Process { pid, role, .. }), Some(wanted)) => *pid == std::process::id() && role == wanted,
            _ => false,
        })
        .map(|row| row.losses)
        .sum()
    };
    checks.equal("this process as a sender", losses(Some("sender")), sent.total_refused());
    checks.equal("this process as a listener", losses(Some("listener")), 200);
    checks.equal("packets to nobody", losses(None), 50);
    Ok(())
}

/// Another netns, joined to this one by a veth pair. It ends with its thread.
struct Neighbour {
    orders: mpsc::Sender<(u16, u32)>,
    done: mpsc::Receiver<Result<()>>,
}

const HERE: &str = "10.9.77.1";
const THERE: &str = "10.9.77.2";

impl Neighbour {
    fn join() -> Result<Self> {
        let (orders, ordered) = mpsc::channel();
        let (report, done) = mpsc::channel();
        let (say_tid, tid) = mpsc::channel();
        std::thread::spawn(move || {
            let left = leave_for_private();
            // SAFETY: no preconditions.
            let _ = say_tid.send(left.map(|()| unsafe { libc::gettid() }));
            while let Ok((port, packets)) = ordered.recv() {
                let _ = report.send(send_from_there(port, packets));
            }
        });
        let tid = tid.recv().context("the neighbour's thread")??;
        sh(&format!("ip link add cth77 type veth peer name ctt77 netns {tid}"))?;
        sh(&format!("ip addr add {HERE}/24 dev cth77"))?;
        sh("ip link set cth77 up")?;
        Ok(Self { orders, done })
    }

    fn send(&self, port: u16, packets: u32) -> Result<()> {
        self.orders.send((port, packets)).context("the neighbour's thread has ended")?;
        self.done.recv().context("the neighbour's thread has ended")?
    }
}

/// Each packet from a socket of its own: a new flow.
fn send_from_there(port: u16, packets: u32) -> Result<()> {
    if !sh("ip addr show dev ctt77")?.contains(THERE) {
        sh(&format!("ip addr add {THERE}/24 dev ctt77"))?;
        sh("ip link set ctt77 up")?;
        // A first packet may wait for ARP, but is sent in the end.
        std::thread::sleep(Duration::from_millis(100));
    }
    for _ in 0..packets {
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a socket in the neighbour netns")?;
        socket.send_to(b"conntrack?", (HERE, port)).context("sending from the neighbour netns")?;
    }
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}
