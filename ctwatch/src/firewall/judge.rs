//! What would break, or open up, if these flows were exempted. Every flow that works today is run through the rules
//! again without conntrack. What can't be judged is an objection, never silence.

use super::ir::{Family, Nat, Tool, state};
use super::path::{At, Packet, Path};
use super::ranges::Ranges;
use super::walk::{Dropped, FAMILIES, TooMuch, Walker};
use super::{ExemptTarget, Firewall, Objection, ObjectionKind, Scope, listing, words};
use crate::model::Protocol;

/// Ports that get a helper automatically where the kernel assigns helpers by port: nf_conntrack_*.c's defaults, 6.1.
const HELPER_PORTS: [(Protocol, u16, &str); 10] = [
    (Protocol::TCP, 21, "ftp"),
    (Protocol::TCP, 1723, "pptp"),
    (Protocol::TCP, 5060, "sip"),
    (Protocol::TCP, 6566, "sane"),
    (Protocol::TCP, 6667, "irc"),
    (Protocol::UDP, 69, "tftp"),
    (Protocol::UDP, 137, "netbios-ns"),
    (Protocol::UDP, 161, "snmp"),
    (Protocol::UDP, 1719, "RAS"),
    (Protocol::UDP, 5060, "sip"),
];
/// Linux's ephemeral ports unless set otherwise (inet_init_net, net/ipv4/af_inet.c, 6.12).
const EPHEMERAL: (u16, u16) = (32_768, 60_999);
/// What remote clients may use: other systems and NAT gateways start here.
const UNPRIVILEGED: (u16, u16) = (1024, 65_535);

pub fn objections(firewall: &Firewall, target: &ExemptTarget) -> Vec<Objection> {
    let mut case = Case { firewall, target, found: Vec::new(), flows: 0, exempt: 0 };
    for family in FAMILIES {
        for start in starts(firewall, target.scope, family) {
            if let Err(TooMuch) = case.family(family, &start) {
                case.too_much();
            }
        }
    }
    if case.flows > 0 && case.flows == case.exempt {
        case.already();
    }
    case.automatic_helper();
    case.translated_replies();
    case.found.sort_by_key(|objection| objection.kind);
    case.found
}

struct Case<'a> {
    firewall: &'a Firewall,
    target: &'a ExemptTarget,
    found: Vec<Objection>,
    /// Kinds of flows that work today, and how many of them are exempt already.
    flows: usize,
    exempt: usize,
}

/// Which addresses flows can have. Over lo both are of the loopback network, or both are others of this host's.
fn starts(firewall: &Firewall, scope: Scope, family: Family) -> Vec<Path> {
    let network = |text: &str| -> Ranges {
        let net: ipnet::IpNet = text.parse().expect("it is a network");
        words::network(net.addr(), net.prefix_len()).expect("it is a network")
    };
    // What no peer has: 0/8, multicast and above; 6to4 (deprecated by RFC 7526), much of which firewalld rejects.
    let (loopback, others) = match family {
        Family::V4 => (network("127.0.0.0/8"), Ranges::span(1 << 24, (224 << 24) - 1)),
        Family::V6 => {
            let unicast = ["2000::/3", "fc00::/7", "fe80::/10"].map(network);
            let unicast = Ranges::of(unicast.iter().flat_map(|set| set.intervals().iter().copied()));
            (network("::1/128"), unicast.and(&network("2002::/16").not()))
        }
    };
    let others = others.and(&loopback.not());
    let ports = match scope {
        Scope::Loopback | Scope::Outgoing => firewall.local_ports.unwrap_or(EPHEMERAL),
        Scope::Served => UNPRIVILEGED,
    };
    let ports = Ranges::span(ports.0.into(), ports.1.into());
    let start =
        |addresses: &Ranges| Path::start(addresses.clone(), addresses.clone(), ports.clone(), others.clone());
    match scope {
        Scope::Loopback => vec![start(&loopback), start(&others)],
        Scope::Served | Scope::Outgoing => vec![start(&others)],
    }
}

