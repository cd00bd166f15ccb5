//! The facts `ctwatch advise` starts from, against what the system's own tools say of the same machine.
//! The module under test is called as a library; every expectation is sysctl's, nproc's, ss's or the slab's.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ctwatch::machine::endpoint::{self, Endpoint, Port};
use ctwatch::machine::{self, Host, Machine, Software, Writable};
use ctwatch::model::Protocol;

use super::story::Story;
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::netns::Netns;
use crate::shell::{run, sh};
use crate::traffic::http::Load;
use crate::{nftables, sysctl};

const REDIS: Port = Port { proto: Protocol::TCP, port: 6379 };
const HTTP: Port = Port { proto: Protocol::TCP, port: 80 };

/// As emulation may be slow.
const PATIENCE: Duration = Duration::from_secs(90);

pub(super) fn facts_equal_the_tools(_: &Guest) -> Result<Outcome> {
    let mut checks = Checks::new();
    nftables::track()?;
    let machine = machine::read(&Host::default());
    facts(&mut checks, &machine)?;
    timeouts(&mut checks, &machine, &all_sysctls()?);

    // What somebody changes is seen beside the kernel's own, and a file that says something else is named.
    let name = "net.netfilter.nf_conntrack_tcp_timeout_time_wait";
    fs::create_dir_all("/etc/sysctl.d")?;
    fs::write("/etc/sysctl.d/60-test.conf", format!("{name} = 45\n")).context("writing a sysctl file")?;
    run(&["sysctl", "-qw", &format!("{name}=31")])?;
    let changed = machine::read(&Host::default());
    run(&["sysctl", "-qw", &format!("{name}=120")])?;
    let _ = fs::remove_file("/etc/sysctl.d/60-test.conf");
    let time_wait = &changed.timeouts["tcp_time_wait"];
    checks.equal("time_wait", (time_wait.seconds, time_wait.default), (31, Some(120)));
    let setting = changed.settings.sysctls.get(name).context("the setting of the file")?;
    checks.equal("the file's value", setting.winner.value.as_str(), "45");
    checks.that(setting.differs(), "31 in force and 45 in a file go unnoticed");

    // In another netns: its own timeouts, and nothing to write.
    let other = Netns::create("facts")?;
    let inside = other.run(|| {
        nftables::track()?;
        run(&["sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=7"])?;
        Ok(machine::read(&Host::default()))
    })?;
    checks.equal("udp timeout in the other netns", inside.timeouts["udp"].seconds, 7);
    checks.equal("initial netns", inside.table.initial_netns, Some(false));
    checks.equal("max there", inside.table.max_writable, Writable::OnlyInTheInitialNetns);
    checks.equal("udp timeout here", machine::read(&Host::default()).timeouts["udp"].seconds, 30);
    Ok(Outcome::Passed(checks.finish()?))
}

fn facts(checks: &mut Checks, machine: &Machine) -> Result<()> {
    let text = |line: &str| sh(line).map(|text| text.trim().to_owned());
    let number = |line: &str| -> Result<u64> { Ok(text(line)?.parse()?) };
    let table = &machine.table;
    checks.equal("release", machine.kernel_release.clone(), text("uname -r")?);
    checks.equal("CPUs", machine.cpus.map(u64::from), Some(number("nproc")?));
    let free = text("free -b")?;
    let total = free.lines().nth(1).and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    checks.equal("memory", machine.memory.map(|memory| memory.total), total);
    checks.equal("max", table.max, Some(number("sysctl -n net.netfilter.nf_conntrack_max")?));
    checks.equal("buckets", table.buckets, Some(number("sysctl -n net.netfilter.nf_conntrack_buckets")?));
    checks.equal(
        "hash size",
        table.buckets,
        Some(sysctl::read("/sys/module/nf_conntrack/parameters/hashsize")?),
    );
    checks.equal("initial netns", table.initial_netns, Some(true));
    checks.equal("max is writable", table.max_writable, Writable::Yes);
    checks.equal("entry", table.entry.object, sysctl::read("/sys/kernel/slab/nf_conntrack/slab_size")?);
    // The boot set nothing, so what the kernel has is what it chose.
    checks.equal("the kernel's own max", table.kernel_default.map(|sizes| sizes.max), table.max);
    checks.equal("the kernel's own buckets", table.kernel_default.map(|sizes| sizes.buckets), table.buckets);
    let range = text("sysctl -n net.ipv4.ip_local_port_range")?;
    let mut range = range.split_whitespace().map(str::parse::<u32>);
    let (low, high) = (range.next().context("a first port")??, range.next().context("a last port")??);
    checks.equal(
        "ports",
        machine.ephemeral_ports.as_ref().map(|ports| ports.ceiling()),
        Some(high - low + 1),
    );
    checks.that(machine.managers.is_empty(), format!("managers in a bare VM: {:?}", machine.managers));
    checks.figure("max", table.max.unwrap_or_default());
    checks.figure("buckets", table.buckets.unwrap_or_default());
    checks.figure("entry", table.entry.object);
    checks.figure("timeouts", machine.timeouts.len());
    Ok(())
}

