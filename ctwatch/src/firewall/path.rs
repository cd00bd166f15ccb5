//! A packet on its way, and what has been assumed of its flow so far: a path through the rules.
//! An assumption is made only by splitting a path in two, so that both together stand for every flow.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Scope;
use super::ends;
use super::host::Host;
use super::ir::{Base, Condition, End, Family, Field, Hook, Nat, Stays, state};
use super::ranges::Ranges;

/// Where conntrack sits: NF_IP_PRI_CONNTRACK, include/uapi/linux/netfilter_ipv4.h, 6.12.
pub const CONNTRACK: i32 = -200;
/// Where iptables' NOTRACK sits.
pub const RAW: i32 = -300;
/// Where that of nft's commands sits: before the rules of iptables' raw tables, whichever were loaded first.
pub const NOTRACK: i32 = RAW - 1;

/// Which way a flow's first packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From this host to itself over lo.
    Loopback,
    /// From elsewhere to this host.
    Served,
    /// From this host to elsewhere.
    Outgoing,
    /// Through this host.
    Forwarded,
    /// From elsewhere, and where to isn't decided yet.
    Arriving,
}

impl From<Scope> for Way {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Loopback => Self::Loopback,
            Scope::Served => Self::Served,
            Scope::Outgoing => Self::Outgoing,
        }
    }
}

/// A rule, or a chain's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl At {
    /// The rule itself, however it was reached.
    pub fn rule(self) -> (usize, usize, Option<usize>) {
        (self.table, self.chain, self.rule)
    }
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
    /// Which way the flow goes.
    pub way: Way,
    /// What is known of the host.
    pub host: &'a Host,
    /// Whether anything assigns helpers.
    pub helps: bool,
    /// The bits of marks that no rule sets.
    pub foreign_marks: u32,
}

/// A packet's mark, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Its bits, where they are known.
    value: u32,
    /// Those that a rule made something unknown.
    unknown: u32,
    /// Those that no rule has written yet.
    first: u32,
    /// What is unknown may be another for an untracked packet.
    differs: bool,
}

impl Mark {
    /// As a packet has it when it meets the first rule: zero, but for bits that others set than the rules that were read.
    const FIRST: Self = Self { value: 0, unknown: 0, first: u32::MAX, differs: false };

    /// mark = (mark & !mask) ^ value.
    fn set(&mut self, mask: u32, value: u32) {
        self.value = (self.value & !mask) ^ value;
        self.unknown &= !mask;
        self.first &= !mask;
        self.differs &= self.unknown != 0;
    }

    fn is_unknown(&mut self, differs: bool) {
        *self = Self { value: 0, unknown: u32::MAX, first: 0, differs };
    }

    /// Whether mark & mask == value; the bits of `foreign` may have been set by anybody.
    fn is(self, mask: u32, value: u32, foreign: u32) -> Option<bool> {
        let open = self.unknown | (self.first & foreign);
        let known = mask & !open;
        if value & !mask != 0 || self.value & known != value & known {
            Some(false)
        } else {
            (mask & open == 0).then_some(true)
        }
    }
}

