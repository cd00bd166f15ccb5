//! Flows that rules translate, and whether a NOTRACK rule would catch one of their packets: then they'd never be translated
//! back, though they are other flows than those to be exempted.
//! Three ways lead there: a translation to the exempted port, a client that has this port, a reply to a new source.

use super::ends;
use super::host::Host;
use super::ir::{Family, Hook, Nat, Target};
use super::nat::{every_address, every_port};
use super::path::{At, Packet, Path, Space, Way};
use super::ranges::Ranges;
use super::walk::{Rules, TooMuch, Translations, Walker, World};
use super::{ExemptTarget, Firewall, Scope};

/// So many suspicions are looked into; others count without.
const SUSPECTED: usize = 24;

/// What the NOTRACK rules of this target would catch of a flow that is translated: one witness per rule.
pub struct Caught {
    /// The rule that translates.
    pub at: At,
    /// What it does.
    pub nat: Nat,
    /// The caught packet is the flow's first, not the reply.
    pub first: bool,
}

/// Where a flow begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Here,
    Elsewhere,
}

/// One of the three ways.
struct Probe {
    origin: Origin,
    client_port: Ranges,
    /// Where to, if not anywhere.
    server: Option<Ranges>,
    server_port: Ranges,
    wanted: Box<dyn Fn(&Nat) -> bool>,
}

/// Looks for them.
pub fn caught(
    walker: &mut Walker<'_>,
    firewall: &Firewall,
    asked: &Asked<'_>,
) -> Result<Vec<Caught>, TooMuch> {
    let mut found: Vec<Caught> = Vec::new();
    for probe in probes(asked) {
        let start = asked.start(&probe);
        let some = Translations::new(firewall, probe.wanted);
        if !some.any() {
            continue;
        }
        let mut suspects: Vec<(Path, Caught)> = Vec::new();
        for (path, way) in trace(walker, Rules::Translating(&some), asked, probe.origin, start)? {
            suspects.extend(asked.catches(&path, probe.origin, way).map(|caught| (path, caught)));
        }
        for (looked_into, (path, caught)) in suspects.into_iter().enumerate() {
            if is_known(&found, &caught) {
                continue;
            }
            // By all rules now: whether such a flow passes today, and is translated like that.
            let again = path.again();
            let ends = if looked_into < SUSPECTED {
                walker.in_short(|walker| trace(walker, Rules::All, asked, probe.origin, again))
            } else {
                Err(TooMuch)
            };
            match ends {
                Ok(ends) => {
                    for (path, way) in ends {
                        let caught = asked.catches(&path, probe.origin, way);
                        found.extend(caught.filter(|caught| !is_known(&found, caught)));
                    }
                }
                // It can't be ruled out.
                Err(TooMuch) => found.push(caught),
            }
        }
    }
    Ok(found)
}

fn is_known(found: &[Caught], caught: &Caught) -> bool {
    found.iter().any(|known| known.at.rule() == caught.at.rule())
}

/// Whose flows are to be exempted, in one family.
pub struct Asked<'a> {
    /// The service.
    pub target: &'a ExemptTarget,
    /// What is known of the host.
    pub host: &'a Host,
    /// The ports of this host's clients, if known.
    pub ephemeral: Option<(u16, u16)>,
    /// Which IP.
    pub family: Family,
    /// The first packet of a flow.
    pub packet: Packet,
}

