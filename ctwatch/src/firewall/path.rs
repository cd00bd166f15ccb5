//! A packet on its way, and what has been assumed of its flow so far: a path through the rules.
//! An assumption is made only by splitting a path in two, so that both together stand for every flow.

use std::collections::BTreeMap;

use super::Scope;
use super::ir::{Base, Condition, End, Family, Field, Hook, Nat, Stays, state};
use super::ranges::Ranges;

/// Where conntrack sits: NF_IP_PRI_CONNTRACK, include/uapi/linux/netfilter_ipv4.h, 6.12.
const CONNTRACK: i32 = -200;
/// Where NOTRACK has to sit.
pub const RAW: i32 = -300;

/// A rule, or a chain's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Index of the table.
    pub table: usize,
    /// Index of the chain in it.
    pub chain: usize,
    /// Index of the rule in that; the policy if absent.
    pub rule: Option<usize>,
    /// Index of the base chain by which it was reached.
    pub base: usize,
}

/// One packet of the flow in question.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Its place in the flow.
    pub index: usize,
    /// Of which IP.
    pub family: Family,
    /// IP protocol.
    pub protocol: u8,
    /// The service's port.
    pub port: u16,
    /// From the client to the service.
    pub request: bool,
    /// TCP flags.
    pub flags: Option<u8>,
    /// Type and code of an ICMP error about the flow.
    pub icmp: Option<(u8, u8)>,
    /// What conntrack says about it as long as the flow is tracked.
    pub state: u8,
}

/// Where the packet is now.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// Its base chain.
    pub base: &'a Base,
    /// Which rule looks at it.
    pub at: At,
    /// Whether the flow is tracked, or NOTRACK is in force.
    pub tracked: bool,
    /// Whose flow it is.
    pub scope: Scope,
}

/// What has been assumed, and what has happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// The client's possible addresses.
    pub client: Ranges,
    /// The service's possible addresses.
    pub server: Ranges,
    /// The client's possible ports.
    pub client_port: Ranges,
    /// Who may have sent an ICMP error.
    pub router: Ranges,
    /// Answers assumed for questions that can't be answered here.
    answers: BTreeMap<String, bool>,
    /// Which names the interface to the outside has been assumed to have or not to have.
    devices: BTreeMap<String, bool>,
    /// The first rule of this run whose answer had to be assumed.
    pub assumed: Option<At>,
    /// The first rule of this run that goes by rates, counts, time or chance.
    pub gambled: Option<At>,
    /// The packet's mark, if known. Zero at first: a mark set with SO_MARK isn't seen here.
    pub mark: Option<u32>,
    /// A NOTRACK rule has exempted the packet.
    pub exempt: bool,
    /// How many packets of the flow were exempted.
    pub exempted: usize,
    /// A translation.
    pub nat: Option<(At, Nat)>,
    /// A helper was assigned.
    pub helper: Option<(At, String)>,
    /// The mark of the connection went into the packet's.
    pub mark_read: Option<At>,
    /// Connections were counted.
    pub counted: Option<At>,
    /// By which rule a packet passed a base chain: (packet, table, base chain, rule).
    pub accepted: Vec<(usize, At)>,
}

impl Path {
    /// Nothing assumed but that client and service have these addresses and ports.
    pub fn start(client: Ranges, server: Ranges, client_port: Ranges, everywhere: Ranges) -> Self {
        Self {
            client,
            server,
            client_port,
            router: everywhere,
            answers: BTreeMap::new(),
            devices: BTreeMap::new(),
            assumed: None,
            gambled: None,
            mark: Some(0),
            exempt: false,
            exempted: 0,
            nat: None,
            helper: None,
            mark_read: None,
            counted: None,
            accepted: Vec::new(),
        }
    }

    /// The same assumptions, before anything has happened.
    pub fn again(&self) -> Self {
        Self {
            answers: self.answers.clone(),
            devices: self.devices.clone(),
            ..Self::start(
                self.client.clone(),
                self.server.clone(),
                self.client_port.clone(),
                self.router.clone(),
            )
        }
    }

    /// Whether one flow could take both.
    pub fn may_be_of_the_flow_of(&self, other: &Self) -> bool {
        let meet = |ours: &Ranges, theirs: &Ranges| !ours.and(theirs).is_empty();
        meet(&self.client, &other.client)
            && meet(&self.server, &other.server)
            && meet(&self.client_port, &other.client_port)
            && self.devices.iter().all(|(name, is)| other.devices.get(name).is_none_or(|other| is == other))
    }

