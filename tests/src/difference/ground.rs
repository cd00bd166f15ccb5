//! The host of the random rule sets, its neighbours, and the flows that are tried: whatever a rule that exempts a port
//! might catch, asked for or not.

use std::net::IpAddr;

use anyhow::Result;

use super::random::Random;
use crate::lab::{Flow, HOST, Place, Plan, Proto, Wire};

/// Where something listens, on every host.
pub const PORTS: [u16; 4] = [53, 80, 443, 8080];
/// Another port that rules know, whatever is asked.
const OTHERWISE: u16 = 22;
/// No TCP client has a port below this one, unless it means harm.
const FIRST_OF_CLIENTS: u16 = 512;

/// A family's addresses.
pub struct Addresses {
    pub lan: &'static str,
    pub lan_net: &'static str,
    pub client: &'static str,
    pub wan: &'static str,
    pub wan_net: &'static str,
    /// Outside, without a route to the LAN.
    pub outside: &'static str,
    pub dmz: &'static str,
    /// In a net that sends everything through the host.
    pub neighbour: &'static str,
    /// Nobody's, unless a rule makes it somebody's.
    pub virtual_one: &'static str,
}

pub const V4: Addresses = Addresses {
    lan: "10.1.0.1",
    lan_net: "10.1.0.0/24",
    client: "10.1.0.2",
    wan: "198.51.100.1",
    wan_net: "198.51.100.0/24",
    outside: "198.51.100.2",
    dmz: "203.0.113.1",
    neighbour: "203.0.113.2",
    virtual_one: "10.96.0.1",
};

pub const V6: Addresses = Addresses {
    lan: "fd01::1",
    lan_net: "fd01::/64",
    client: "fd01::2",
    wan: "2001:db8:1::1",
    wan_net: "2001:db8:1::/64",
    outside: "2001:db8:1::2",
    dmz: "2001:db8:2::1",
    neighbour: "2001:db8:2::2",
    virtual_one: "fd96::1",
};

/// What is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub proto: Proto,
    /// The port of the pieces.
    pub port: u16,
    /// Another one that rules know.
    pub other: u16,
}

impl Asked {
    pub fn random(random: &mut Random) -> Self {
        let port = random.pick(&PORTS);
        let others: Vec<u16> = PORTS.into_iter().filter(|other| *other != port).collect();
        Self { proto: random.pick(&[Proto::Tcp, Proto::Udp]), port, other: random.pick(&others) }
    }
}

/// Builds the host with its LAN, its outside and its other net, and a server everywhere.
pub fn build() -> Result<Place> {
    let wire = |dev: &str, peer: &str, gateway, ends: [(&str, &str); 2]| Wire {
        dev: dev.to_owned(),
        peer: peer.to_owned(),
        here: vec![format!("{}/24", ends[0].0), format!("{}/64", ends[1].0)],
        there: vec![format!("{}/24", ends[0].1), format!("{}/64", ends[1].1)],
        gateway,
    };
    let wires = vec![
        wire("wan0", "W", false, [(V4.wan, V4.outside), (V6.wan, V6.outside)]),
        wire("lan0", "L", true, [(V4.lan, V4.client), (V6.lan, V6.client)]),
        wire("dmz0", "V", true, [(V4.dmz, V4.neighbour), (V6.dmz, V6.neighbour)]),
    ];
    let plan = Plan { wires, forwards: vec!["ipv4".to_owned(), "ipv6".to_owned()] };
    let mut place = Place::build(&plan, &[])?;
    // Its own packets to nobody's address leave, too, if no rule sends them elsewhere.
    place.host().batch(&format!(
        "route add {} via {}\nroute add {} via {}\n",
        V4.virtual_one, V4.outside, V6.virtual_one, V6.outside
    ))?;
    let ports = PORTS.into_iter().chain([OTHERWISE]);
    let ports: Vec<_> = ports.flat_map(|port| [(Proto::Tcp, port), (Proto::Udp, port)]).collect();
    place.serve(&ports, &[])?;
    Ok(place)
}

