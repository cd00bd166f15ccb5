//! The judge of NOTRACK against the kernel: for each rule set its own commands are run and a connection is tried.
//! What the judge says comes from the library, since that is what is tested; whether it is true comes from sockets.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use ctwatch::firewall::{self, ExemptTarget, Firewall, Objection, Scope, Tool};
use ctwatch::kernel::roots::Roots;
use ctwatch::model::Protocol;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::netns::{Netns, Veth};
use crate::nftables;
use crate::shell::{run, run_with_input, sh};

/// A rule set, a service, and the tool whose commands are tried.
struct Case {
    rules: Rules,
    port: u16,
    scope: Scope,
    tool: Tool,
}

#[derive(Clone, Copy)]
enum Rules {
    Nft(&'static str, &'static str),
    Iptables(&'static str, &'static str),
}

macro_rules! rules {
    ($tool:ident, $file:literal) => {
        Rules::$tool($file, include_str!(concat!("../../../ctwatch/tests/firewall/rules/", $file)))
    };
}

const SIMPLE: Rules = rules!(Nft, "simple.nft");
const ESTABLISHED: Rules = rules!(Nft, "established.nft");
const VMAP: Rules = rules!(Nft, "vmap.nft");
const FIREWALLD: Rules = rules!(Nft, "firewalld.nft");
const MIXED: Rules = rules!(Nft, "mixed.nft");
const UFW: Rules = rules!(Iptables, "ufw.v4");
const DOCKER: Rules = rules!(Iptables, "docker.v4");
const KUBE: Rules = rules!(Iptables, "kube.v4");
const RAW: Rules = rules!(Iptables, "raw.v4");

const fn case(rules: Rules, port: u16, scope: Scope, tool: Tool) -> Case {
    Case { rules, port, scope, tool }
}

const CASES: &[Case] = &[
    case(SIMPLE, 6379, Scope::Loopback, Tool::Nft),
    case(SIMPLE, 443, Scope::Served, Tool::Nft),
    case(SIMPLE, 443, Scope::Served, Tool::Iptables),
    case(SIMPLE, 443, Scope::Outgoing, Tool::Nft),
    case(ESTABLISHED, 6379, Scope::Loopback, Tool::Nft),
    case(ESTABLISHED, 6379, Scope::Served, Tool::Nft),
    case(VMAP, 6379, Scope::Loopback, Tool::Iptables),
    case(VMAP, 6379, Scope::Served, Tool::Nft),
    case(VMAP, 8005, Scope::Served, Tool::Nft),
    case(FIREWALLD, 6379, Scope::Loopback, Tool::Nft),
    case(FIREWALLD, 80, Scope::Served, Tool::Nft),
    // Redirected to 80 and 81; nothing listens at 8080 and 8081 themselves.
    case(MIXED, 8080, Scope::Served, Tool::Nft),
    case(MIXED, 8081, Scope::Loopback, Tool::Nft),
    case(UFW, 6379, Scope::Loopback, Tool::Iptables),
    case(UFW, 8005, Scope::Served, Tool::Iptables),
    case(DOCKER, 80, Scope::Served, Tool::Iptables),
    // The container's, not this host's own 6379.
    case(DOCKER, 6379, Scope::Served, Tool::Nft),
    case(KUBE, 6379, Scope::Loopback, Tool::Iptables),
    case(RAW, 5432, Scope::Served, Tool::Iptables),
];
/// Where something listens, here and in the other netns.
const PORTS: [u16; 6] = [80, 81, 443, 5432, 6379, 8005];
const PATIENCE: Duration = Duration::from_millis(1500);
const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

pub(super) fn judged(_: &Guest) -> Result<Outcome> {
    let other = Netns::create("client")?;
    let veth = Veth::join(&other, 7)?;
    let container = container()?;
    serve(*b"host")?;
    other.run(|| serve(*b"peer"))?;
    container.run(|| serve(*b"cont"))?;
    let mut checks = Checks::new();
    let mut figures = [0; 4];
    for case in CASES {
        let figure = try_case(case, &other, &veth, &mut checks)
            .with_context(|| format!("{} with {}/tcp {:?}", name(case.rules), case.port, case.scope))?;
        figures.iter_mut().zip(figure).for_each(|(sum, one)| *sum += usize::from(one));
        clear()?;
    }
    checks.figure("cases", CASES.len());
    let names = ["said_to_break", "broke", "remedied", "undone"];
    names.iter().zip(figures).for_each(|(name, figure)| checks.figure(name, figure));
    checks
        .that(figures[0] > 3 && figures[0] < CASES.len() - 5, "the cases are too one-sided to show anything");
    checks.that(figures[2] > 1, "no remedy was tried");
    Ok(Outcome::Passed(checks.finish()?))
}

