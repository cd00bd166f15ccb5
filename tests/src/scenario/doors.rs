//! Packets that conntrack refuses outside nf_hook_slow: given back by a program behind NFQUEUE, or taken to conntrack by
//! Open vSwitch and by tc. Whoever frees them there must be told from whatever else is freed in the same place.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::{Drops, Run};
use crate::netns::{Netns, Veth, own_inode};
use crate::nfqueue::{Queue, Verdict};
use crate::nftables::{self, Witness};
use crate::shell::{run, sh};
use crate::table::{self, Mix};
use crate::traffic::udp::{self, Plan};

pub(super) fn nfqueue(_: &Guest) -> Result<Outcome> {
    // The programs pass the first two and drop the third; behind them, and before conntrack, a rule drops the fourth.
    let (leaving, arriving) = ([7441, 7442, 7443, 7444], [7451, 7452, 7453, 7454]);
    let other = Netns::create("sender")?;
    let veth = Veth::join(&other, 1)?;
    nftables::track()?;
    let outgoing = Witness::place("output", "udp", &leaving)?;
    let incoming = Witness::place("prerouting", "udp", &arriving)?;
    let passed = Queue::answer(0, Verdict::Accept)?;
    let dropped = Queue::answer(1, Verdict::Drop)?;
    let chains: String = [("output", leaving), ("prerouting", arriving)]
        .iter()
        .map(|(hook, [a, b, queue_drops, rule_drops])| {
            format!(
                " chain {hook}_queue {{\n  type filter hook {hook} priority -250;\n  udp dport {{ {a}, {b}, {rule_drops} }} \
                 queue num 0\n  udp dport {queue_drops} queue num 1\n }}\n chain {hook}_drop {{\n  type filter hook {hook} \
                 priority -225;\n  udp dport {rule_drops} drop\n }}\n"
            )
        })
        .collect();
    nftables::load(&format!("table inet ctw_queue {{\n{chains}}}\n"))?;
    // All these flows are to leave from one port, and are queued on their way to the confirmation.
    nftables::load(&format!(
        "table ip ctw_nat {{\n chain queued {{\n  type filter hook postrouting priority 50;\n  udp dport {CLASHING} queue num 0\n \
         }}\n chain from_one {{\n  type nat hook postrouting priority 100;\n  udp dport {CLASHING} snat to {}:{ONE_PORT}\n }}\n}}\n",
        veth.v4.0
    ))?;
    let arrived = other.run(|| Witness::place("prerouting", "udp", &[CLASHING]))?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--events"])?;
    let before = Counters::read()?;
    let clashing = udp::send_on_every_cpu(&clashing(veth.v4.1))?;
    passed.wait_for(clashing.total_accepted())?;
    let clashed = missing(&clashing.accepted(), &other.run(|| arrived.seen())?);
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let plan = |ports: &[u16], v4, v6| {
        Plan::new(ports.iter().flat_map(|port| [(v4, *port).into(), (v6, *port).into()]).collect(), 80)
    };
    let out = udp::send_on_every_cpu(&plan(&leaving, veth.v4.1, veth.v6.1))?;
    let into = other.run(|| udp::send_on_every_cpu(&plan(&arriving, veth.v4.0, veth.v6.0)))?;
    let sent = out.total_accepted() + into.total_accepted();
    passed.wait_for(clashing.total_accepted() + sent / 4 * 3)?;
    dropped.wait_for(sent / 4)?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    passed.end()?;
    dropped.end()?;
    // What the programs and the rule dropped went missing too, but not to conntrack.
    let mut lost = outgoing.lost()?;
    lost.extend(incoming.lost()?);
    for port in [7443, 7444, 7453, 7454] {
        lost.remove(&port);
    }

    let mut checks = Checks::new();
    checks.figure("queued", sent);
    checks.equal("sends refused to a sender whose packets are queued", out.total_refused(), 0);
    hold(&mut checks, &run, &kernel, netns, &lost, &clashed);
    clashes(&mut checks, &clashed);
    let events = run.drops.iter().filter(|drop| drop.cause == "table_full");
    let wrong: Vec<_> = events
        .filter(|drop| {
            let (hook, is_there) = match drop.dport {
                Some(7441 | 7442) => ("output", drop.device_out.as_deref() == Some(&veth.here)),
                _ => ("prerouting", drop.device_in.as_deref() == Some(&veth.here)),
            };
            // The program behind the queue runs while conntrack refuses the packet, but it is not the sender.
            drop.hook.as_deref() != Some(hook) || !is_there || drop.netns != netns || drop.process.is_some()
        })
        .collect();
    checks.that(
        wrong.is_empty(),
        format!("{} events with another hook, device or process: {:?}", wrong.len(), wrong.first()),
    );
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn openvswitch(_: &Guest) -> Result<Outcome> {
    let ports = [53, 4789, 6379];
    let (sender, receiver) = (Netns::create("sender")?, Netns::create("receiver")?);
    let counted: Vec<u16> = ports.iter().copied().chain([CLASHING]).collect();
    let arrived = receiver.run(|| Witness::place("prerouting", "udp", &counted))?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--events"])?;
    // The module comes while ctwatch watches; a whole tick later that is known.
    let bridge = Datapath::join(&sender, &receiver)?;
    drops.wait_for_ticks(2)?;
    let before = Counters::read()?;
    let clashing = sender.run(|| udp::send_on_every_cpu(&clashing(bridge.receiver.0)))?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let to =
        ports.iter().flat_map(|port| [(bridge.receiver.0, *port).into(), (bridge.receiver.1, *port).into()]);
    let plan = Plan::new(to.collect(), 150);
    let sent = sender.run(|| udp::send_on_every_cpu(&plan))?;
    // The switch drops what is sent here by itself, without asking conntrack.
    let unasked = Plan::new(vec![(bridge.receiver.0, DROPPED_BY_THE_SWITCH).into()], 150);
    sender.run(|| udp::send_on_every_cpu(&unasked))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let seen = receiver.run(|| arrived.seen())?;
    let (lost, clashed) = (missing(&sent.accepted(), &seen), missing(&clashing.accepted(), &seen));

    let mut checks = Checks::new();
    checks.figure("sent", sent.total_accepted());
    hold(&mut checks, &run, &kernel, netns, &lost, &clashed);
    clashes(&mut checks, &clashed);
    from_one_place(&mut checks, &run, "openvswitch", |drop| {
        drop.device_in.as_deref() == Some(FROM) && drop.device_out.is_none() && drop.netns == netns
    });
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn bridge(_: &Guest) -> Result<Outcome> {
    let ports = [53, 4789, 6379];
    let (sender, receiver) = (Netns::create("sender")?, Netns::create("receiver")?);
    let arrived = receiver.run(|| Witness::place("prerouting", "udp", &ports))?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--events"])?;
    sh("modprobe bridge")?;
    sh("ip link add ctwbr type bridge mcast_snooping 0")?;
    sh("ip link set ctwbr up")?;
    let receiving = join(&sender, &receiver, "10.9.7.", "fd09:7::", |_, port| {
        sh(&format!("ip link set {port} master ctwbr")).map(drop)
    })?;
    // The chain of a firewall of its own in the same place comes first. `ct` has the bridge track from here on, while ctwatch watches.
    nftables::load(&format!(
        "table bridge ctw {{\n chain first {{\n  type filter hook prerouting priority -300;\n  udp dport {DROPPED_BY_THE_BRIDGE} drop\n \
         }}\n chain tracks {{\n  type filter hook prerouting priority 0;\n  ct state new counter\n }}\n}}\n"
    ))?;
    drops.wait_for_ticks(3)?;
    let before = Counters::read()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let plan = |ports: &[u16], packets| {
        let to = ports.iter().flat_map(|port| [(receiving.0, *port).into(), (receiving.1, *port).into()]);
        Plan::new(to.collect(), packets)
    };
    let sent = sender.run(|| udp::send_on_every_cpu(&plan(&ports, 150)))?;
    let firewall = sender.run(|| udp::send_on_every_cpu(&plan(&[DROPPED_BY_THE_BRIDGE], 150)))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let lost = missing(&sent.accepted(), &receiver.run(|| arrived.seen())?);

    let mut checks = Checks::new();
    checks.figure("sent", sent.total_accepted());
    checks.figure("dropped by a rule", firewall.total_accepted());
    hold(&mut checks, &run, &kernel, netns, &lost, &BTreeMap::new());
    from_one_place(&mut checks, &run, "bridge", |drop| {
        drop.device_in.as_deref() == Some(FROM) && drop.device_out.is_none() && drop.netns == netns
    });
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn act_ct(guest: &Guest) -> Result<Outcome> {
    if ["5.10", "6.1"].contains(&guest.kernel.as_str()) {
        return Ok(Outcome::Skipped("before 6.11 act_ct lets a packet go on that conntrack refused".into()));
    }
    let (leaving, arriving) = ([7461, 7462], [7471, 7472]);
    let other = Netns::create("sender")?;
    let veth = Veth::join(&other, 1)?;
    let here = Witness::place("prerouting", "udp", &arriving)?;
    let there = other.run(|| Witness::place("prerouting", "udp", &[leaving[0], leaving[1], CLASHING]))?;
    let device = &veth.here;
    sh(&format!("tc qdisc add dev {device} clsact"))?;
    sh(&format!(
        "tc filter add dev {device} egress protocol ip pref 5 flower ip_proto udp dst_port {CLASHING} action ct commit nat src \
         addr {} port {ONE_PORT}",
        veth.v4.0
    ))?;
    for direction in ["ingress", "egress"] {
        for (preference, proto, family) in [(10, "ip", "ip_proto udp"), (20, "ipv6", "ip_proto udp")] {
            let filter = format!("tc filter add dev {device} {direction} protocol {proto}");
            // A drop of tc's own comes first.
            sh(&format!("{filter} pref {preference} flower {family} dst_port {DROPPED_BY_TC} action drop"))?;
            sh(&format!("{filter} pref {} flower {family} action ct commit", preference + 1))?;
        }
    }
    let netns = own_inode()?;
    let drops = Drops::start(&["--events"])?;
    let before = Counters::read()?;
    let clashing = udp::send_on_every_cpu(&clashing(veth.v4.1))?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let plan = |ports: &[u16], v4, v6| {
        let ports = ports.iter().chain([&DROPPED_BY_TC]);
        Plan::new(ports.flat_map(|port| [(v4, *port).into(), (v6, *port).into()]).collect(), 100)
    };
    let mut sent = udp::send_on_every_cpu(&plan(&leaving, veth.v4.1, veth.v6.1))?.accepted();
    sent.extend(other.run(|| udp::send_on_every_cpu(&plan(&arriving, veth.v4.0, veth.v6.0)))?.accepted());
    sent.remove(&DROPPED_BY_TC);
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let mut seen = here.seen()?;
    seen.extend(other.run(|| there.seen())?);
    let (lost, clashed) = (missing(&sent, &seen), missing(&clashing.accepted(), &seen));

    let mut checks = Checks::new();
    checks.figure("sent", sent.values().sum::<u64>());
    hold(&mut checks, &run, &kernel, netns, &lost, &clashed);
    clashes(&mut checks, &clashed);
    let events = run.drops.iter().filter(|drop| is_loss(drop));
    let wrong: Vec<_> = events
        .filter(|drop| {
            let (hook, input, output) = match drop.dport {
                Some(7461 | 7462 | CLASHING) => ("tc_egress", None, Some(device.as_str())),
                _ => ("tc_ingress", Some(device.as_str()), None),
            };
            drop.hook.as_deref() != Some(hook)
                || drop.device_in.as_deref() != input
                || drop.device_out.as_deref() != output
                || drop.netns != netns
        })
        .collect();
    checks.that(
        wrong.is_empty(),
        format!("{} events with another hook or device: {:?}", wrong.len(), wrong.first()),
    );
    Ok(Outcome::Passed(checks.finish()?))
}

/// What holds at every door: each packet that went missing between the counters is a row's, and nothing else is.
fn hold(
    checks: &mut Checks,
    run: &Run,
    kernel: &Counters,
    netns: u64,
    lost: &BTreeMap<u16, u64>,
    clashed: &BTreeMap<u16, u64>,
) {
    let missing: u64 = lost.values().chain(clashed.values()).sum();
    checks.figure("lost", lost.values().sum::<u64>());
    checks.figure("clashed", clashed.values().sum::<u64>());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.that(lost.values().sum::<u64>() > 200, "too few packets were refused to show anything");
    checks.equal_maps(
        "table_full rows per port against what went missing",
        &run.end.per_port(netns, "udp", "table_full"),
        lost,
    );
    checks.equal_maps(
        "clash rows per port against what went missing",
        &run.end.per_port(netns, "udp", "clash"),
        clashed,
    );
    checks.equal("packets that went missing against Δdrop", missing, kernel.get("drop"));
    checks.equal("counted.table_full", run.end.counted("table_full"), lost.values().sum());
    let insert_failed = kernel.get("insert_failed");
    checks.equal("counted.clash against Δinsert_failed", run.end.counted("clash"), insert_failed);
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    let events = run.drops.iter().filter(|drop| is_loss(drop)).count() as u64;
    checks.equal("events and lost ones together", events + run.end.lost_events, kernel.get("drop"));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
}

/// There were some to be told from others.
fn clashes(checks: &mut Checks, clashed: &BTreeMap<u16, u64>) {
    checks.that(clashed.values().sum::<u64>() > 50, "too few packets clashed to show anything");
}

/// Every refused packet was refused at this hook.
fn from_one_place(
    checks: &mut Checks,
    run: &Run,
    hook: &str,
    is_right: impl Fn(&crate::ctwatch::Drop) -> bool,
) {
    let events = run.drops.iter().filter(|drop| is_loss(drop));
    let wrong: Vec<_> = events.filter(|drop| drop.hook.as_deref() != Some(hook) || !is_right(drop)).collect();
    checks.that(
        wrong.is_empty(),
        format!("{} events that were not at {hook}: {:?}", wrong.len(), wrong.first()),
    );
}

/// A packet was lost, not an entry.
fn is_loss(drop: &crate::ctwatch::Drop) -> bool {
    ["table_full", "clash"].contains(&drop.cause.as_str())
}

/// Many new flows, which NAT is to send from one port.
fn clashing(to: IpAddr) -> Plan {
    Plan { fresh_source_every: 1, ..Plan::new(vec![(to, CLASHING).into()], 60) }
}

/// Per port, what was sent and not seen; ports that miss nothing are left out.
fn missing(sent: &BTreeMap<u16, u64>, seen: &BTreeMap<u16, u64>) -> BTreeMap<u16, u64> {
    let lost = sent.iter().map(|(port, sent)| (*port, sent - seen.get(port).copied().unwrap_or(0)));
    lost.filter(|(_, lost)| *lost > 0).collect()
}

/// What is sent to this port leaves from [`ONE_PORT`]: NAT keeps a tuple that is taken, and the confirmation finds it so.
const CLASHING: u16 = 8443;
const ONE_PORT: u16 = 5555;
/// What is sent to this port, a rule of tc drops.
const DROPPED_BY_TC: u16 = 7480;
/// What is sent to this port, the switch drops.
const DROPPED_BY_THE_SWITCH: u16 = 7490;
/// What is sent to this port, a rule of the bridge's own drops.
const DROPPED_BY_THE_BRIDGE: u16 = 7491;

/// The port the sender is at.
const FROM: &str = "ctwfrom";
/// The port the receiver is at.
const TO: &str = "ctwto";

/// Gives both a port of a switch in the own netns, which `plug` plugs in, and addresses below these prefixes. Neighbours are written
/// down. Returns the receiver's addresses.
fn join(
    sender: &Netns,
    receiver: &Netns,
    v4: &str,
    v6: &str,
    plug: impl Fn(u8, &str) -> Result<()>,
) -> Result<(IpAddr, IpAddr)> {
    let mut macs = Vec::new();
    for (number, port, netns) in [(1, FROM, sender), (2, TO, receiver)] {
        let name = netns.name();
        sh(&format!("ip link add {port} type veth peer name eth0 netns {name}"))?;
        sh(&format!("ip -n {name} addr add {v4}{number}/24 dev eth0"))?;
        sh(&format!("ip -n {name} addr add {v6}{number}/64 dev eth0 nodad"))?;
        sh(&format!("ip -n {name} link set eth0 up"))?;
        sh(&format!("ip link set {port} up"))?;
        plug(number, port)?;
        let link = sh(&format!("ip -n {name} -o link show dev eth0"))?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        macs.push(words.nth(1).context("no MAC address in `ip link`")?.to_owned());
    }
    for (netns, number, mac) in [(sender, 2, &macs[1]), (receiver, 1, &macs[0])] {
        let name = netns.name();
        for address in [format!("{v4}{number}"), format!("{v6}{number}")] {
            sh(&format!("ip -n {name} neigh replace {address} lladdr {mac} dev eth0 nud permanent"))?;
        }
    }
    Ok((format!("{v4}2").parse()?, format!("{v6}2").parse()?))
}

/// A datapath of Open vSwitch in the own netns, between two others; deleted when dropped. The kernel's part alone: flows are
/// written down, so that no packet waits for ovs-vswitchd.
struct Datapath {
    /// Addresses of the receiver.
    receiver: (IpAddr, IpAddr),
}

impl Datapath {
    const NAME: &str = "ctw-dp";

    /// UDP from `sender` to `receiver` passes conntrack and is committed; other packets simply pass.
    fn join(sender: &Netns, receiver: &Netns) -> Result<Self> {
        sh("modprobe openvswitch")?;
        sh(&format!("ovs-dpctl add-dp {}", Self::NAME))?;
        let receiver = join(sender, receiver, "10.9.8.", "fd09:8::", |number, port| {
            sh(&format!("ovs-dpctl add-if {} {port},port_no={number}", Self::NAME)).map(drop)
        })?;
        let datapath = Self { receiver };
        for (ether, ip) in [("0x0800", "ipv4(proto=17,frag=no)"), ("0x86dd", "ipv6(proto=17,frag=no)")] {
            let flow = |ports: &str| format!("in_port(1),eth(),eth_type({ether}),{ip},udp({ports})");
            if ether == "0x0800" {
                let nat = format!("ct(commit,nat(src=10.9.8.1:{ONE_PORT})),2");
                add_flow(&flow(&format!("dst={CLASHING}")), &nat)?;
            }
            for port in [53u16, 4789, 6379] {
                add_flow(&flow(&format!("dst={port}")), "ct(commit),2")?;
            }
            add_flow(&flow(&format!("dst={DROPPED_BY_THE_SWITCH}")), "")?;
        }
        Ok(datapath)
    }
}

fn add_flow(flow: &str, actions: &str) -> Result<()> {
    run(&["ovs-dpctl", "add-flow", Datapath::NAME, flow, actions]).map(drop)
}

impl Drop for Datapath {
    fn drop(&mut self) {
        let gone =
            sh(&format!("ovs-dpctl del-dp {}", Self::NAME)).and_then(|_| sh("modprobe -r openvswitch"));
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
    }
}
