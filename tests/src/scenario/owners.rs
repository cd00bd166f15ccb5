//! Whose packets were lost: the process that sent them, also when the kernel sends them again by itself, and its container.
//! On every CPU another process burns time meanwhile: it is what `current` shows in a timer's softirq.

use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tempfile::TempDir;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::{Netns, Veth};
use crate::shell::run;
use crate::table::{self, Mix};
use crate::{nftables, sys};

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

/// An id as docker gives it; its cgroup is laid out as docker's cgroupfs driver does.
const CONTAINER: &str = "3f2a9c7e51d04b8896aa0c1be4f7d2a35e6b7c8d9e0f1a2b3c4d5e6f70819203";

/// A container made by runc, deleted when dropped. Nothing but busybox is in it.
struct Container {
    bundle: TempDir,
    pid: u32,
}

impl Container {
    fn start() -> Result<Self> {
        let bundle = tempfile::tempdir().context("a folder for the container's bundle")?;
        let root = bundle.path().join("rootfs");
        for folder in ["bin", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox for the container")?;
        let folder = bundle.path().to_str().context("the bundle's path")?;
        run(&["runc", "spec", "--bundle", folder])?;
        let file = bundle.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file)?).context("runc's config.json")?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = vec!["/bin/busybox", "sleep", "300"].into();
        config["linux"]["cgroupsPath"] = format!("/docker/{CONTAINER}").into();
        fs::write(&file, config.to_string())?;
        let pid_file = bundle.path().join("pid");
        // A detached container inherits the streams, so they must not be pipes that somebody reads to their end.
        let status = Command::new("runc")
            .args(["run", "--detach", "--bundle", folder, "--pid-file"])
            .arg(&pid_file)
            .arg(CONTAINER)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(bundle.path().join("stderr"))?)
            .status()
            .context("starting runc")?;
        let said = || fs::read_to_string(bundle.path().join("stderr")).unwrap_or_default();
        ensure!(status.success(), "runc run: {status}: {}", said());
        let pid = fs::read_to_string(&pid_file)?.trim().parse().context("runc's pid file")?;
        Ok(Self { bundle, pid })
    }

    /// Runs `work` on a thread in the container's netns.
    fn inside(&self, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
        let file = fs::File::open(format!("/proc/{}/ns/net", self.pid))?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            inside.join().expect("the thread in the container's netns panicked")
        })
    }

    /// Runs a program in the container, whatever becomes of it.
    fn exec(&self, line: &[&str]) {
        let _ = Command::new("runc")
            .args(["exec", CONTAINER])
            .args(line)
            .current_dir(self.bundle.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run(&["runc", "delete", "--force", CONTAINER]);
    }
}

pub(super) fn containers_are_named(_: &Guest) -> Result<Outcome> {
    let _limit = table::lower_limit()?;
    let container = Container::start()?;
    container.inside(|| {
        nftables::track()?;
        table::fill(Mix::Assured).map(drop)
    })?;
    let drops = Drops::start(&["--events"])?;
    let by_container = Drops::start(&["--by", "container"])?;
    // A request that is refused at once: one packet each.
    for _ in 0..5 {
        container.exec(&["/bin/busybox", "tftp", "-g", "-r", "nothing", "127.0.0.1", "5140"]);
    }
    drops.wait_for_ticks(2)?;
    by_container.wait_for_ticks(1)?;
    let (run, by_container) = (drops.stop()?, by_container.stop()?);
    drop(container);

    let mut checks = Checks::new();
    let name = format!("docker:{}", &CONTAINER[..12]);
    checks.figure("losses", run.drops.len());
    checks.that(run.drops.len() >= 5, "not every request lost a packet");
    for drop in &run.drops {
        checks.equal("port of a loss", drop.dport, Some(5140));
        checks.equal("container of a loss", drop.container.as_deref(), Some(name.as_str()));
        let process = drop.process.as_ref().map(|process| process.name.as_str());
        checks.equal("process of a loss", process, Some("busybox"));
    }
    let rows: Vec<_> = by_container.end.rows.iter().map(|row| (row.container.clone(), row.losses)).collect();
    checks.equal("rows by container", rows, vec![(Some(name.clone()), run.drops.len() as u64)]);
    let named =
        run.ticks.iter().flat_map(|tick| &tick.tables).any(|table| table.container.as_ref() == Some(&name));
    checks.that(named, "no tick shows the container's table under its name");
    Ok(Outcome::Passed(checks.finish()?))
}