/// Where docker.v4 publishes 6379 to.
pub(super) fn container() -> Result<Netns> {
    let container = Netns::create("container")?;
    let netns = container.name();
    for line in [
        format!("ip link add docker0 type veth peer name eth0 netns {netns}"),
        "ip addr add 172.17.0.1/16 dev docker0".to_owned(),
        "ip link set docker0 up".to_owned(),
        format!("ip -n {netns} addr add 172.17.0.2/16 dev eth0"),
        format!("ip -n {netns} link set eth0 up"),
        format!("ip -n {netns} route add default via 172.17.0.1"),
        "sysctl -q -w net.ipv4.ip_forward=1".to_owned(),
    ] {
        sh(&line)?;
    }
    Ok(container)
}

fn name(rules: Rules) -> &'static str {
    match rules {
        Rules::Nft(name, _) | Rules::Iptables(name, _) => name,
    }
}

fn clear() -> Result<()> {
    nftables::flush()
}

/// Whether it was said to break, whether it broke, whether the remedies were tried, whether the undo was complete.
fn try_case(case: &Case, other: &Netns, veth: &Veth, checks: &mut Checks) -> Result<[bool; 4]> {
    let Case { rules, port, scope, tool } = *case;
    let what = format!("{} {port} {scope:?} {tool:?}", name(rules));
    match rules {
        Rules::Nft(_, text) => nftables::load(text)?,
        Rules::Iptables(_, text) => drop(run_with_input(&["iptables-restore"], text)?),
    }
    let listed = list()?;
    let target = ExemptTarget { proto: Protocol::TCP, port, scope };
    let (judge, breaks) = judge(&target)?;
    let said = !breaks.is_empty();

    let today = connect(case, other, veth)?;
    ensure!(today != [None, None], "{what}: nothing connects even without NOTRACK: {today:?}");
    let tracked = entries(port)?;
    checks.that(tracked > 0, format!("{what}: conntrack tracks nothing, so the case shows nothing"));

    let commands = judge.notrack_commands(&target, tool);
    shell(&commands.now)?;
    let _ = run(&["conntrack", "-F"]);
    let exempt = connect(case, other, veth)?;
    let broke = today.iter().zip(&exempt).any(|(before, after)| before.is_some() && after != before);
    checks.that(
        said == broke,
        format!(
            "{what}: said {breaks:#?}, answered before {today:?} and with NOTRACK {exempt:?} ({FAMILIES:?})"
        ),
    );
    checks.equal(&format!("{what}: entries with NOTRACK"), entries(port)?, 0);
    if !broke {
        let (again, _) = self::judge(&target)?;
        let kinds: Vec<_> = again.objections(&target).into_iter().map(|one| one.kind).collect();
        checks.that(
            kinds.contains(&firewall::ObjectionKind::AlreadyUntracked),
            format!("{what}: not seen as exempt afterwards: {kinds:?}"),
        );
    }
    let remedies: Vec<_> = breaks.iter().filter_map(|objection| objection.remedy.clone()).collect();
    let remedied = said && remedies.len() == breaks.len();
    if remedied {
        shell(&remedies)?;
        let healed = connect(case, other, veth)?;
        checks.equal(&format!("{what}: connections with the remedies {remedies:?}"), healed, today.clone());
        let (_, left) = self::judge(&target)?;
        checks.that(left.is_empty(), format!("{what}: after the remedies still {left:?}"));
        // The remedies aren't NOTRACK's to undo.
        clear()?;
        match rules {
            Rules::Nft(_, text) => nftables::load(text)?,
            Rules::Iptables(_, text) => drop(run_with_input(&["iptables-restore"], text)?),
        }
        shell(&commands.now)?;
    }
    // Units can be written here but not enabled; whether they would do is `kept`'s to show.
    let with_systemd = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|line| line.replace("systemctl", ": systemctl")).collect()
    };
    let (keep, undo) = (with_systemd(&commands.keep), with_systemd(&commands.undo));
    let files =
        || sh("find /etc/nftables.d /etc/nftables.conf /etc/systemd/system -type f -exec md5sum {} +");
    sh("mkdir -p /etc/nftables.d /etc/systemd/system /run/systemd/system")?;
    // Debian's own begins with `flush ruleset`.
    fs::write("/etc/nftables.conf", "").context("emptying nftables.conf")?;
    let before = files()?;
    shell(&keep)?;
    checks.that(files()? != before, format!("{what}: nothing was kept"));
    if tool == Tool::Nft {
        sh("nft -f /etc/nftables.conf").context("loading what was kept, as at boot")?;
    }
    shell(&undo)?;
    sh("rmdir /run/systemd/system")?;
    let undone = list()? == listed && files()? == before;
    checks.that(undone, format!("{what}: after the undo there is\n{}\nin place of\n{listed}", list()?));
    checks.equal(&format!("{what}: connections after the undo"), connect(case, other, veth)?, today);
    checks.that(entries(port)? > 0, format!("{what}: not tracked after the undo"));
    Ok([said, broke, remedied, undone])
}