/// What has been assumed, and what has happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// The client's possible addresses.
    pub client: Ranges,
    /// The service's possible addresses: where the client sends to, until a rule translates that.
    pub server: Ranges,
    /// The client's possible ports.
    pub client_port: Ranges,
    /// The service's possible ports.
    pub server_port: Ranges,
    /// Who may have sent an ICMP error.
    pub router: Ranges,
    /// Only some of the flow's packets are exempt today, so conntrack sees one direction or less of it.
    pub half: bool,
    /// Answers assumed for questions that can't be answered here.
    answers: BTreeMap<String, bool>,
    /// Which names the interfaces to the outside have been assumed to have or not to have. Forwarded flows have two:
    /// `true` is the one they leave by.
    devices: BTreeMap<(bool, String), bool>,
    /// The first rule of this run whose answer had to be assumed.
    pub assumed: Option<At>,
    /// The first rule of this run that goes by rates, counts, time or chance.
    pub gambled: Option<At>,
    /// The first rule of this run whose answer may be another for an untracked packet.
    pub differs: Option<At>,
    /// The packet's mark.
    pub mark: Mark,
    /// A NOTRACK rule has exempted the packet.
    pub exempt: bool,
    /// How many packets of the flow were exempted.
    pub exempted: usize,
    /// A translation: the first that this run met.
    pub nat: Option<(At, Nat)>,
    /// The translation of the client's address, if there is one.
    pub source_nat: Option<(At, Nat)>,
    /// The service's addresses and ports as the client has them, where they have been translated.
    pub asked: Option<(Ranges, Ranges)>,
    /// The client's addresses and ports as the service has them, where they have been translated.
    pub seen: Option<(Ranges, Ranges)>,
    /// A helper was assigned.
    pub helper: Option<(At, String)>,
    /// The packet got a template.
    pub template: Option<At>,
    /// The zone that this packet got.
    pub zone: Option<String>,
    /// What the flow's first packet got.
    zone_of_flow: Option<Option<String>>,
    /// Not all of its packets got the same.
    pub zones_differ: bool,
    /// A program was asked.
    pub queued: Option<At>,
    /// Something happened that isn't understood.
    pub unknown: Option<(At, String)>,
    /// The mark of the connection went into the packet's.
    pub mark_read: Option<At>,
    /// Connections were counted.
    pub counted: Option<At>,
    /// By which rule a packet passed a base chain: (packet, table, base chain, rule).
    pub accepted: Vec<(usize, At)>,
}

/// Addresses and ports of flows, nothing else assumed.
#[derive(Clone, Debug)]
pub struct Space {
    /// The clients' addresses.
    pub client: Ranges,
    /// The service's.
    pub server: Ranges,
    /// The clients' ports.
    pub client_port: Ranges,
    /// The service's.
    pub server_port: Ranges,
    /// Who may send ICMP errors.
    pub router: Ranges,
}

impl Path {
    /// Nothing assumed but that client and service have these addresses and ports.
    pub fn start(space: Space) -> Self {
        let Space { client, server, client_port, server_port, router } = space;
        Self {
            client,
            server,
            client_port,
            server_port,
            router,
            half: false,
            answers: BTreeMap::new(),
            devices: BTreeMap::new(),
            assumed: None,
            gambled: None,
            differs: None,
            mark: Mark::FIRST,
            exempt: false,
            exempted: 0,
            nat: None,
            source_nat: None,
            asked: None,
            seen: None,
            helper: None,
            template: None,
            zone: None,
            zone_of_flow: None,
            zones_differ: false,
            queued: None,
            unknown: None,
            mark_read: None,
            counted: None,
            accepted: Vec::new(),
        }
    }

    /// The same assumptions, before anything has happened.
    pub fn again(&self) -> Self {
        let (server, server_port) =
            self.asked.clone().unwrap_or_else(|| (self.server.clone(), self.server_port.clone()));
        Self {
            answers: self.answers.clone(),
            devices: self.devices.clone(),
            half: self.half,
            ..Self::start(Space {
                client: self.client.clone(),
                server,
                client_port: self.client_port.clone(),
                server_port,
                router: self.router.clone(),
            })
        }
    }

    /// Whether one flow could take both.
    pub fn may_be_of_the_flow_of(&self, other: &Self) -> bool {
        self.client.meets(&other.client)
            && self.server.meets(&other.server)
            && self.client_port.meets(&other.client_port)
            && self.server_port.meets(&other.server_port)
            && self.devices.iter().all(|(name, is)| other.devices.get(name).is_none_or(|other| is == other))
    }

    /// A number that is the same for equal paths, and for those that differ in the rules that accepted them.
    pub fn fingerprint(&self) -> u64 {
        self.parts().fold(self.rest(), |sum, (_, part)| sum.wrapping_add(part))
    }

    /// The same without each part that may be another: paths that differ in that alone have one of them in common.
    pub fn fingerprints_but_one(&self) -> Vec<u64> {
        let whole = self.fingerprint();
        let without = self.parts().map(|(name, part)| whole.wrapping_sub(part).wrapping_add(name));
        without.chain([whole]).collect()
    }

