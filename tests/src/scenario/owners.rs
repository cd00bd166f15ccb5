//! Whose packets were lost: the process that sent them, also when the kernel sends them again by itself, and its container.
//! On every CPU another process burns time meanwhile: it is what `current` shows in a timer's softirq.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::{Netns, Veth};
use crate::nftables;
use crate::sys;
use crate::table::{self, Mix};

/// Ends with its scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn burners() -> Result<Vec<Running>> {
    (0..sys::cpus())
        .map(|cpu| {
            let burner = Command::new("taskset")
                .args(["-c", &cpu.to_string(), "bash", "-c", "while :; do :; done"])
                .stdin(Stdio::null())
                .spawn();
            burner.map(Running).context("starting a burner")
        })
        .collect()
}

pub(super) fn retransmits_bear_the_clients_name(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let drops = Drops::start(&["--events", "--port", "6379"])?;
    let by_process = Drops::start(&["--by", "process", "--port", "6379"])?;
    let burners = burners()?;
    let before = Counters::read()?;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let client = Command::new("redis-cli")
                .args(["-h", "127.0.0.1", "-p", "6379", "ping"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            client.map(Running).context("starting redis-cli")
        })
        .collect::<Result<_>>()?;
    let pids: Vec<u32> = clients.iter().map(|client| client.0.id()).collect();
    // Past the second retransmit.
    thread::sleep(Duration::from_millis(4500));
    drop(burners);
    drop(clients);
    drops.wait_for_ticks(2)?;
    by_process.wait_for_ticks(1)?;
    let (run, by_process) = (drops.stop()?, by_process.stop()?);
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("clients", pids.len());
    checks.figure("losses", run.drops.len());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.that(run.drops.len() >= pids.len() * 2, "hardly any SYN was sent again");
    checks.equal("losses against Δdrop", run.drops.len() as u64, kernel.get("drop"));
    for drop in &run.drops {
        match &drop.process {
            Some(process) => {
                checks.equal("name of a loss's process", process.name.as_str(), "redis-cli");
                checks.equal("its role", process.role.as_str(), "sender");
                checks.that(pids.contains(&process.pid), format!("pid {} is no client of ours", process.pid));
            }
            None => checks.that(false, format!("a loss without its process: {drop:?}")),
        }
    }
    let mut of_clients = 0;
    for row in by_process.end.rows.iter().filter(|row| row.cause() == "table_full") {
        let name = row.process.as_ref().map(|process| process.name.as_str());
        checks.equal("process of a row", name, Some("redis-cli"));
        of_clients += row.losses;
    }
    checks.equal("losses of rows by process", of_clients, kernel.get("drop"));
    Ok(Outcome::Passed(checks.finish()?))
}

pub(super) fn inbound_losses_name_the_listener(_: &Guest) -> Result<Outcome> {
    let port = 6390;
    let other = Netns::create("peer")?;
    let veth = Veth::join(&other, 5)?;
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let _listener = TcpListener::bind((veth.v4.0, port)).context("the listener")?;
    let drops = Drops::start(&["--events", "--port", "6390,6391"])?;
    let (to, from) = (veth.v4.0, veth.v4.1);
    other.run(|| {
        let _syns: Vec<_> =
            (0..5).map(|_| crate::traffic::tcp::start((to, port).into())).collect::<Result<_>>()?;
        let socket = UdpSocket::bind((from, 0))?;
        for _ in 0..5 {
            let _ = socket.send_to(b"nobody listens", (to, port + 1));
        }
        thread::sleep(Duration::from_millis(500));
        Ok(())
    })?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    checks.figure("losses", run.drops.len());
    let (listened, unheard): (Vec<_>, Vec<_>) = run.drops.iter().partition(|drop| drop.dport == Some(port));
    checks.that(listened.len() >= 5 && unheard.len() == 5, "not all losses were seen");
    for drop in listened {
        let process = drop.process.as_ref();
        checks.equal("hook", drop.hook.as_deref(), Some("prerouting"));
        checks.equal("pid of the listener", process.map(|process| process.pid), Some(std::process::id()));
        checks.equal("role", process.map(|process| process.role.as_str()), Some("listener"));
    }
    for drop in unheard {
        checks.equal("process where nobody listens", drop.process.as_ref(), None);
    }
    Ok(Outcome::Passed(checks.finish()?))
}

/// As docker makes it with the systemd driver.
const CONTAINER: &str = "3f2a9c7e51d04b8896aa0c1be4f7d2a35e6b7c8d9e0f1a2b3c4d5e6f70819203";

pub(super) fn containers_are_named(_: &Guest) -> Result<Outcome> {
    let folder = format!("/sys/fs/cgroup/system.slice/docker-{CONTAINER}.scope");
    if !Path::new("/sys/fs/cgroup/cgroup.procs").exists() {
        return Ok(Outcome::Skipped("no cgroup2 in this guest".into()));
    }
    std::fs::create_dir_all(&folder).context("making a container's cgroup")?;
    let _limit = table::lower_limit()?;
    // Its own netns without a name, as a container runtime makes it, and a process that stays in it.
    let script = format!(
        "echo $$ > {folder}/cgroup.procs && exec unshare -n bash -c 'ip link set lo up && echo ready && exec sleep 120'"
    );
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a container")?;
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.take().context("its stdout")?),
        &mut line,
    )?;
    let container = Running(child);
    let pid = container.0.id();
    let inside = |work: fn() -> Result<()>| -> Result<()> {
        let file = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
                    work()
                })
                .join()
                .expect("the thread in the container panicked")
        })
    };
    inside(|| {
        nftables::track()?;
        table::fill(Mix::Assured).map(drop)
    })?;
    let drops = Drops::start(&["--events"])?;
    let by_container = Drops::start(&["--by", "container"])?;
    // One sender in the container's cgroup and netns; ours in the netns only.
    let send = "for i in 1 2 3 4 5; do echo hello > /dev/udp/127.0.0.1/5140; done";
    let script = format!("echo $$ > {folder}/cgroup.procs && exec nsenter -t {pid} -n bash -c '{send}'");
    let _ = Command::new("bash").args(["-c", &script]).stderr(Stdio::null()).status();
    drops.wait_for_ticks(2)?;
    by_container.wait_for_ticks(1)?;
    let (run, by_container) = (drops.stop()?, by_container.stop()?);
    drop(container);
    let _ = std::fs::remove_dir(&folder);

    let mut checks = Checks::new();
    let name = format!("docker:{}", &CONTAINER[..12]);
    checks.figure("losses", run.drops.len());
    checks.equal("losses", run.drops.len(), 5);
    for drop in &run.drops {
        checks.equal("container of a loss", drop.container.as_deref(), Some(name.as_str()));
        checks.equal("process of a loss", drop.process.as_ref().map(|one| one.name.as_str()), Some("bash"));
    }
    let rows: Vec<_> = by_container.end.rows.iter().map(|row| (row.container.clone(), row.losses)).collect();
    checks.equal("rows by container", rows, vec![(Some(name), 5)]);
    Ok(Outcome::Passed(checks.finish()?))
}