/// Whether its client has a port that tells of a bad intention.
pub fn is_hostile(flow: &Flow) -> bool {
    flow.proto == Proto::Tcp && flow.from_port.is_some_and(|port| port < FIRST_OF_CLIENTS)
}

/// The flows for what is asked.
pub fn flows(asked: &Asked) -> Vec<Flow> {
    let Asked { proto, port, other } = *asked;
    let mut flows = Vec::new();
    for (family, lo) in [(&V4, "127.0.0.1"), (&V6, "::1")] {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address of this file") };
        let mut bound = Vec::new();
        // Half of the questions are the only packet of their flow.
        let questions = |place: usize| if proto == Proto::Udp && place.is_multiple_of(2) { 1 } else { 2 };
        let mut add = |who: &str, to: &str, at: u16, from_port: Option<u16>| {
            flows.push(Flow {
                who: who.to_owned(),
                proto,
                to: (address(to), at).into(),
                from: None,
                from_port,
                held: 0,
                questions: questions(flows.len()),
                seen_as: None,
            });
        };
        for at in [port, other, OTHERWISE] {
            // To itself, in from everywhere, out to everywhere.
            add("host", lo, at, None);
            add("host", family.lan, at, None);
            add("host", family.wan, at, None);
            add("host", family.dmz, at, None);
            add("L", family.lan, at, None);
            add("L", family.wan, at, None);
            add("W", family.wan, at, None);
            add("V", family.dmz, at, None);
            add("host", family.outside, at, None);
            add("host", family.client, at, None);
            add("host", family.neighbour, at, None);
            // Forwarded, plain and (if a rule says so) translated.
            add("L", family.outside, at, None);
            add("L", family.neighbour, at, None);
            add("V", family.client, at, None);
            add("V", family.outside, at, None);
            add("host", family.virtual_one, at, None);
            add("L", family.virtual_one, at, None);
            // Bound to another address than the route's: only a rule that translates it brings the answers back from outside.
            bound.extend([
                (family.lan, family.outside, at, None),
                (family.lan, family.neighbour, at, None),
                (family.wan, family.client, at, None),
                (family.lan, family.wan, at, None),
                (family.dmz, family.lan, at, None),
                (family.wan, lo, at, None),
            ]);
            // From the asked port. Not both ways between the same ends: one's question would be the other's answer.
            let udp = proto == Proto::Udp;
            if !udp && port < FIRST_OF_CLIENTS {
                add("W", family.wan, at, Some(port));
                add("L", family.lan, at, Some(port));
                continue;
            }
            add("L", family.lan, at, Some(port));
            if !(udp && at == port) {
                add("W", family.wan, at, Some(port));
                add("V", family.client, at, Some(port));
            }
            add("L", family.outside, at, Some(port));
            if !(udp && at == port) {
                add("L", family.neighbour, at, Some(port));
                add("V", family.outside, at, Some(port));
            }
            if udp {
                // A server asks others from the port where it is asked.
                add("host", family.outside, at, Some(port));
                bound.push((family.lan, family.outside, at, Some(port)));
                if at != port {
                    add("host", family.lan, at, Some(port));
                    add("host", family.client, at, Some(port));
                    add("host", family.neighbour, at, Some(port));
                }
            }
        }
        if proto == Proto::Udp {
            for from in [other, OTHERWISE] {
                add("host", lo, port, Some(from));
            }
        }
        flows.extend(bound.into_iter().enumerate().map(|(place, (from, to, at, from_port))| Flow {
            who: HOST.to_owned(),
            proto,
            to: (address(to), at).into(),
            from: Some(address(from)),
            from_port,
            held: 0,
            questions: questions(place),
            seen_as: None,
        }));
    }
    flows
}
