//! Ports that a container engine publishes, with rules and a proxy as docker and podman lay them, under real traffic:
//! NOTRACK and a firewall without state are refused, with the engine's name.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::notrack::{answer, container, serve};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::netns::{Netns, Veth};
use crate::nftables;
use crate::shell::{run, run_with_input, sh};

const DOCKER: &str = include_str!("../../../ctwatch/tests/firewall/rules/docker.v4");

/// As netavark lays them with its nftables driver, for a container whose port 80 is the host's 8081.
const NETAVARK: &str = "table inet netavark {
 chain INPUT {\n  type filter hook input priority 0; policy accept;
  ip saddr 172.17.0.0/16 meta l4proto { tcp, udp } th dport 53 accept\n }
 chain FORWARD {\n  type filter hook forward priority 0; policy accept;
  ct state invalid drop
  ip daddr 172.17.0.0/16 ct state established,related accept
  ip saddr 172.17.0.0/16 accept\n }
 chain POSTROUTING {\n  type nat hook postrouting priority 100; policy accept;
  meta mark & 0x00002000 == 0x00002000 masquerade
  ip saddr 172.17.0.0/16 jump nv_2f259bab_172_17_0_0_nm16\n }
 chain PREROUTING {\n  type nat hook prerouting priority -100; policy accept;
  fib daddr type local jump NETAVARK-HOSTPORT-DNAT\n }
 chain OUTPUT {\n  type nat hook output priority -100; policy accept;
  fib daddr type local jump NETAVARK-HOSTPORT-DNAT\n }
 chain NETAVARK-HOSTPORT-DNAT {\n  tcp dport 8081 jump nv_2f259bab_172_17_0_0_nm16_dnat\n }
 chain NETAVARK-HOSTPORT-SETMARK {\n  meta mark set meta mark | 0x00002000\n }
 chain nv_2f259bab_172_17_0_0_nm16 {\n  ip daddr 172.17.0.0/16 accept\n  ip daddr != 224.0.0.0/4 masquerade\n }
 chain nv_2f259bab_172_17_0_0_nm16_dnat {
  ip saddr 172.17.0.0/16 tcp dport 8081 jump NETAVARK-HOSTPORT-SETMARK
  ip saddr 127.0.0.1 tcp dport 8081 jump NETAVARK-HOSTPORT-SETMARK
  tcp dport 8081 dnat ip to 172.17.0.2:80\n }
}
";

pub(super) fn refused(_: &Guest) -> Result<Outcome> {
    let client = Netns::create("client")?;
    let veth = Veth::join(&client, 7)?;
    let container = container()?;
    container.run(|| serve(*b"cont"))?;
    sh("sysctl -q -w net.ipv4.conf.all.route_localnet=1")?;
    let mut checks = Checks::new();

    run_with_input(&["iptables-restore"], DOCKER)?;
    let proxy = Proxy::start()?;
    let outside = SocketAddr::new(veth.v4.0, 6379);
    let advice = advise(&client, &[outside], &[([127, 0, 0, 1], 6379).into()])?;
    judge(&mut checks, &advice, "notrack-6379-tcp-fwd", "docker publishes 6379/tcp to 172.17.0.2:6379");
    judge(&mut checks, &advice, "notrack-6379-tcp-lo", "docker-proxy publishes 6379/tcp");
    judge(&mut checks, &advice, "firewall", "without conntrack");
    judge(&mut checks, &advice, "firewall", "docker-proxy publishes 6379/tcp");
    drop(proxy);
    nftables::flush()?;

    nftables::load(NETAVARK)?;
    let outside = SocketAddr::new(veth.v4.0, 8081);
    let advice = advise(&client, &[outside], &[outside])?;
    judge(&mut checks, &advice, "notrack-8081-tcp-fwd", "podman publishes 8081/tcp to 172.17.0.2:80");
    judge(&mut checks, &advice, "notrack-8081-tcp-out", "untracked packets aren't translated");
    judge(&mut checks, &advice, "firewall", "without conntrack");
    Ok(Outcome::Passed(checks.finish()?))
}

/// The advice while the container is talked to by others and from the host itself.
fn advise(client: &Netns, outside: &[SocketAddr], inside: &[SocketAddr]) -> Result<Value> {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let talk = move |to: SocketAddr| -> Result<()> {
        while !over.load(Relaxed) {
            let name = answer(to);
            ensure!(name.as_deref() == Some("cont"), "{to} is answered by {name:?}, not by the container");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    let mut talks = Vec::new();
    for to in outside.iter().copied() {
        // A thread's children are in its netns.
        let talk = talk.clone();
        talks.push(client.run(|| Ok(thread::spawn(move || talk(to))))?);
    }
    for to in inside.iter().copied() {
        let talk = talk.clone();
        talks.push(thread::spawn(move || talk(to)));
    }
    thread::sleep(Duration::from_secs(1));
    let text = run(&["ctwatch", "advise", "--window", "4s", "--format", "json"])?;
    is_over.store(true, Relaxed);
    for talk in talks {
        talk.join().expect("talking doesn't panic")?;
    }
    serde_json::from_str(&text).context("reading the advice")
}

fn judge(checks: &mut Checks, advice: &Value, id: &str, why: &str) {
    let items = advice["items"].as_array().cloned().unwrap_or_default();
    let Some(item) = items.iter().find(|item| item["id"] == id) else {
        let ids: Vec<_> = items.iter().map(|item| item["id"].to_string()).collect();
        return checks.that(false, format!("no advice is called {id}; there is {ids:?}"));
    };
    checks.that(
        item["refused"].to_string().contains(why),
        format!("{id}: refused because of {}", item["refused"]),
    );
    checks.equal(&format!("{id}: commands"), item["commands"]["now"].as_array().map(Vec::len), Some(0));
}

/// docker's proxy: its name and arguments are docker's, its program is a shell of root's by that name, its work is socat's.
struct Proxy(Child);

impl Proxy {
    fn start() -> Result<Self> {
        let folder = format!("/run/ctwatch-published-{}", process::id());
        fs::create_dir_all(&folder)?;
        let file = format!("{folder}/docker-proxy");
        fs::copy("/bin/bash", &file).context("copying a shell")?;
        // The shell stays, since there is something to do after it.
        let work = "socat TCP-LISTEN:6379,fork,reuseaddr TCP:172.17.0.2:6379; :";
        let arguments =
            "-proto tcp -host-ip 0.0.0.0 -host-port 6379 -container-ip 172.17.0.2 -container-port 6379";
        let child = Command::new(&file)
            .args(["-c", work])
            .args(arguments.split(' '))
            .process_group(0)
            .spawn()
            .context("starting docker-proxy")?;
        let proxy = Self(child);
        let until = Instant::now() + Duration::from_secs(5);
        while answer(([127, 0, 0, 1], 6379).into()).is_none() {
            ensure!(Instant::now() < until, "the proxy doesn't answer");
        }
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.wait();
    }
}