    /// For the flow's next packet.
    pub fn next_packet(&mut self) {
        self.exempted += usize::from(self.exempt);
        self.exempt = false;
        self.mark = Some(0);
    }

    /// Splits it into the paths for which the condition holds, and those for which it doesn't.
    pub fn split(self, condition: &Condition, place: &Place<'_>) -> (Vec<Self>, Vec<Self>) {
        let packet = place.packet;
        match condition {
            Condition::Family(family) => self.known(*family == packet.family),
            Condition::In(field, set) => self.number(*field, set, place),
            Condition::TcpFlags { mask, value } => {
                self.known(packet.flags.is_some_and(|flags| flags & mask == *value))
            }
            Condition::Device { out, name } => self.device(*out, name, place),
            Condition::State(bits) => {
                let holds = self.view(place).0 & bits != 0;
                self.known(holds)
            }
            Condition::Tracked => {
                let holds = self.view(place).1;
                self.known(holds)
            }
            Condition::Translated(destination) => {
                let by_rule = self.nat.as_ref().is_some_and(|(_, nat)| nat.is_destination() == *destination);
                let holds = by_rule && self.view(place).1;
                self.known(holds)
            }
            Condition::Original => self.known(packet.request),
            Condition::Mark { mask, value } => match self.mark {
                Some(mark) => self.known(mark & mask == *value),
                None => self.ask(Stays::Packet, &format!("mark {mask:#x}/{value:#x}"), place),
            },
            Condition::AddressType(end, name) => self.address_type(*end, name, place),
            Condition::CountsConnections(text) => {
                let mut path = self;
                if path.view(place).1 {
                    path.counted.get_or_insert(place.at);
                }
                path.ask(Stays::Never, text, place)
            }
            Condition::Unknown(stays, text) => self.ask(*stays, text, place),
            Condition::All(all) => {
                let (mut yes, mut no) = (vec![self], Vec::new());
                for condition in all {
                    let mut still = Vec::new();
                    for path in yes {
                        let (holds, fails) = path.split(condition, place);
                        still.extend(holds);
                        no.extend(fails);
                    }
                    yes = still;
                }
                (yes, no)
            }
            Condition::Any(any) => {
                let (mut yes, mut no) = (Vec::new(), vec![self]);
                for condition in any {
                    let mut still = Vec::new();
                    for path in no {
                        let (holds, fails) = path.split(condition, place);
                        yes.extend(holds);
                        still.extend(fails);
                    }
                    no = still;
                }
                (yes, no)
            }
            Condition::Not(condition) => {
                let (yes, no) = self.split(condition, place);
                (no, yes)
            }
        }
    }

    /// The state `ct state` sees, and whether there is an entry.
    pub fn view(&self, place: &Place<'_>) -> (u8, bool) {
        let Place { packet, base, tracked, scope, .. } = *place;
        // A looped packet keeps its entry through lo: nf_conntrack_in leaves what it has seen alone.
        let first = base.hook == Hook::Output || (base.hook == Hook::Prerouting && scope != Scope::Loopback);
        if self.exempt {
            (state::UNTRACKED, false)
        } else if first && base.priority < if tracked { CONNTRACK } else { RAW } {
            // nft_ct and xt_conntrack call a packet that conntrack hasn't seen yet invalid.
            (state::INVALID, false)
        } else if tracked {
            (packet.state, packet.state != state::INVALID)
        } else if packet.icmp.is_some() {
            // An error about a flow without entry: nf_conntrack_inet_error, nf_conntrack_proto_icmp.c, 6.12.
            (state::INVALID, false)
        } else {
            (state::UNTRACKED, false)
        }
    }

    fn known(self, holds: bool) -> (Vec<Self>, Vec<Self>) {
        if holds { (vec![self], Vec::new()) } else { (Vec::new(), vec![self]) }
    }

    fn ask(mut self, stays: Stays, text: &str, place: &Place<'_>) -> (Vec<Self>, Vec<Self>) {
        let packet = place.packet;
        let key = match stays {
            Stays::Flow => format!("{text} {}", packet.request),
            Stays::Packet => format!("{text} {} {:?}", packet.index, place.base.hook),
            Stays::Never => {
                self.gambled.get_or_insert(place.at);
                return (vec![self.clone()], vec![self]);
            }
        };
        if let Some(answer) = self.answers.get(&key) {
            let answer = *answer;
            return self.known(answer);
        }
        self.assumed.get_or_insert(place.at);
        let mut no = self.clone();
        self.answers.insert(key.clone(), true);
        no.answers.insert(key, false);
        (vec![self], vec![no])
    }

