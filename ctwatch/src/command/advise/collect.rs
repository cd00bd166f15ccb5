//! What `ctwatch advise` reads beside the window: the table once, the machine, its firewall, who is behind the ports.
//! Reads only; what follows from it is decided in `advise`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::advise::case::{Case, ServiceFacts, WayIn};
use crate::advise::demand::{Demand, Service};
use crate::advise::dependency::{Dependency, propagate_demand};
use crate::advise::facts;
use crate::advise::gc::Gc;
use crate::advise::measure::Measure;
use crate::advise::netns_commands::NetnsCommands;
use crate::advise::target::ServiceTarget;
use crate::conntrack::census;
use crate::error::Failure;
use crate::files::lists::{self, Extent, Limit};
use crate::firewall::{self, Firewall};
use crate::kernel::roots::Roots;
use crate::machine::endpoint::{self, Client, Endpoint, Port};
use crate::machine::management::{self, Login};
use crate::machine::{self, Host, Machine, Writable, software};
use crate::model::{Direction, Flow, HOST_NETNS, Loss, Name, NetnsId, Protocol, Role};
use crate::netns::{self, InitialNetns, Netns};

/// Services of which everything is looked up.
const LOOKED_UP: usize = 12;
/// How long to look for the processes behind ports.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a list of devices may take: whose netns it is has any number of them.
const DEVICES_TIME: Duration = Duration::from_secs(1);
/// Processes remembered for one port.
const SENDERS: usize = 8;

/// Whose packets were refused, by the port they were for: with a full table few connections live long enough to be met.
#[derive(Default)]
pub(super) struct Senders(BTreeMap<Port, BTreeMap<u32, Name>>);

impl Senders {
    pub fn note(&mut self, loss: &Loss) {
        let process = loss.owner.as_ref().and_then(|owner| owner.process.as_ref());
        let Some(process) = process.filter(|process| process.role == Role::Sender) else { return };
        let Some(Flow { proto, tuple }) = loss.packet.flow() else { return };
        let pids = self.0.entry(Port { proto, port: tuple.dport }).or_default();
        if pids.len() < SENDERS {
            pids.insert(process.pid, process.name);
        }
    }

    /// Adds them to the clients of the ports that were looked at, as long as there is time: each may be slow to answer. False
    /// if there wasn't.
    fn join(&self, roots: &Roots, endpoints: &mut BTreeMap<Port, Endpoint>, until: Instant) -> bool {
        for (port, pids) in &self.0 {
            let Some(endpoint) = endpoints.get_mut(port) else { continue };
            for (pid, name) in pids {
                if Instant::now() >= until {
                    return false;
                }
                let Some(program) = software::identify_sender(roots, *pid, &name.padded()) else { continue };
                let is_known = |client: &Client| client.program.software == program.software;
                if !endpoint.clients.iter().any(is_known) {
                    endpoint.clients.push(Client { program, processes: 1, connections: 0 });
                }
            }
        }
        true
    }
}

/// All that is read once the window is over.
pub(super) struct Found {
    machine: Machine,
    firewall: Firewall,
    endpoints: BTreeMap<Port, Endpoint>,
    services: Vec<Service>,
    lookups_per_s: Option<f64>,
    logins: Vec<Login>,
    pub notes: Vec<String>,
}