/// The packets of a flow that rules can tell apart.
fn packets(target: &ExemptTarget, family: Family) -> Vec<Packet> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    const FIN: u8 = 1;
    let tcp = target.proto == Protocol::TCP;
    let packet = |index, request, flags, state| Packet {
        index,
        family,
        protocol: target.proto.0,
        port: target.port,
        request,
        flags: tcp.then_some(flags),
        icmp: None,
        state,
    };
    let mut flow = vec![
        packet(0, true, SYN, state::NEW),
        packet(1, false, SYN | ACK, state::ESTABLISHED),
        packet(2, true, ACK, state::ESTABLISHED),
    ];
    if tcp {
        flow.push(packet(3, false, ACK, state::ESTABLISHED));
        flow.push(packet(4, true, FIN | ACK, state::ESTABLISHED));
    }
    flow
}

/// "This packet is too big": a router's word about a packet of the flow.
fn too_big(target: &ExemptTarget, family: Family) -> Packet {
    Packet {
        index: 9,
        family,
        protocol: if family == Family::V4 { Protocol::ICMP.0 } else { Protocol::ICMPV6.0 },
        port: target.port,
        request: target.scope == Scope::Served,
        flags: None,
        icmp: Some(if family == Family::V4 { (3, 4) } else { (2, 0) }),
        state: state::RELATED,
    }
}