    /// What may be joined: of each its name and itself.
    fn parts(&self) -> impl Iterator<Item = (u64, u64)> {
        let domains = Domain::JOINED.iter().map(|of| (hash(of), hash(&(of, self.domain(*of)))));
        let answers = self.answers.iter().map(|(question, is)| (hash(question), hash(&(question, is))));
        let devices = self.devices.iter().map(|(name, is)| (hash(name), hash(&(name, is))));
        domains.chain(answers).chain(devices)
    }

    fn rest(&self) -> u64 {
        hash(&(
            (
                &self.router,
                self.half,
                self.mark,
                self.exempt,
                self.exempted,
                self.gambled.is_some(),
                self.differs.is_some(),
            ),
            (&self.nat, &self.source_nat, &self.asked, &self.seen),
            (&self.helper, &self.template, &self.queued, &self.unknown, &self.mark_read, &self.counted),
            (&self.zone, &self.zone_of_flow, self.zones_differ),
        ))
    }

    /// The path that stands for these two and nothing else, if they differ in one answer or one number only. Which rules accepted
    /// them may differ; those of the first stay.
    pub fn joined(&self, other: &Self) -> Option<Self> {
        fn differing<'m, K: Ord>(
            these: &'m BTreeMap<K, bool>,
            those: &'m BTreeMap<K, bool>,
        ) -> Option<Vec<&'m K>> {
            let pairs = || these.iter().zip(those);
            let same_questions = these.len() == those.len() && pairs().all(|(this, that)| this.0 == that.0);
            same_questions
                .then(|| pairs().filter(|(this, that)| this.1 != that.1).map(|(this, _)| this.0).collect())
        }
        let domains: Vec<Domain> =
            Domain::JOINED.into_iter().filter(|of| self.domain(*of) != other.domain(*of)).collect();
        let answers = differing(&self.answers, &other.answers)?;
        let devices = differing(&self.devices, &other.devices)?;
        if domains.len() + answers.len() + devices.len() > 1
            || self.gambled.is_some() != other.gambled.is_some()
            || self.differs.is_some() != other.differs.is_some()
        {
            return None;
        }
        let (mut both, mut same) = (self.clone(), other.clone());
        for path in [&mut both, &mut same] {
            for of in &domains {
                *path.domain_mut(*of) = self.domain(*of).or(other.domain(*of));
            }
            for question in &answers {
                path.answers.remove(*question);
            }
            for name in &devices {
                path.devices.remove(*name);
            }
        }
        both.assumed = both.assumed.or(same.assumed);
        (same.assumed, same.gambled, same.differs) = (both.assumed, both.gambled, both.differs);
        same.accepted.clone_from(&both.accepted);
        (both == same).then_some(both)
    }

    /// Its mark is not known, and where it comes from isn't either.
    pub fn lose_mark(&mut self) {
        self.mark.is_unknown(false);
    }

    /// A rule sets its mark.
    pub fn set_mark(&mut self, mask: u32, value: u32) {
        self.mark.set(mask, value);
    }

    /// A rule makes it something that stays so long.
    pub fn make_mark_unknown(&mut self, stays: Stays) {
        self.mark.is_unknown(stays == Stays::Never);
    }

    /// For the flow's next packet.
    pub fn next_packet(&mut self) {
        self.end_packet();
        self.exempt = false;
        self.mark = Mark::FIRST;
    }

    /// All rules have seen this packet.
    pub fn end_packet(&mut self) {
        self.exempted += usize::from(self.exempt);
        let zone = self.zone.take();
        match &self.zone_of_flow {
            None => self.zone_of_flow = Some(zone),
            Some(before) => self.zones_differ |= *before != zone,
        }
    }

    /// The answer, if it is the same for everything this path stands for and nothing need be assumed.
    pub fn sure(&self, condition: &Condition, place: &Place<'_>) -> Option<bool> {
        let packet = place.packet;
        match condition {
            Condition::Family(family) => Some(*family == packet.family),
            Condition::In(field, set) => match self.number(*field, place) {
                Number::None => Some(false),
                Number::One(value) => Some(set.contains(value)),
                Number::Of(of) => of.sure(self, set),
            },
            Condition::TcpFlags { mask, value } => {
                Some(packet.flags.is_some_and(|flags| flags & mask == *value))
            }
            Condition::State(bits) => match self.view(place) {
                View::Known(state, _) => Some(state & bits != 0),
                View::OneOf(states) if states & bits == 0 => Some(false),
                View::OneOf(states) if states & !bits == 0 => Some(true),
                View::OneOf(_) => None,
            },
            Condition::Tracked => match self.view(place) {
                View::Known(_, entry) => Some(entry),
                View::OneOf(_) => None,
            },
            Condition::Original => Some(packet.request),
            Condition::Mark { mask, value } => self.mark.is(*mask, *value, place.foreign_marks),
            Condition::AddressType(end, name) => match self.address_type(*end, name, place) {
                Answer::Known(holds) => Some(holds),
                Answer::In(of, set) => of.sure(self, set),
                Answer::Ask => None,
            },
            Condition::Helped(_) => (!place.helps).then_some(false),
            Condition::Translated(_)
            | Condition::Device { .. }
            | Condition::CountsConnections(_)
            | Condition::Unknown(..) => None,
            Condition::All(all) => {
                let mut holds = Some(true);
                for condition in all {
                    match self.sure(condition, place) {
                        Some(false) => return Some(false),
                        Some(true) => {}
                        None => holds = None,
                    }
                }
                holds
            }
            Condition::Any(any) => {
                let mut holds = Some(false);
                for condition in any {
                    match self.sure(condition, place) {
                        Some(true) => return Some(true),
                        Some(false) => {}
                        None => holds = None,
                    }
                }
                holds
            }
            Condition::Not(condition) => self.sure(condition, place).map(|holds| !holds),
        }
    }

    /// Splits it into the paths for which the condition holds, and those for which it doesn't.
    pub fn split(self, condition: &Condition, place: &Place<'_>) -> (Vec<Self>, Vec<Self>) {
        if let Some(holds) = self.sure(condition, place) {
            return self.known(holds);
        }
        match condition {
            Condition::In(field, set) => match self.number(*field, place) {
                Number::Of(of) => self.narrow(of, set),
                Number::None | Number::One(_) => self.known(false),
            },
            Condition::Device { out, name } => self.device(*out, name, place),
            Condition::State(bits) => self.ask(Stays::Packet, &format!("state {bits:#x}"), place),
            Condition::Tracked => self.ask(Stays::Packet, "has an entry", place),
            Condition::Translated(destination) => {
                let by_rule = self.nat.as_ref().is_some_and(|(_, nat)| nat.is_destination() == *destination);
                match self.view(place) {
                    View::Known(_, entry) => self.known(by_rule && entry),
                    View::OneOf(_) => self.ask(Stays::Packet, "is translated", place),
                }
            }
            Condition::Mark { mask, value } => {
                let stays = if self.mark.differs { Stays::Never } else { Stays::Packet };
                let known = self.mark.value & mask;
                self.ask(stays, &format!("mark {mask:#x}/{value:#x} {known:#x}"), place)
            }
            Condition::AddressType(end, name) => match self.address_type(*end, name, place) {
                Answer::In(of, set) => {
                    let set = set.clone();
                    self.narrow(of, &set)
                }
                Answer::Known(holds) => self.known(holds),
                Answer::Ask => {
                    self.ask(Stays::Flow, &format!("address type {name} {}", *end == End::Source), place)
                }
            },
            Condition::CountsConnections(text) => {
                let mut path = self;
                if !matches!(path.view(place), View::Known(_, false)) {
                    path.counted.get_or_insert(place.at);
                }
                path.ask(Stays::Never, text, place)
            }
            Condition::Helped(text) => self.ask(Stays::Flow, text, place),
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
            Condition::Family(_) | Condition::TcpFlags { .. } | Condition::Original => self.known(false),
        }
    }

    /// What a rule is told about the packet's connection.
    pub fn view(&self, place: &Place<'_>) -> View {
        let Place { packet, base, tracked, way, .. } = *place;
        // A looped packet keeps its entry through lo: nf_conntrack_in leaves what it has seen alone.
        let first = base.hook == Hook::Output || (base.hook == Hook::Prerouting && way != Way::Loopback);
        if self.exempt {
            View::Known(state::UNTRACKED, false)
        } else if first && !tracked && base.priority == NOTRACK {
            // Before NOTRACK or behind it: whichever was loaded first.
            View::OneOf(state::INVALID | state::UNTRACKED)
        } else if first && base.priority < if tracked { CONNTRACK } else { RAW } {
            // nft_ct and xt_conntrack call a packet that conntrack hasn't seen yet invalid.
            View::Known(state::INVALID, false)
        } else if tracked && self.half {
            // Of a flow of which conntrack sees a part, each packet may begin an entry, or belong to none.
            View::OneOf(state::NEW | state::ESTABLISHED | state::INVALID)
        } else if tracked {
            View::Known(packet.state, packet.state != state::INVALID)
        } else if packet.icmp.is_some() {
            // An error about a flow without entry: nf_conntrack_inet_error, nf_conntrack_proto_icmp.c, 6.12.
            View::Known(state::INVALID, false)
        } else {
            View::Known(state::UNTRACKED, false)
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
            Stays::Chance => format!("{text} {} {:?} {:?}", packet.index, place.base.hook, place.at),
            Stays::Never => {
                self.gambled.get_or_insert(place.at);
                self.differs.get_or_insert(place.at);
                return (vec![self.clone()], vec![self]);
            }
        };
        if let Some(answer) = self.answers.get(&key) {
            let answer = *answer;
            return self.known(answer);
        }
        if stays == Stays::Chance {
            self.gambled.get_or_insert(place.at);
        } else {
            self.assumed.get_or_insert(place.at);
        }
        let mut no = self.clone();
        self.answers.insert(key.clone(), true);
        no.answers.insert(key, false);
        (vec![self], vec![no])
    }

    fn number(&self, field: Field, place: &Place<'_>) -> Number {
        let packet = place.packet;
        // Source of a request and destination of a reply are the client's.
        let is_client = |end: End| (end == End::Source) == packet.request;
        match field {
            Field::Protocol => Number::One(packet.protocol.into()),
            Field::IcmpType => packet.icmp.map_or(Number::None, |(kind, _)| Number::One(kind.into())),
            Field::IcmpCode => packet.icmp.map_or(Number::None, |(_, code)| Number::One(code.into())),
            Field::Port(_) if packet.icmp.is_some() => Number::None,
            Field::Port(end) if is_client(end) => Number::Of(Domain::ClientPort),
            Field::Port(_) => Number::Of(Domain::ServerPort),
            Field::Address(End::Source) if packet.icmp.is_some() => Number::Of(Domain::Router),
            Field::Address(_) if packet.icmp.is_some() => Number::Of(match place.way {
                Way::Outgoing => Domain::Client,
                _ => Domain::Server,
            }),
            Field::Address(end) if is_client(end) => Number::Of(Domain::Client),
            Field::Address(_) => Number::Of(Domain::Server),
        }
    }

    fn domain(&self, of: Domain) -> &Ranges {
        match of {
            Domain::Client => &self.client,
            Domain::Server => &self.server,
            Domain::ClientPort => &self.client_port,
            Domain::ServerPort => &self.server_port,
            Domain::Router => &self.router,
        }
    }

    fn domain_mut(&mut self, of: Domain) -> &mut Ranges {
        match of {
            Domain::Client => &mut self.client,
            Domain::Server => &mut self.server,
            Domain::ClientPort => &mut self.client_port,
            Domain::ServerPort => &mut self.server_port,
            Domain::Router => &mut self.router,
        }
    }

    fn narrow(mut self, of: Domain, set: &Ranges) -> (Vec<Self>, Vec<Self>) {
        let (inside, outside) = {
            let domain = self.domain(of);
            (domain.and(set), domain.without(set))
        };
        if outside.is_empty() {
            return self.known(true);
        }
        if inside.is_empty() {
            return self.known(false);
        }
        let mut no = self.clone();
        *self.domain_mut(of) = inside;
        *no.domain_mut(of) = outside;
        (vec![self], vec![no])
    }

    /// Those for this host, and the others: what routing decides. Both, if this host's addresses aren't known.
    pub fn routed(self, host: &Host, family: Family) -> (Option<Self>, Option<Self>) {
        let Some(own) = host.own(family) else { return (Some(self.clone()), Some(self)) };
        let (here, elsewhere) = self.narrow(Domain::Server, own);
        (here.into_iter().next(), elsewhere.into_iter().next())
    }

    fn device(self, out: bool, name: &str, place: &Place<'_>) -> (Vec<Self>, Vec<Self>) {
        let fits = |device: &str| is_named(device, name);
        let there = match place.base.hook {
            Hook::Prerouting | Hook::Input => !out,
            Hook::Output | Hook::Postrouting => out,
            Hook::Forward => true,
        };
        // Where there is no such interface, its name is empty: nft_meta_store_ifname and ip_packet_match, 6.12.
        if !there {
            // A forwarded packet may still tell by which device it came in: ip_output, net/ipv4/ip_output.c, 6.12.
            if place.way == Way::Forwarded && place.base.hook == Hook::Postrouting {
                return self.of_device(out, name, place.way);
            }
            return self.known(fits(""));
        }
        if place.way == Way::Loopback {
            return self.known(fits("lo"));
        }
        if matches!(name, "lo" | "") {
            return self.known(false);
        }
        self.of_device(out, name, place.way)
    }

    fn of_device(mut self, out: bool, name: &str, way: Way) -> (Vec<Self>, Vec<Self>) {
        // What this host serves or asks comes and goes by one device.
        let side = out && way == Way::Forwarded;
        let key = (side, name.to_owned());
        if let Some(answer) = self.devices.get(&key) {
            let answer = *answer;
            return self.known(answer);
        }
        let fits = |device: &str| is_named(device, name);
        let is_exact = |name: &str| !name.ends_with('*');
        let mut known = self.devices.iter().filter(|((of, _), _)| *of == side);
        if let Some(((_, device), _)) = known.clone().find(|((_, device), is)| **is && is_exact(device)) {
            let fits = fits(device);
            return self.known(fits);
        }
        let ruled_out = known.any(|((_, pattern), is)| {
            !is && is_exact(name) && pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start))
        });
        if ruled_out {
            return self.known(false);
        }
        let mut no = self.clone();
        self.devices.insert(key.clone(), true);
        no.devices.insert(key, false);
        (vec![self], vec![no])
    }

    fn address_type<'h>(&self, end: End, name: &str, place: &Place<'h>) -> Answer<'h> {
        let packet = place.packet;
        let is_client = (end == End::Source) == packet.request;
        if place.way == Way::Outgoing && !is_client && packet.icmp.is_none() {
            let groups = ends::groups(packet.family);
            if let Some((kind, _)) = groups.iter().find(|(_, set)| self.server.is_in(set)) {
                return Answer::Known(name == *kind);
            }
        }
        let (local, elsewhere) = match name {
            "local" => (true, false),
            "unicast" => (false, true),
            "broadcast" | "multicast" | "anycast" => return Answer::Known(false),
            _ => return Answer::Ask,
        };
        let here = match place.way {
            _ if packet.icmp.is_some() => end == End::Destination,
            Way::Loopback => true,
            Way::Served => !is_client,
            Way::Outgoing => is_client,
            Way::Forwarded => false,
            Way::Arriving if is_client => false,
            Way::Arriving => {
                return match place.host.own(packet.family) {
                    Some(own) if local => Answer::In(Domain::Server, own),
                    _ => Answer::Ask,
                };
            }
        };
        Answer::Known(if here { local } else { elsewhere })
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Whether a device has this name, or begins so where the name ends with `*`.
fn is_named(device: &str, name: &str) -> bool {
    name.strip_suffix('*').map_or(device == name, |start| device.starts_with(start))
}

/// What a rule is told about a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Its state, and whether there is an entry.
    Known(u8, bool),
    /// One of these states.
    OneOf(u8),
}

/// A number of a path that rules narrow down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Domain {
    Client,
    Server,
    ClientPort,
    ServerPort,
    Router,
}

impl Domain {
    /// Those of the flow itself.
    const JOINED: [Self; 4] = [Self::Client, Self::Server, Self::ClientPort, Self::ServerPort];

    fn sure(self, path: &Path, set: &Ranges) -> Option<bool> {
        let domain = path.domain(self);
        if !domain.meets(set) {
            Some(false)
        } else if domain.is_in(set) {
            Some(true)
        } else {
            None
        }
    }
}

enum Number {
    None,
    One(u128),
    Of(Domain),
}

enum Answer<'h> {
    Known(bool),
    In(Domain, &'h Ranges),
    Ask,
}