/// Reads everything there is to read of the netns this thread is in.
pub(super) fn collect_facts(
    host: &Host,
    netns: &Netns,
    measure: &mut Measure,
    senders: &Senders,
) -> Result<Found> {
    let machine = machine::read(host);
    let packets = packets_here();
    let since = Instant::now();
    census::list_with_directions(|entry, direction| measure.entry(entry, direction))
        .map_err(|error| Failure::cannot_watch(format!("{error:#}")))?;
    let services = measure.services();
    let ports: Vec<Port> = services
        .iter()
        .filter(|service| matches!(service.proto, Protocol::TCP | Protocol::UDP))
        .take(LOOKED_UP)
        .map(|service| Port { proto: service.proto, port: service.port })
        .collect();
    let mut notes = machine.notes.clone();
    let (mut endpoints, cut) = endpoint::read(&host.roots, &ports, PATIENCE);
    notes.extend(cut.map(str::to_owned));
    if !senders.join(&host.roots, &mut endpoints, Instant::now() + PATIENCE) {
        notes.push(
            "processes take too long to say what they are: clients of some ports may be missing".to_owned(),
        );
    }
    let lookups_per_s = packets
        .zip(packets_here())
        .map(|(before, now)| (now - before).max(0.0) / since.elapsed().as_secs_f64());
    if lookups_per_s.is_none() {
        notes.push("packets per second are unknown (/proc/net/dev can't be read in time): the estimate assumes that expired entries leave only when the kernel's garbage collection runs".to_owned());
    }
    let (logins, doubts) = management::logins(host);
    notes.extend(doubts);
    // Last, so that nobody's sockets or processes make it old before it is judged by.
    let (firewall, _, firewall_notes) = firewall::read(&host.roots);
    notes.extend(firewall_notes.into_iter().map(|note| format!("{}: {}", note.tool, note.text)));
    if netns.name.as_ref().is_none_or(|name| *name != HOST_NETNS)
        && machine.table.initial_netns == Some(false)
    {
        notes.push(
            "nf_conntrack_max is one number for all netns, and only the host's root can change it".to_owned(),
        );
    }
    Ok(Found { machine, firewall, endpoints, services, lookups_per_s, logins, notes })
}

/// Packets that all devices of this netns have seen; those of lo count once. `None` if they are too many devices, or can't be read.
fn packets_here() -> Option<f64> {
    packets_in(Path::new("/proc/thread-self/net/dev"), Limit::new(DEVICES_TIME, u64::MAX))
}

fn packets_in(file: &Path, mut limit: Limit) -> Option<f64> {
    let of = |line: &str| {
        let (device, numbers) = line.rsplit_once(':')?;
        let numbers: Vec<f64> =
            numbers.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (received, sent) = (numbers.get(1)?, numbers.get(9)?);
        Some(if device.trim() == "lo" { *sent } else { received + sent })
    };
    let mut sum = 0.0;
    let extent = lists::each_line(file, &mut limit, |line| {
        sum += of(line).unwrap_or(0.0);
        ControlFlow::Continue(())
    });
    (extent.ok()? == Extent::Whole).then_some(sum)
}

/// Puts everything together.
pub(super) fn case(
    found: Found,
    measure: &Measure,
    netns: &Netns,
    own: NetnsId,
    times: f64,
    keep: &[ServiceTarget],
    asked: &[ServiceTarget],
) -> Case {
    let roots = Roots::default();
    let first = netns::id_of(&roots.proc("1/ns/net")).ok();
    let is_away_from_host = match InitialNetns::look(&roots, own).known() {
        Some(host) => host != own,
        // Its own sysctls tell.
        None => netns.id == own && found.machine.table.max_writable != Writable::Yes,
    };
    let Found { machine, firewall, endpoints, mut services, lookups_per_s, logins, .. } = found;
    let inside = match netns.id == own {
        true => NetnsCommands::here(first.is_none_or(|first| first == own)),
        false => NetnsCommands::inside(&netns.path, netns.id),
    };
    let uses = uses(&services, &endpoints);
    propagate_demand(&mut services, &uses);
    let ways_in = ways_in(&logins, keep);
    let known: BTreeMap<ServiceTarget, ServiceFacts> = services
        .iter()
        .take(LOOKED_UP)
        .map(Service::target)
        .chain(ways_in.iter().map(|way| way.target))
        .chain(asked.iter().copied())
        .map(|target| (target, known(&target, &machine, &firewall, &endpoints, &inside)))
        .collect();
    let buckets = machine.table.buckets.unwrap_or(0);
    let demand = Demand {
        services,
        max: machine.table.max.unwrap_or(0) as u32,
        ephemeral: machine.ephemeral_ports.as_ref().map(machine::EphemeralPorts::ceiling),
        gc: Gc {
            // Up to 5.14 one scan every two minutes.
            every_s: machine.kernel_version.filter(|version| *version < (5, 15)).map(|_| 120.0),
            reaped_per_s: match lookups_per_s {
                Some(lookups) if buckets > 0 => lookups / buckets as f64,
                _ => 0.0,
            },
        },
        unevictable: measure.unevictable(),
    };
    Case {
        demand,
        timeouts: *measure.timeouts(),
        firewall: facts::rules(&firewall, &machine, &known, &inside),
        machine,
        times,
        netns_prefix: inside.enter,
        ways_in,
        is_away_from_host,
        is_kept_at_boot: inside.is_kept_at_boot,
        asked: asked.to_vec(),
        facts: known,
    }
}