impl Asked<'_> {
    fn port(&self) -> u128 {
        self.target.port.into()
    }

    fn start(&self, probe: &Probe) -> Path {
        let peers = ends::peers(self.family);
        let (client, server) = match (self.host.own(self.family), probe.origin) {
            (Some(own), Origin::Here) => (own.clone(), own.or(&peers)),
            (Some(own), Origin::Elsewhere) => (peers.without(own), peers.clone()),
            (None, Origin::Here) => (every_address(self.family), every_address(self.family)),
            (None, Origin::Elsewhere) => (peers.clone(), peers.clone()),
        };
        Path::start(Space {
            client,
            server: probe.server.clone().unwrap_or(server),
            client_port: probe.client_port.clone(),
            server_port: probe.server_port.clone(),
            router: peers,
        })
    }

    /// Whether NOTRACK for the target would catch a packet of this flow: its first, or the reply.
    fn catches(&self, path: &Path, origin: Origin, way: Way) -> Option<Caught> {
        let by = path.nat.as_ref()?;
        let (at, nat) = by;
        let own = self.host.own(self.family);
        let may_be_own = |set: &Ranges| own.is_none_or(|own| set.meets(own));
        let may_be_other = |set: &Ranges| own.is_none_or(|own| !set.is_in(own));
        let is_port = |set: &Ranges| set.contains(self.port());
        let (asked, asked_port) =
            path.asked.as_ref().map_or((&path.server, &path.server_port), |(a, p)| (a, p));
        let (seen, seen_port) = path.seen.as_ref().map_or((&path.client, &path.client_port), |(a, p)| (a, p));
        // A reply meets conntrack where the service is. TPROXY gives a packet to a socket here whatever its destination.
        let by_proxy = path.nat.as_ref().is_some_and(|(_, nat)| nat.kind == "tproxy");
        let here = by_proxy || matches!(way, Way::Served | Way::Loopback);
        // Where it ends up says where it was sent, unless that was translated.
        let (to_own, to_other) = match path.asked {
            None => (here, !here),
            Some(_) => (may_be_own(asked), may_be_other(asked)),
        };
        let first = match (self.target.scope, origin) {
            (Scope::Served, Origin::Elsewhere) => to_own && is_port(asked_port),
            (Scope::Served, Origin::Here) => to_other && is_port(&path.client_port),
            (Scope::Outgoing, Origin::Elsewhere) => to_own && is_port(&path.client_port),
            (Scope::Outgoing, Origin::Here) => to_other && is_port(asked_port),
            (Scope::Loopback, Origin::Here) => to_own && (is_port(asked_port) || is_port(&path.client_port)),
            (Scope::Loopback, Origin::Elsewhere) => false,
        };
        let reply = match self.target.scope {
            Scope::Served if here => may_be_other(seen) && is_port(&path.server_port),
            Scope::Served => may_be_own(seen) && is_port(seen_port),
            Scope::Outgoing if here => may_be_other(seen) && is_port(seen_port),
            Scope::Outgoing => may_be_own(seen) && is_port(&path.server_port),
            Scope::Loopback => here && may_be_own(seen) && (is_port(&path.server_port) || is_port(seen_port)),
        };
        if first {
            Some(Caught { at: *at, nat: nat.clone(), first })
        } else if reply {
            // A reply comes here because of its new source, if there is one.
            let (at, nat) = path.source_nat.as_ref().filter(|_| !here).unwrap_or(by);
            Some(Caught { at: *at, nat: nat.clone(), first })
        } else {
            None
        }
    }
}