impl Case<'_> {
    fn family(&mut self, family: Family, start: &Path) -> Result<(), TooMuch> {
        let flow = packets(self.target, family);
        let mut walker = Walker::new(&self.firewall.tables, self.target.scope);
        let today = walker.run(true, &flow, vec![start.clone()])?;
        let everyone_passes = today.dropped.is_empty();
        for path in today.passed.iter().chain(today.dropped.iter().map(|(path, _)| path)) {
            self.translation(path);
        }
        for path in &today.passed {
            self.flows += 1;
            self.exempt += usize::from(path.exempted == flow.len());
            self.side_effects(path);
        }
        for path in &today.passed {
            if self.translated(path).is_some() {
                continue;
            }
            // Each packet by itself: one that is dropped would hide what happens to the next.
            for packet in &flow {
                let after = walker.run(false, &[*packet], vec![path.again()])?;
                for (way, dropped) in &after.dropped {
                    // Dropped whatever the answer is: then it doesn't matter that it isn't known.
                    let may_pass = after.passed.iter().any(|passed| passed.may_be_of_the_flow_of(way));
                    match way.gambled.or(way.assumed) {
                        Some(at) if may_pass => self.may_break(&at, dropped),
                        _ => self.breaks(path, dropped, everyone_passes),
                    }
                }
            }
        }
        for (path, dropped) in &today.dropped {
            if self.translated(path).is_none() && dropped.packet.index == 0 {
                let after = walker.run(false, &flow, vec![path.again()])?;
                if after.passed.iter().any(|after| after.gambled.is_none() && after.assumed.is_none()) {
                    self.opens(dropped);
                }
            }
        }
        if self.target.scope != Scope::Loopback {
            self.icmp_errors(&mut walker, family, &today.passed)?;
        }
        Ok(())
    }

    fn icmp_errors(
        &mut self,
        walker: &mut Walker<'_>,
        family: Family,
        flows: &[Path],
    ) -> Result<(), TooMuch> {
        let error = [too_big(self.target, family)];
        for path in flows.iter().filter(|path| path.nat.is_none()) {
            for told in walker.run(true, &error, vec![path.again()])?.passed {
                for (_, dropped) in walker.run(false, &error, vec![told.again()])?.dropped {
                    let family = if family == Family::V4 { "fragmentation-needed" } else { "packet-too-big" };
                    let by = self.by(&dropped.at);
                    self.add(ObjectionKind::IcmpErrors, &dropped.at, None, format!(
                        "ICMP errors about untracked connections are INVALID instead of RELATED, and {by}: {family} would be \
                         lost, and connections over a path with a smaller MTU would hang"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The translation that would be missed. Over lo a new source address isn't: the service sees the client's own
    /// and can answer it. It is taken for meant only where it is for 127.0.0.1 and ::1.
    fn translated<'p>(&self, path: &'p Path) -> Option<&'p (At, Nat)> {
        let loopback = path.client.contains(0x7f00_0001) || path.client.contains(1);
        path.nat
            .as_ref()
            .filter(|(_, nat)| self.target.scope != Scope::Loopback || nat.is_destination() || loopback)
    }

    fn translation(&mut self, path: &Path) {
        let Some((at, nat)) = self.translated(path) else { return };
        let table = &self.firewall.tables[at.table];
        let maker = listing::by(&table.name, &table.chains[at.chain].name);
        let to = nat.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
        match maker {
            Some(maker) if nat.is_destination() => self.add(ObjectionKind::PublishedPort, at, None, format!(
                "{maker} publishes {}{to}: untracked packets aren't translated and would be delivered to this host instead",
                self.target
            )),
            _ => self.add(ObjectionKind::NatRule, at, None, format!(
                "this {} rule{to} can match {}: untracked packets aren't translated",
                nat.kind, self.target
            )),
        }
    }

    fn side_effects(&mut self, path: &Path) {
        if let Some((at, name)) = &path.helper {
            self.add(ObjectionKind::Helper, at, None, format!(
                "the {name} helper inspects these connections and allows the ones they announce; that needs tracking"
            ));
        }
        if let Some(at) = &path.mark_read {
            self.add(ObjectionKind::ConnectionMark, at, None,
                "packets take their mark from the connection here; untracked ones have none, so routing or shaping by mark \
                 would change".to_owned());
        }
        if let Some(at) = &path.counted {
            self.add(ObjectionKind::OpensAccess, at, None,
                "this rule limits connections by counting their entries; untracked ones have none, so the limit would no \
                 longer apply".to_owned());
        }
    }

    fn may_break(&mut self, at: &At, dropped: &Dropped) {
        let text = format!(
            "this rule's effect on untracked packets of {} is unknown, and {}",
            self.target,
            self.by(&dropped.at)
        );
        self.add(ObjectionKind::Unknown, at, None, text);
    }

    fn breaks(&mut self, today: &Path, dropped: &Dropped, everyone_passes: bool) {
        let accepts = today.accepted.iter().find(|(index, at)| {
            *index == dropped.packet.index && (at.table, at.base) == (dropped.at.table, dropped.at.base)
        });
        let accepts = accepts.map_or(dropped.at, |(_, at)| *at);
        let who = if dropped.packet.request { "packets to" } else { "replies from" };
        let text = format!(
            "{who} {} pass today because conntrack knows their connection; untracked they don't match this rule, and {}",
            self.target,
            self.by(&dropped.at)
        );
        let remedy = everyone_passes.then(|| self.remedy(dropped));
        self.add(ObjectionKind::EstablishedOnly, &accepts, remedy, text);
    }

    fn opens(&mut self, dropped: &Dropped) {
        let text = format!(
            "today {} for some new connections to {}; untracked packets would bypass that",
            self.by(&dropped.at),
            self.target
        );
        self.add(ObjectionKind::OpensAccess, &dropped.at, None, text);
    }

    fn already(&mut self) {
        let rule = self.firewall.untracked().into_iter().next();
        let (place, rule) = rule.map_or_else(Default::default, |listed| (listed.place, listed.rule));
        self.found.push(Objection {
            kind: ObjectionKind::AlreadyUntracked,
            rule,
            place,
            text: format!("{} is already exempt", self.target),
            remedy: None,
        });
    }

    fn automatic_helper(&mut self) {
        let known = HELPER_PORTS
            .into_iter()
            .find(|(proto, port, _)| (*proto, *port) == (self.target.proto, self.target.port));
        if let Some((.., name)) = known.filter(|_| self.firewall.automatic_helpers) {
            self.found.push(Objection {
                kind: ObjectionKind::Helper,
                rule: "net.netfilter.nf_conntrack_helper = 1".to_owned(),
                place: "sysctl".to_owned(),
                text: format!(
                    "the kernel assigns the {name} helper to {} by its port; that needs tracking",
                    self.target
                ),
                remedy: None,
            });
        }
    }

    /// A router's own ephemeral ports: replies to flows it masquerades arrive with such a port as destination.
    fn translated_replies(&mut self) {
        if self.target.scope != Scope::Served || !(EPHEMERAL.0..=EPHEMERAL.1).contains(&self.target.port) {
            return;
        }
        let source_nat = listing::source_nat(&self.firewall.tables);
        if let Some(listed) = source_nat {
            self.found.push(Objection {
                kind: ObjectionKind::NatRule,
                rule: listed.rule,
                place: listed.place,
                text: format!(
                    "flows translated here can get {} as their source port; their replies would be exempt too, and not \
                     translated back",
                    self.target.port
                ),
                remedy: None,
            });
        }
    }

    fn too_much(&mut self) {
        self.found.push(Objection {
            kind: ObjectionKind::Unknown,
            rule: String::new(),
            place: String::new(),
            text: format!("the rules have too many branches to be judged for {}", self.target),
            remedy: None,
        });
    }

    /// "the policy of inet filter input drops them", "`drop` in inet filter input drops them".
    fn by(&self, at: &At) -> String {
        let table = &self.firewall.tables[at.table];
        let chain = &table.chains[at.chain];
        let place = table.place(&chain.name);
        match at.rule.map(|rule| &chain.rules[rule].text) {
            Some(rule) if rule.starts_with("-A ") => format!("`{rule}` drops them"),
            Some(rule) => format!("`{rule}` in {place} drops them"),
            None => format!("the policy of {place} drops them"),
        }
    }

    /// Accepts what passes today anyway, at the top of the chain that would drop it.
    fn remedy(&self, dropped: &Dropped) -> String {
        let table = &self.firewall.tables[dropped.at.table];
        let chain = &table.chains[dropped.at.base].name;
        let base = table.chains[dropped.at.base].base.as_ref();
        let into = base
            .is_some_and(|base| matches!(base.hook, super::ir::Hook::Prerouting | super::ir::Hook::Input));
        let loopback = self.target.scope == Scope::Loopback;
        let end = if dropped.packet.request { "dport" } else { "sport" };
        let proto = self.target.proto;
        let port = self.target.port;
        match table.tool {
            Tool::Nft => {
                let device = match (loopback, into) {
                    (true, true) => "iif lo ",
                    (true, false) => "oif lo ",
                    (false, true) => "iif != lo ",
                    (false, false) => "oif != lo ",
                };
                format!(
                    "nft insert rule {} {} {chain} {device}{proto} {end} {port} ct state untracked accept",
                    table.family, table.name
                )
            }
            tool => {
                let program = if tool == Tool::Iptables { "iptables" } else { "ip6tables" };
                let device =
                    format!("{}-{} lo", if loopback { "" } else { "! " }, if into { "i" } else { "o" });
                format!(
                    "{program} -w -t {} -I {chain} {device} -p {proto} --{end} {port} -m conntrack --ctstate UNTRACKED -j ACCEPT",
                    table.name
                )
            }
        }
    }

    fn add(&mut self, kind: ObjectionKind, at: &At, remedy: Option<String>, text: String) {
        let table = &self.firewall.tables[at.table];
        let chain = &table.chains[at.chain];
        let rule = at.rule.map_or_else(
            || {
                format!(
                    "policy {}",
                    if chain.base.as_ref().is_some_and(|base| base.drops) { "drop" } else { "accept" }
                )
            },
            |rule| chain.rules[rule].text.clone(),
        );
        let objection = Objection { kind, rule, place: table.place(&chain.name), text, remedy };
        if !self.found.contains(&objection) {
            self.found.push(objection);
        }
    }
}

#[cfg(test)]
mod tests;