/// The ports asked for, else those of logins.
fn ways_in(logins: &[Login], keep: &[ServiceTarget]) -> Vec<WayIn> {
    let who = |target: &ServiceTarget| {
        let login = logins.iter().find(|login| login.port == target.port && target.proto == Protocol::TCP);
        login.map(|login| login.who.clone())
    };
    if keep.is_empty() {
        let target = |login: &Login| ServiceTarget {
            port: login.port,
            proto: Protocol::TCP,
            direction: Some(Direction::In),
        };
        let way = |login: &Login| WayIn {
            target: target(login),
            who: Some(login.who.clone()),
            is_asked_for: false,
        };
        return logins.iter().map(way).collect();
    }
    keep.iter().map(|target| WayIn { target: *target, who: who(target), is_asked_for: true }).collect()
}

/// Which services are used by the server of which other one.
fn uses(services: &[Service], endpoints: &BTreeMap<Port, Endpoint>) -> Vec<Dependency> {
    let endpoint = |target: &ServiceTarget| endpoints.get(&Port { proto: target.proto, port: target.port });
    let mut found = Vec::new();
    for front in services {
        for back in services {
            let (front_target, backend) = (front.target(), back.target());
            let (Some(server), Some(clients)) = (endpoint(&front_target), endpoint(&backend)) else {
                continue;
            };
            let is_client = server.servers.iter().any(|server| {
                clients.clients.iter().any(|client| client.program.software == server.software)
            });
            if front_target != backend && back.direction != Direction::In && is_client {
                found.push(Dependency { front: front_target, backend });
            }
        }
    }
    found
}

fn known(
    target: &ServiceTarget,
    machine: &Machine,
    firewall: &Firewall,
    endpoints: &BTreeMap<Port, Endpoint>,
    inside: &NetnsCommands,
) -> ServiceFacts {
    let mut known = ServiceFacts::default();
    if let Some(endpoint) = endpoints.get(&Port { proto: target.proto, port: target.port }) {
        let server = endpoint.servers.first().map(|program| program.software.clone());
        let clients: Vec<machine::Software> =
            endpoint.clients.iter().map(|client| client.program.software.clone()).collect();
        known.server = server.as_ref().map(|software| software.name().into());
        known.clients = clients.iter().map(|software| software.name().into()).collect();
        known.reuse = server.map(|server| {
            let hint = machine::reuse::reuse_hint(&server, &clients);
            (hint.what, hint.settings)
        });
    }
    facts::judge(&mut known, target, machine, firewall, inside);
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_those_of_all_devices_whatever_they_are_called_or_unknown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let row = |name: &[u8], received: u32, sent: u32| {
            [name, format!(": 9 {received} 0 0 0 0 0 0 9 {sent} 0 0 0 0 0 0\n").as_bytes()].concat()
        };
        let text = [&b"Inter-|   Receive\n face |bytes\n"[..], &row(b"    lo", 5, 5), &row(b"\xff:x", 20, 3)]
            .concat();
        std::fs::write(file.path(), text).unwrap();
        let minute = Duration::from_secs(60);
        assert_eq!(packets_in(file.path(), Limit::new(minute, u64::MAX)), Some(28.0));
        assert_eq!(packets_in(file.path(), Limit::new(minute, 90)), None);
        assert_eq!(packets_in(file.path(), Limit::new(Duration::ZERO, u64::MAX)), None);
        assert_eq!(packets_in(Path::new("/nowhere"), Limit::new(minute, u64::MAX)), None);
    }
}