fn probes(asked: &Asked<'_>) -> Vec<Probe> {
    let proto = asked.target.proto;
    let port = Ranges::one(asked.port());
    let (remote, own) = (ends::remote_ports(proto), ends::own_ports(proto, asked.ephemeral));
    let of = |origin: Origin| if origin == Origin::Here { own.clone() } else { remote.clone() };
    let leads_to_port = {
        let port = port.clone();
        move |nat: &Nat| match &nat.ports {
            Target::Within(set) => set.meets(&port),
            Target::Kept | Target::Own | Target::Any => true,
        }
    };
    let mut probes = Vec::new();
    // A destination becomes the exempted port.
    let origins: &[Origin] = match asked.target.scope {
        Scope::Served => &[Origin::Elsewhere],
        Scope::Loopback | Scope::Outgoing => &[Origin::Here],
    };
    for origin in origins {
        let leads = leads_to_port.clone();
        let own_addresses = asked.host.own(asked.family).cloned();
        let here = asked.target.scope != Scope::Outgoing;
        probes.push(Probe {
            origin: *origin,
            client_port: of(*origin),
            server: None,
            server_port: every_port(),
            wanted: Box::new(move |nat| {
                let may_lead_here = match (&nat.addresses, &own_addresses) {
                    (Target::Within(set), Some(own)) => set.meets(own) || !here,
                    _ => true,
                };
                nat.is_destination() && leads(nat) && may_lead_here
            }),
        });
    }
    // A client has that port.
    let origin = if asked.target.scope == Scope::Outgoing { Origin::Elsewhere } else { Origin::Here };
    let clients = of(origin).and(&port);
    if !clients.is_empty() {
        let own_addresses = asked.host.own(asked.family).cloned();
        let probe = |server: Option<Ranges>, wanted| Probe {
            origin,
            client_port: clients.clone(),
            server,
            server_port: every_port(),
            wanted,
        };
        match (asked.target.scope, own_addresses) {
            (Scope::Outgoing | Scope::Loopback, Some(own)) => {
                probes.push(probe(Some(own.clone()), Box::new(|_: &Nat| true)));
                // Or sent elsewhere, and brought here by a translation.
                probes.push(probe(
                    None,
                    Box::new(move |nat: &Nat| {
                        let stays_away = matches!(&nat.addresses, Target::Within(set) if !set.meets(&own));
                        nat.is_destination() && !stays_away
                    }),
                ));
            }
            _ => probes.push(probe(None, Box::new(|_: &Nat| true))),
        }
    }
    // A source becomes one of this host's, and the reply comes back to it.
    for origin in [Origin::Elsewhere, Origin::Here] {
        let own_addresses = asked.host.own(asked.family).cloned();
        let leads = leads_to_port.clone();
        let outgoing = asked.target.scope == Scope::Outgoing;
        if asked.target.scope == Scope::Loopback {
            continue;
        }
        let new_source = move |nat: &Nat| match (&nat.addresses, &own_addresses) {
            (Target::Within(set), Some(own)) => set.meets(own),
            _ => true,
        };
        if outgoing {
            // Sent to the port itself, or translated to it before.
            probes.push(Probe {
                origin,
                client_port: of(origin),
                server: None,
                server_port: port.clone(),
                wanted: Box::new({
                    let new_source = new_source.clone();
                    move |nat| !nat.is_destination() && new_source(nat)
                }),
            });
            probes.push(Probe {
                origin,
                client_port: of(origin),
                server: None,
                server_port: every_port(),
                wanted: Box::new(move |nat| {
                    if nat.is_destination() {
                        !matches!(nat.ports, Target::Kept) && leads(nat)
                    } else {
                        new_source(nat)
                    }
                }),
            });
        } else {
            probes.push(Probe {
                origin,
                client_port: of(origin),
                server: None,
                server_port: every_port(),
                wanted: Box::new(move |nat| !nat.is_destination() && leads(nat) && new_source(nat)),
            });
        }
    }
    probes
}

/// Sends a flow's first packet through the hooks as routing has it; where each path ends up.
fn trace(
    walker: &mut Walker<'_>,
    rules: Rules<'_>,
    asked: &Asked<'_>,
    origin: Origin,
    mut start: Path,
) -> Result<Vec<(Path, Way)>, TooMuch> {
    let packet = [asked.packet];
    if matches!(rules, Rules::Translating(_)) {
        // Where marks are set isn't looked at.
        start.lose_mark();
    }
    let mut run = |way: Way, hooks: &[Hook], paths: Vec<Path>| {
        walker
            .run_by(rules, &World { tracked: true, way, hooks: Some(hooks) }, &packet, paths)
            .map(|run| run.passed)
    };
    let mut ends = Vec::new();
    match origin {
        Origin::Elsewhere => {
            for path in run(Way::Arriving, &[Hook::Prerouting], vec![start])? {
                let (here, elsewhere) = path.routed(asked.host, asked.family);
                if let Some(path) = here {
                    let through = run(Way::Served, &[Hook::Input], vec![path])?;
                    ends.extend(through.into_iter().map(|path| (path, Way::Served)));
                }
                if let Some(path) = elsewhere.filter(|_| asked.host.may_forward(asked.family)) {
                    let through = run(Way::Forwarded, &[Hook::Forward, Hook::Postrouting], vec![path])?;
                    ends.extend(through.into_iter().map(|path| (path, Way::Forwarded)));
                }
            }
        }
        Origin::Here => {
            let (here, elsewhere) = start.routed(asked.host, asked.family);
            let begun = [(here, Way::Loopback), (elsewhere, Way::Outgoing)];
            for (path, way) in begun.into_iter().filter_map(|(path, way)| Some((path?, way))) {
                for path in run(way, &[Hook::Output], vec![path])? {
                    // A translated packet is routed again.
                    let (here, elsewhere) = path.routed(asked.host, asked.family);
                    for (path, way) in [(here, Way::Loopback), (elsewhere, Way::Outgoing)] {
                        let through = run(way, &[Hook::Postrouting], path.into_iter().collect())?;
                        ends.extend(through.into_iter().map(|path| (path, way)));
                    }
                }
            }
        }
    }
    Ok(ends)
}
