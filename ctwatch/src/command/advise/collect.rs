//! What `ctwatch advise` reads beside the window: the table once, the machine, its firewall, who is behind the ports.
//! Reads only; what follows from it is decided in `advise`.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::firewall::{self, Firewall};
use crate::kernel::roots::Roots;
use crate::machine::endpoint::{self, Client, Endpoint, Port};
use crate::machine::management::{self, Login};
use crate::machine::{self, Host, Machine, Writable, software};
use crate::model::{Direction, Flow, HOST_NETNS, Loss, NetnsId, Protocol, Role};
use crate::netns::{self, InitialNetns, Netns};

/// Services of which everything is looked up.
const LOOKED_UP: usize = 12;
/// How long to look for the processes behind ports.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Processes remembered for one port.
const SENDERS: usize = 8;

/// Whose packets were refused, by the port they were for: with a full table few connections live long enough to be met.
#[derive(Default)]
pub(super) struct Senders(BTreeMap<Port, BTreeSet<u32>>);

impl Senders {
    pub fn note(&mut self, loss: &Loss) {
        let process = loss.owner.as_ref().and_then(|owner| owner.process.as_ref());
        let Some(process) = process.filter(|process| process.role == Role::Sender) else { return };
        let Some(Flow { proto, tuple }) = loss.packet.flow() else { return };
        let pids = self.0.entry(Port { proto: proto.0, port: tuple.dport }).or_default();
        if pids.len() < SENDERS {
            pids.insert(process.pid);
        }
    }

    /// Adds them to the clients of the ports that were looked at.
    fn join(&self, roots: &Roots, endpoints: &mut BTreeMap<Port, Endpoint>) {
        for (port, pids) in &self.0 {
            let Some(endpoint) = endpoints.get_mut(port) else { continue };
            for program in pids.iter().filter_map(|pid| software::identify(roots, *pid)) {
                let is_known = |client: &Client| client.program.software == program.software;
                if !endpoint.clients.iter().any(is_known) {
                    endpoint.clients.push(Client { program, processes: 1, connections: 0 });
                }
            }
        }
    }
}

/// All that is read once the window is over.
pub(super) struct Found {
    machine: Machine,
    firewall: Firewall,
    endpoints: BTreeMap<Port, Endpoint>,
    services: Vec<Service>,
    lookups_per_s: f64,
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
        .map(|service| Port { proto: service.proto.0, port: service.port })
        .collect();
    let mut endpoints = endpoint::read(&host.roots, &ports, PATIENCE);
    senders.join(&host.roots, &mut endpoints);
    let lookups_per_s = (packets_here() - packets) / since.elapsed().as_secs_f64();
    let (firewall, _, firewall_notes) = firewall::read(&host.roots);
    let mut notes = machine.notes.clone();
    notes.extend(firewall_notes.into_iter().map(|note| format!("{}: {}", note.tool, note.text)));
    if netns.name.as_ref().is_none_or(|name| *name != HOST_NETNS)
        && machine.table.initial_netns == Some(false)
    {
        notes.push(
            "nf_conntrack_max is one number for all netns, and only the host's root can change it".to_owned(),
        );
    }
    let (logins, doubts) = management::logins(host);
    notes.extend(doubts);
    Ok(Found { machine, firewall, endpoints, services, lookups_per_s, logins, notes })
}

/// Packets that all devices of this netns have seen; those of lo count once.
fn packets_here() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let of = |line: &str| {
        let (device, numbers) = line.split_once(':')?;
        let numbers: Vec<f64> =
            numbers.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let (received, sent) = (numbers.get(1)?, numbers.get(9)?);
        Some(if device.trim() == "lo" { *sent } else { received + sent })
    };
    text.lines().filter_map(of).sum()
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
            reaped_per_s: if buckets > 0 { lookups_per_s / buckets as f64 } else { 0.0 },
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
    let endpoint = |target: &ServiceTarget| endpoints.get(&Port { proto: target.proto.0, port: target.port });
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
    if let Some(endpoint) = endpoints.get(&Port { proto: target.proto.0, port: target.port }) {
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