/// "net.netfilter.nf_conntrack_udp_timeout" and its value.
fn all_sysctls() -> Result<BTreeMap<String, u64>> {
    let mut found = BTreeMap::new();
    for line in run(&["sysctl", "-a", "--pattern", "^net.netfilter.nf_conntrack_.*timeout"])?.lines() {
        let (name, value) = line.split_once('=').context("a line of sysctl's")?;
        found.insert(name.trim().to_owned(), value.trim().parse()?);
    }
    Ok(found)
}

fn timeouts(checks: &mut Checks, machine: &Machine, sysctls: &BTreeMap<String, u64>) {
    let read = machine.timeouts.values();
    let read: BTreeMap<_, _> =
        read.map(|timeout| (timeout.sysctl.clone(), u64::from(timeout.seconds))).collect();
    let mut wanted = sysctls.clone();
    wanted.remove("net.netfilter.nf_conntrack_frag6_timeout");
    checks.equal_maps("timeouts", &read, &wanted);
    for (name, timeout) in &machine.timeouts {
        checks.equal(&format!("default of {name}"), timeout.default, Some(timeout.seconds));
    }
}

/// Requests that are under way while ctwatch looks, each with a connection to nginx and one from nginx to redis.
const UNDER_WAY: u64 = 40;

pub(super) fn real_programs_are_identified(_: &Guest) -> Result<Outcome> {
    // The story's connections live for milliseconds, and to meet one here is luck. So redis answers nobody for a while
    // and nobody gives up: the connections there are when ctwatch begins to look are there when it ends.
    let story = Story::up_patiently(65_536, PATIENCE)?;
    // Writes alone, or redis wouldn't hear of the end either.
    run(&["redis-cli", "client", "pause", &(2 * PATIENCE.as_millis()).to_string(), "write"])?;
    let load = Load::new(([127, 0, 0, 1], 80).into(), UNDER_WAY as f64, 1.0);
    let load = Load { timeout: PATIENCE, ..load };
    let (report, endpoints) = std::thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| load.run());
        let endpoints = when_under_way()
            .map(|()| endpoint::read(&Host::default().roots, &[REDIS, HTTP], Duration::from_secs(2)).0);
        run(&["redis-cli", "client", "unpause"])?;
        Ok((load.join().expect("the load doesn't panic"), endpoints?))
    })?;
    let report = report?;
    let listeners = run(&["ss", "-Hltnp"])?;
    drop(story);

    let mut checks = Checks::new();
    checks.figure("under_way", UNDER_WAY);
    checks.equal("requests answered in the end", report.ok, UNDER_WAY);
    checks.equal("requests that failed", report.all_failed(), 0);
    for (port, software, process) in
        [(REDIS, Software::Redis, "redis-server"), (HTTP, Software::NginxLua, "nginx")]
    {
        let endpoint = &endpoints[&port];
        checks.equal("servers", softwares(endpoint), vec![software]);
        let line = listeners
            .lines()
            .find(|line| line.contains(&format!(":{} ", port.port)) && line.contains(process));
        let pid = endpoint.servers.first().map(|server| format!("pid={},", server.pid)).unwrap_or_default();
        checks.that(line.is_some_and(|line| line.contains(&pid)), format!("{pid} isn't in ss's {line:?}"));
    }
    let clients = &endpoints[&REDIS].clients;
    checks.equal(
        "software of redis's first client",
        clients.first().map(|client| client.program.software.clone()),
        Some(Software::NginxLua),
    );
    checks.equal("kinds of redis's clients", clients.len(), 1);
    let of_nginx = clients.first().map(|client| client.connections);
    checks.equal("nginx's connections to redis", of_nginx, Some(UNDER_WAY as usize));
    checks.equal("connections to redis of nobody known", endpoints[&REDIS].unknown, 0);
    let own = endpoints[&HTTP].clients.iter().find(|client| client.program.pid == std::process::id());
    checks.that(
        own.is_some(),
        format!("this process sends to nginx, but is not among {:?}", endpoints[&HTTP].clients),
    );
    let of_this = own.map(|client| client.connections);
    checks.equal("this process's connections to nginx", of_this, Some(UNDER_WAY as usize));
    let hint = machine::reuse::reuse_hint(&Software::Redis, &[Software::NginxLua]).settings.join(" ");
    checks.that(hint.contains("set_keepalive"), format!("no set_keepalive in: {hint}"));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Waits until each request has its connection to redis.
fn when_under_way() -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let connected = run(&["ss", "-Htn", "state", "established", "dport", "=", ":6379"])?.lines().count();
        if connected as u64 == UNDER_WAY {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{connected} of {UNDER_WAY} requests reached redis in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn softwares(endpoint: &Endpoint) -> Vec<Software> {
    endpoint.servers.iter().map(|server| server.software.clone()).collect()
}