    fn number(self, field: Field, set: &Ranges, place: &Place<'_>) -> (Vec<Self>, Vec<Self>) {
        let packet = place.packet;
        // Source of a request and destination of a reply are the client's.
        let is_client = |end: End| (end == End::Source) == packet.request;
        match field {
            Field::Protocol => self.known(set.contains(packet.protocol.into())),
            Field::IcmpType => self.known(packet.icmp.is_some_and(|(kind, _)| set.contains(kind.into()))),
            Field::IcmpCode => self.known(packet.icmp.is_some_and(|(_, code)| set.contains(code.into()))),
            Field::Port(_) if packet.icmp.is_some() => self.known(false),
            Field::Port(end) if is_client(end) => self.narrow(set, |path| &mut path.client_port),
            Field::Port(_) => self.known(set.contains(packet.port.into())),
            Field::Address(End::Source) if packet.icmp.is_some() => self.narrow(set, |path| &mut path.router),
            Field::Address(_) if packet.icmp.is_some() => match place.scope {
                Scope::Outgoing => self.narrow(set, |path| &mut path.client),
                Scope::Served | Scope::Loopback => self.narrow(set, |path| &mut path.server),
            },
            Field::Address(end) if is_client(end) => self.narrow(set, |path| &mut path.client),
            Field::Address(_) => self.narrow(set, |path| &mut path.server),
        }
    }

    fn narrow(mut self, set: &Ranges, of: impl Fn(&mut Self) -> &mut Ranges) -> (Vec<Self>, Vec<Self>) {
        let domain = of(&mut self).clone();
        let (inside, outside) = (domain.and(set), domain.and(&set.not()));
        if outside.is_empty() {
            return self.known(true);
        }
        if inside.is_empty() {
            return self.known(false);
        }
        let mut no = self.clone();
        *of(&mut self) = inside;
        *of(&mut no) = outside;
        (vec![self], vec![no])
    }

    fn device(mut self, out: bool, name: &str, place: &Place<'_>) -> (Vec<Self>, Vec<Self>) {
        let fits = |device: &str| match name.strip_suffix('*') {
            Some(start) => device.starts_with(start),
            None => device == name,
        };
        let there = match place.base.hook {
            Hook::Prerouting | Hook::Input => !out,
            Hook::Output | Hook::Postrouting => out,
            Hook::Forward => true,
        };
        // Where there is no such interface, its name is empty: nft_meta_store_ifname and ip_packet_match, 6.12.
        if !there {
            return self.known(fits(""));
        }
        if place.scope == Scope::Loopback {
            return self.known(fits("lo"));
        }
        if matches!(name, "lo" | "") {
            return self.known(false);
        }
        if let Some(answer) = self.devices.get(name) {
            let answer = *answer;
            return self.known(answer);
        }
        let is_exact = |name: &str| !name.ends_with('*');
        if let Some((device, _)) = self.devices.iter().find(|(device, is)| **is && is_exact(device)) {
            let fits = fits(device);
            return self.known(fits);
        }
        let ruled_out = self.devices.iter().any(|(pattern, is)| {
            !is && is_exact(name) && pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start))
        });
        if ruled_out {
            return self.known(false);
        }
        let mut no = self.clone();
        self.devices.insert(name.to_owned(), true);
        no.devices.insert(name.to_owned(), false);
        (vec![self], vec![no])
    }

    fn address_type(self, end: End, name: &str, place: &Place<'_>) -> (Vec<Self>, Vec<Self>) {
        let packet = place.packet;
        let is_client = (end == End::Source) == packet.request;
        let local = match place.scope {
            _ if packet.icmp.is_some() => end == End::Destination,
            Scope::Loopback => true,
            Scope::Served => !is_client,
            Scope::Outgoing => is_client,
        };
        match name {
            "local" => self.known(local),
            "unicast" => self.known(!local),
            "broadcast" | "multicast" | "anycast" => self.known(false),
            _ => self.ask(Stays::Flow, &format!("address type {name} {}", end == End::Source), place),
        }
    }
}