/// What the library says of the rules in force, and which of it would break connections.
fn judge(target: &ExemptTarget) -> Result<(Firewall, Vec<Objection>)> {
    let (firewall, _, notes) = firewall::read(&Roots::default());
    ensure!(notes.is_empty(), "rules that couldn't be read: {notes:?}");
    let mut objections = firewall.objections(target);
    objections.retain(|objection| objection.kind.forbids());
    Ok((firewall, objections))
}

pub(super) fn shell(lines: &[String]) -> Result<()> {
    for line in lines {
        run(&["sh", "-c", line])?;
    }
    Ok(())
}

/// All rules, without counters. iptables makes its tables when it first needs them and leaves them empty; empty ones
/// decide nothing and don't count.
fn list() -> Result<String> {
    let mut kept = String::new();
    let text = sh("nft -s list ruleset")?;
    for table in text.split_inclusive("\n}\n") {
        let rules = table.lines().filter(|line| {
            let line = line.trim();
            !line.is_empty()
                && !line.ends_with('{')
                && !line.starts_with('}')
                && !line.ends_with("policy accept;")
        });
        if rules.count() > 0 {
            kept += table;
        }
    }
    Ok(kept)
}

/// Entries of flows to this port, of both families.
fn entries(port: u16) -> Result<usize> {
    let port = format!("dport={port} ");
    let mut count = 0;
    for family in FAMILIES {
        let text = run(&["conntrack", "-L", "-p", "tcp", "-f", family])?;
        count += text
            .lines()
            .filter(|line| line.split("src=").nth(1).is_some_and(|first| first.contains(&port)))
            .count();
    }
    Ok(count)
}

/// Who answers in IPv4 and IPv6, over a connection with several packets each way.
fn connect(case: &Case, other: &Netns, veth: &Veth) -> Result<[Answer; 2]> {
    let port = case.port;
    let to = |v4: IpAddr, v6: IpAddr| [v4, v6].map(|ip| SocketAddr::new(ip, port));
    Ok(match case.scope {
        Scope::Loopback => to(Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()).map(answer),
        Scope::Served => other.run(|| Ok(to(veth.v4.0, veth.v6.0).map(answer)))?,
        Scope::Outgoing => to(veth.v4.1, veth.v6.1).map(answer),
    })
}

/// The name of who answered.
pub(super) type Answer = Option<String>;

pub(super) fn answer(to: SocketAddr) -> Answer {
    let talk = || -> std::io::Result<[u8; 4]> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut name = [0; 4];
        for _ in 0..2 {
            stream.write_all(b"who?")?;
            stream.read_exact(&mut name)?;
        }
        Ok(name)
    };
    talk().ok().map(|name| String::from_utf8_lossy(&name).into_owned())
}

/// Answers with `name` on every port of [`PORTS`], for both families, in the thread's netns.
pub(super) fn serve(name: [u8; 4]) -> Result<()> {
    for port in PORTS {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .with_context(|| format!("listening on port {port}"))?;
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut question = [0; 4];
                    while stream.read_exact(&mut question).and_then(|()| stream.write_all(&name)).is_ok() {}
                });
            }
        });
    }
    Ok(())
}
