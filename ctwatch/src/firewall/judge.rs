//! What would break, or open up, if these flows were exempted. Every flow that works today is run through the rules
//! again without conntrack. What can't be judged is an objection, never silence.

use std::collections::BTreeSet;

use super::ends;
use super::ipvs::VirtualService;
use super::ir::{Action, Condition, End, Family, Field, Rule, Step, Target, Tool, state};
use super::path::{At, Packet, Path, Space, Way};
use super::ranges::Ranges;
use super::translation::{self, Asked, Caught};
use super::walk::{Dropped, Rules, Run, TooMuch, Walker, World};
use super::{ExemptTarget, Firewall, Objection, ObjectionKind, Scope, index, listing};
use crate::foreign::Foreign;
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
/// The families to ask about.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// So many objections of a kind are told; the others are like them.
const TOLD: usize = 4;

pub fn objections(firewall: &Firewall, target: &ExemptTarget) -> Vec<Objection> {
    let mut case = Case {
        firewall,
        target,
        found: Vec::new(),
        flows: 0,
        exempt: 0,
        half: false,
        translating: BTreeSet::new(),
    };
    case.not_read();
    if !case.found.is_empty() {
        return case.found;
    }
    for order in &firewall.index().orders {
        let mut walker = Walker::new(firewall, order);
        let all = FAMILIES.into_iter().try_for_each(|family| case.family(&mut walker, family));
        if let Err(TooMuch) = all {
            case.too_much();
            break;
        }
    }
    if case.flows == 0 {
        if case.translating.is_empty() {
            case.none_passes();
        }
    } else if case.flows == case.exempt && case.translating.is_empty() {
        // Whatever else speaks against it would do so today.
        case.found.clear();
        case.already();
        return case.found;
    } else if case.half || case.exempt > 0 {
        case.half();
    }
    case.automatic_helper();
    case.virtual_service();
    if target.scope != Scope::Loopback {
        case.proxied();
        case.bridged();
        case.in_a_vrf();
    }
    case.found.sort_by_key(|objection| objection.kind);
    let mut told = (None, 0);
    case.found.retain(|objection| {
        told = if told.0 == Some(objection.kind) { (told.0, told.1 + 1) } else { (Some(objection.kind), 1) };
        told.1 <= TOLD
    });
    case.found
}

struct Case<'a> {
    firewall: &'a Firewall,
    target: &'a ExemptTarget,
    found: Vec<Objection>,
    /// Kinds of flows that work today, and how many of them are exempt already.
    flows: usize,
    exempt: usize,
    /// Some have one exempt direction.
    half: bool,
    /// The rules that translate these flows themselves.
    translating: BTreeSet<(usize, usize, Option<usize>)>,
}

/// Flows that NOTRACK would exempt.
struct Class {
    way: Way,
    start: Path,
    /// Those that were asked for; else their mirror image, which the same rules catch: clients that have the port.
    asked: bool,
    /// Whether clients have these ports unless they mean harm.
    expected: bool,
    /// To an address that many share: nothing comes back from there.
    to_many: bool,
}

/// All flows of one family of which the rules would catch every packet. Over lo both addresses are of the loopback network, or
/// both are others of this host's.
fn classes(firewall: &Firewall, target: &ExemptTarget, family: Family) -> Vec<Class> {
    let peers = ends::peers(family);
    // 6to4 is deprecated by RFC 7526; firewalld rejects much of it.
    let peers = if family == Family::V6 {
        peers.without(&Ranges::span(0x2002 << 112, (0x2003 << 112) - 1))
    } else {
        peers
    };
    let loopback = ends::loopback(family);
    let known = firewall.host.own(family);
    let own = known.map_or_else(|| peers.clone(), |own| own.without(&loopback));
    let others = known.map_or_else(|| peers.clone(), |own| peers.without(own));
    let port = Ranges::one(target.port.into());
    let any = Ranges::span(1, 65_535);
    let (own_ports, remote_ports) =
        (ends::own_ports(target.proto, firewall.local_ports), ends::remote_ports(target.proto));
    let class = |way, client: &Ranges, server: &Ranges, ports: (&Ranges, &Ranges), asked, expected| Class {
        way,
        start: Path::start(Space {
            client: client.clone(),
            server: server.clone(),
            client_port: ports.0.clone(),
            server_port: ports.1.clone(),
            router: peers.clone(),
        }),
        asked,
        expected,
        to_many: false,
    };
    let served = |ports, asked, expected| class(Way::Served, &others, &own, ports, asked, expected);
    let outgoing = |ports, asked, expected| class(Way::Outgoing, &own, &others, ports, asked, expected);
    let remote_has = remote_ports.contains(target.port.into());
    let own_has = own_ports.contains(target.port.into());
    let mut classes = match target.scope {
        Scope::Loopback => {
            let looped = |ports, asked, expected| {
                [&loopback, &own].map(|all| class(Way::Loopback, all, all, ports, asked, expected))
            };
            let mut classes = Vec::from(looped((&own_ports, &port), true, true));
            classes.extend(looped((&port, &any), false, own_has));
            classes
        }
        Scope::Served => {
            vec![served((&remote_ports, &port), true, true), outgoing((&port, &any), false, own_has)]
        }
        Scope::Outgoing => {
            vec![outgoing((&own_ports, &port), true, true), served((&port, &any), false, remote_has)]
        }
    };
    if target.proto != Protocol::TCP && target.scope != Scope::Loopback {
        // What leaves for a group is caught like all that leaves.
        let (ports, asked) = match target.scope {
            Scope::Outgoing => ((&own_ports, &port), true),
            _ => ((&port, &any), false),
        };
        classes.extend(ends::groups(family).iter().map(|(_, group)| Class {
            to_many: true,
            ..class(Way::Outgoing, &own, group, ports, asked, asked || own_has)
        }));
    }
    classes.retain(|class| !class.start.client.is_empty() && !class.start.server.is_empty());
    classes
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// The packets without which there is no flow. What comes behind may pass or not.
fn packets(target: &ExemptTarget, family: Family) -> Vec<Packet> {
    let tcp = target.proto == Protocol::TCP;
    let packet = |index, request, flags, state| Packet {
        index,
        family,
        protocol: target.proto.0,
        request,
        flags: tcp.then_some(flags),
        icmp: None,
        state,
    };
    vec![
        packet(0, true, SYN, state::NEW),
        packet(1, false, SYN | ACK, state::ESTABLISHED),
        packet(2, true, ACK, state::ESTABLISHED),
    ]
}

/// The kinds of flows by which packets of them there are. Only TCP needs all: elsewhere a question may be the only packet, may
/// have an answer and nothing more, and the next one may come when the entry has gone.
fn flows(target: &ExemptTarget, family: Family) -> Vec<Vec<Packet>> {
    let whole = packets(target, family);
    if target.proto == Protocol::TCP {
        return vec![whole];
    }
    let mut anew = whole.clone();
    anew[2].state = state::NEW;
    vec![whole[..1].to_vec(), whole[..2].to_vec(), whole, anew]
}

/// Packets of an established TCP connection by their flags, which rules may name one by one: data, its end, its abrupt end. One that
/// is refused today is missed by nobody.
fn with_other_flags(target: &ExemptTarget, family: Family) -> Vec<Packet> {
    let first = packets(target, family)[0];
    let all = [ACK, PSH | ACK, FIN | ACK, FIN | PSH | ACK, RST, RST | ACK];
    let both = [true, false].into_iter().flat_map(|request| all.map(|flags| (request, flags)));
    both.enumerate()
        .map(|(number, (request, flags))| Packet {
            index: 10 + number,
            request,
            flags: Some(flags),
            state: state::ESTABLISHED,
            ..first
        })
        .collect()
}

/// "This packet is too big": a router's word about a packet of the flow.
fn too_big(request: bool, family: Family) -> Packet {
    Packet {
        index: 9,
        family,
        protocol: if family == Family::V4 { Protocol::ICMP.0 } else { Protocol::ICMPV6.0 },
        request,
        flags: None,
        icmp: Some(if family == Family::V4 { (3, 4) } else { (2, 0) }),
        state: state::RELATED,
    }
}

fn tracked(way: Way) -> World<'static> {
    World { tracked: true, way, hooks: None }
}

fn untracked(way: Way) -> World<'static> {
    World { tracked: false, way, hooks: None }
}

impl Case<'_> {
    fn family(&mut self, walker: &mut Walker<'_>, family: Family) -> Result<(), TooMuch> {
        let flows = flows(self.target, family);
        for class in classes(self.firewall, self.target, family) {
            let kinds = if class.to_many { 1 } else { flows.len() };
            for flow in &flows[..kinds] {
                self.class(walker, &class, flow)?;
                if self.firewall.has_helpers() && class.asked {
                    // A helper may have announced them.
                    let mut expected = flow.clone();
                    expected[0].state = state::RELATED;
                    self.class(walker, &class, &expected)?;
                }
            }
        }
        if !self.translating.is_empty() {
            // They are translated themselves: there is no need to look for others that are.
            return Ok(());
        }
        let asked = Asked {
            target: self.target,
            host: &self.firewall.host,
            ephemeral: self.firewall.local_ports,
            family,
            packet: packets(self.target, family)[0],
        };
        for caught in translation::caught(walker, self.firewall, &asked)? {
            self.never_translated_back(&caught);
        }
        Ok(())
    }

    fn class(&mut self, walker: &mut Walker<'_>, class: &Class, flow: &[Packet]) -> Result<(), TooMuch> {
        let way = class.way;
        let mut passed = Vec::new();
        if class.expected {
            let starts = self.halves(walker, class, flow)?;
            let today = walker.run(&tracked(way), flow, starts)?;
            let everyone_passes = today.dropped.is_empty();
            for path in &today.translated {
                if self.behind_translation(walker, way, flow, path)?.is_none_or(|run| !run.passed.is_empty())
                {
                    self.translation(path);
                }
            }
            for path in &today.passed {
                if class.asked && !class.to_many {
                    self.flows += 1;
                    self.exempt += usize::from(path.exempted == flow.len());
                    self.half |= path.half;
                }
                self.side_effects(path);
            }
            passed = today.passed;
            for path in &passed {
                // Each packet by itself: one that is dropped would hide what happens to the next.
                for packet in flow {
                    self.untracked_too(walker, class, path, packet, everyone_passes)?;
                }
            }
            if self.target.proto == Protocol::TCP && self.firewall.index().asks_flags {
                for packet in with_other_flags(self.target, flow[0].family) {
                    let again = passed.iter().map(Path::again).collect();
                    let today = walker.run(&tracked(way), &[packet], again)?;
                    for path in &today.passed {
                        self.untracked_too(walker, class, path, &packet, today.dropped.is_empty())?;
                    }
                }
            }
        }
        // Anybody elsewhere may send from that port; of this host's own only whoever does it in good faith counts.
        if class.asked || way == Way::Served || class.expected {
            self.opens(walker, class, flow)?;
        }
        if way != Way::Loopback && class.asked && !class.to_many {
            self.icmp_errors(walker, class, flow[0].family, &passed)?;
        }
        Ok(())
    }

    /// Whether a packet that passes today passes untracked.
    fn untracked_too(
        &mut self,
        walker: &mut Walker<'_>,
        class: &Class,
        today: &Path,
        packet: &Packet,
        everyone_passes: bool,
    ) -> Result<(), TooMuch> {
        let after = walker.run(&untracked(class.way), &[*packet], vec![today.again()])?;
        for path in &after.passed {
            self.side_effects(path);
        }
        for (way, dropped) in &after.dropped {
            // Dropped whatever the answer is: then it doesn't matter that it isn't known.
            let may_pass = after.passed.iter().any(|passed| passed.may_be_of_the_flow_of(way));
            match way.gambled.or(way.assumed) {
                Some(at) if may_pass => self.may_break(&at, dropped),
                _ => self.breaks(class, today, dropped, everyone_passes),
            }
        }
        Ok(())
    }

    /// What becomes of a flow's first packet behind the translation of its source; None where its destination changes, and
    /// with that its way. Of a flow that is dropped there nothing is lost, and more is let in if it goes untracked.
    fn behind_translation(
        &self,
        walker: &mut Walker<'_>,
        way: Way,
        flow: &[Packet],
        path: &Path,
    ) -> Result<Option<Run>, TooMuch> {
        if path.nat.as_ref().is_none_or(|(_, nat)| nat.is_destination() || nat.kind == "netmap") {
            return Ok(None);
        }
        walker.run_by(Rules::All, &tracked(way), &flow[..1], vec![path.again()]).map(Some)
    }

    /// The flows by what of them is exempt today.
    fn halves(&self, walker: &mut Walker<'_>, class: &Class, flow: &[Packet]) -> Result<Vec<Path>, TooMuch> {
        if !self.firewall.index().exempts {
            return Ok(vec![class.start.clone()]);
        }
        let all = walker.run(&tracked(class.way), flow, vec![class.start.clone()])?;
        let ended = all.dropped.into_iter().map(|(path, _)| path).chain(all.translated);
        let mut starts: Vec<Path> = Vec::new();
        for path in all.passed.into_iter().chain(ended) {
            let mut again = path.again();
            again.half = path.exempted > 0 && path.exempted < flow.len();
            if !starts.contains(&again) {
                starts.push(again);
            }
        }
        Ok(starts)
    }

    /// Flows that pass only without tracking.
    fn opens(&mut self, walker: &mut Walker<'_>, class: &Class, flow: &[Packet]) -> Result<(), TooMuch> {
        let after = walker.run(&untracked(class.way), flow, vec![class.start.clone()])?;
        for after in &after.passed {
            let today = walker.run(&tracked(class.way), flow, vec![after.again()])?;
            for (path, dropped) in &today.dropped {
                // What goes by chance in both worlds is no different in one of them.
                let may_pass = || today.passed.iter().any(|passed| passed.may_be_of_the_flow_of(path));
                let differs = path.differs.or(after.differs).is_some();
                let by_chance = path.gambled.is_some() && after.gambled.is_some() && !differs;
                if !(by_chance && may_pass()) {
                    self.opened(class, dropped);
                }
            }
            for path in &today.translated {
                if !class.expected {
                    // An attacker would reach what is hidden behind the translation.
                    self.uncovered(walker, flow, path)?;
                }
                let run = self.behind_translation(walker, class.way, flow, path)?.unwrap_or_default();
                if run.passed.is_empty() {
                    run.dropped.iter().for_each(|(_, dropped)| self.opened(class, dropped));
                }
            }
        }
        Ok(())
    }

    fn icmp_errors(
        &mut self,
        walker: &mut Walker<'_>,
        class: &Class,
        family: Family,
        flows: &[Path],
    ) -> Result<(), TooMuch> {
        let error = [too_big(class.way == Way::Served, family)];
        for path in flows {
            for told in walker.run(&tracked(class.way), &error, vec![path.again()])?.passed {
                for (_, dropped) in walker.run(&untracked(class.way), &error, vec![told.again()])?.dropped {
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

    fn translation(&mut self, path: &Path) {
        let Some((at, nat)) = &path.nat else { return };
        if self.translating.len() > TOLD || !self.translating.insert(at.rule()) {
            return;
        }
        let table = &self.firewall.tables[at.table];
        let maker = listing::by(&table.name, &table.chains[at.chain].name);
        let to = nat.to.as_deref().map(|to| format!(" to {}", Foreign::from(to))).unwrap_or_default();
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

    /// Flows that a rule sends elsewhere, where some are refused, though untracked ones would reach this host itself.
    fn uncovered(&mut self, walker: &mut Walker<'_>, flow: &[Packet], path: &Path) -> Result<(), TooMuch> {
        let Some((at, nat)) = path.nat.as_ref().filter(|(_, nat)| nat.is_destination()) else {
            return Ok(());
        };
        if self.found.iter().any(|objection| objection.kind.forbids()) {
            return Ok(());
        }
        let own = self.firewall.host.own(flow[0].family);
        let stays = match (&nat.addresses, own) {
            (Target::Own, _) => true,
            (Target::Within(set), Some(own)) => set.meets(own),
            _ => false,
        };
        let way = if stays { Way::Served } else { Way::Forwarded };
        if walker.run_by(Rules::All, &tracked(way), flow, vec![path.again()])?.dropped.is_empty() {
            return Ok(());
        }
        let text = format!(
            "today this {} rule sends new connections elsewhere, where some are refused; untracked ones from clients whose own port is that of {} would reach \
             this host itself",
            nat.kind, self.target
        );
        self.add(ObjectionKind::OpensAccess, at, None, text);
        Ok(())
    }

    fn never_translated_back(&mut self, caught: &Caught) {
        let Caught { at, nat, first } = caught;
        let table = &self.firewall.tables[at.table];
        let maker = listing::by(&table.name, &table.chains[at.chain].name);
        let to = nat.to.as_deref().map(|to| format!(" to {}", Foreign::from(to))).unwrap_or_default();
        let by = maker.map_or_else(
            || format!("this {} rule", nat.kind),
            |maker| format!("{maker}'s {} rule", nat.kind),
        );
        let text = if *first {
            format!(
                "{by}{to} also translates flows that the exemption of {} would catch: untracked packets aren't translated",
                self.target
            )
        } else {
            format!(
                "replies to flows that {by}{to} translates look like packets of {}: exempt, they would never be translated back, and \
                 those connections would time out",
                self.target
            )
        };
        self.add(ObjectionKind::NatRule, at, None, text);
    }

    fn side_effects(&mut self, path: &Path) {
        // iptables' leaves alone what is exempt, and nft's NOTRACK comes first.
        let spares = |at: &At| {
            self.firewall.tables[at.table].tool != Tool::Nft && self.firewall.preferred_tool() == Tool::Nft
        };
        if let Some(at) = path.template.as_ref().filter(|at| !spares(at)) {
            self.add(ObjectionKind::Unknown, at, None, format!(
                "this rule gives packets of {} a conntrack zone or another setting of conntrack's: with that a packet is tracked whatever \
                 NOTRACK says",
                self.target
            ));
        }
        if let Some(at) = path.template.as_ref().filter(|at| path.zones_differ && spares(at)) {
            self.add(ObjectionKind::Unknown, at, None, format!(
                "this rule gives some packets of {} another conntrack zone than the others: their connection isn't found there, so what \
                 rules make of them today isn't known",
                self.target
            ));
        }
        if let Some(at) = &path.queued {
            self.add(ObjectionKind::Unknown, at, None,
                "a program decides on these packets here; what it makes of untracked ones, and whether it is still asked about new \
                 connections, is unknown".to_owned());
        }
        if let Some((at, what)) = &path.unknown {
            self.add(
                ObjectionKind::Unknown,
                at,
                None,
                format!(
                    "what this rule does to {} isn't understood: {}",
                    self.target,
                    Foreign::from(what.as_str())
                ),
            );
        }
        if let Some((at, name)) = &path.helper {
            let name = Foreign::from(name.as_str());
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

    fn breaks(&mut self, class: &Class, today: &Path, dropped: &Dropped, everyone_passes: bool) {
        let accepts = today.accepted.iter().find(|(index, at)| {
            *index == dropped.packet.index && (at.table, at.base) == (dropped.at.table, dropped.at.base)
        });
        let accepts = accepts.map_or(dropped.at, |(_, at)| *at);
        let who = match (class.asked, dropped.packet.request) {
            (true, true) => "packets to",
            (true, false) => "replies from",
            (false, true) => "packets of other clients, whose own port is that of",
            (false, false) => "replies to other clients, whose own port is that of",
        };
        let text = format!(
            "{who} {} pass today because conntrack knows their connection; untracked they don't match this rule, and {}",
            self.target,
            self.by(&dropped.at)
        );
        // To accept whatever comes from a port would let anybody in who sends from it.
        let lets_in_anybody = class.way == Way::Outgoing && !dropped.packet.request;
        let remedy =
            (everyone_passes && class.asked && !lets_in_anybody).then(|| self.remedy(dropped)).flatten();
        self.add(ObjectionKind::EstablishedOnly, &accepts, remedy, text);
    }

    fn opened(&mut self, class: &Class, dropped: &Dropped) {
        let what = if class.asked { "to" } else { "to other ports from clients whose own port is that of" };
        let text = format!(
            "today {} for some new connections {what} {}; untracked packets would bypass that",
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
                rule: "net.netfilter.nf_conntrack_helper = 1".into(),
                place: "sysctl".into(),
                text: format!(
                    "the kernel assigns the {name} helper to {} by its port; that needs tracking",
                    self.target
                ),
                remedy: None,
            });
        }
    }

    /// IPVS translates without a rule: what it balances comes and goes by these ports.
    fn virtual_service(&mut self) {
        let target = self.target;
        let is_meant = |service: &&VirtualService| {
            service.proto.is_none_or(|proto| proto == target.proto)
                && (service.ports.is_empty() || service.ports.contains(&target.port))
        };
        if let Some(service) = self.firewall.virtual_services.iter().find(is_meant) {
            self.found.push(Objection {
                kind: ObjectionKind::PublishedPort,
                rule: service.text.as_str().into(),
                place: "ipvs".into(),
                text: format!(
                    "IPVS balances {target}: its packets may need to be translated, which needs tracking"
                ),
                remedy: None,
            });
        }
    }

    /// A transparent proxy's packets have this host's side where others' addresses are: replies to clients leave from the port that
    /// was asked, its own questions come back to addresses that are not local. Half of such a flow would be caught.
    fn proxied(&mut self) {
        let firewall = self.firewall;
        for (table, of) in firewall.tables.iter().enumerate() {
            for (chain, of) in of.chains.iter().enumerate() {
                let meets = |rule: &Rule| is_of_a_proxy(rule) && may_meet(rule, self.target);
                if let Some(rule) = of.rules.iter().position(meets) {
                    let at = At { table, chain, rule: Some(rule), base: chain };
                    let text = format!(
                        "a transparent proxy's packets look like those of {}: exempt, one direction of its connections would be \
                         tracked and the other not",
                        self.target
                    );
                    self.add(ObjectionKind::NatRule, &at, None, text);
                }
            }
        }
    }

    fn bridged(&mut self) {
        if let Some((place, rule)) = &self.firewall.bridged {
            self.found.push(Objection {
                kind: ObjectionKind::Unknown,
                rule: rule.as_str().into(),
                place: place.as_str().into(),
                text: format!(
                    "with this rule packets are tracked as they pass a bridge, before NOTRACK: those of {} that come by one would \
                     keep their entries, and their replies would not belong to them",
                    self.target
                ),
                remedy: None,
            });
        }
    }

    /// fib_lookup without the VRF's table: nft_fib4_eval_type and addrtype ask by the device that a packet came by only in newer kernels.
    fn in_a_vrf(&mut self) {
        if let Some(name) = self.firewall.host.vrfs().first() {
            self.found.push(Objection {
                kind: ObjectionKind::Unknown,
                rule: name.as_str().into(),
                place: "device".into(),
                text: format!(
                    "this host has a VRF: many kernels don't call the addresses of its devices local, so that requests of {} that come by \
                     it would be tracked and their replies not",
                    self.target
                ),
                remedy: None,
            });
        }
    }

    /// Rules that couldn't be read may be in the way.
    fn not_read(&mut self) {
        let target = self.target;
        self.found.extend(self.firewall.unread.iter().map(|note| Objection {
            kind: ObjectionKind::Unknown,
            rule: Foreign::default(),
            place: note.tool.clone().into(),
            text: format!("whether a rule needs {target} tracked is unknown: {}", note.text),
            remedy: None,
        }));
    }

    fn none_passes(&mut self) {
        if !self.found.iter().any(|objection| objection.kind.forbids()) {
            self.found.push(Objection {
                kind: ObjectionKind::Unknown,
                rule: Foreign::default(),
                place: Foreign::default(),
                text: format!(
                    "no rule lets {} pass as far as they are understood, so what they do to these flows isn't known",
                    self.target
                ),
                remedy: None,
            });
        }
    }

    /// One direction is exempt already, or some flows are.
    fn half(&mut self) {
        let listed = self.firewall.untracked();
        let rules: Vec<String> =
            listed.iter().take(TOLD).map(|listed| format!("{}: {}", listed.place, listed.rule)).collect();
        self.found.push(Objection {
            kind: ObjectionKind::HalfUntracked,
            rule: rules.join("; ").into(),
            place: Foreign::default(),
            text: format!(
                "a part of {} is exempt already: the packets of the other part make entries or are invalid; the commands add what is missing",
                self.target
            ),
            remedy: None,
        });
    }

    fn too_much(&mut self) {
        self.found.push(Objection {
            kind: ObjectionKind::Unknown,
            rule: Foreign::default(),
            place: Foreign::default(),
            text: format!(
                "the rules branch too much to be followed for {}: what else they do is unknown",
                self.target
            ),
            remedy: None,
        });
    }

    /// "the policy of inet filter input drops them", "`drop` in inet filter input drops them".
    fn by(&self, at: &At) -> String {
        let table = &self.firewall.tables[at.table];
        let chain = &table.chains[at.chain];
        let place = table.place(&chain.name);
        match at.rule.map(|rule| &chain.rules[rule].text) {
            Some(rule) if rule.raw().starts_with("-A ") => format!("`{rule}` drops them"),
            Some(rule) => format!("`{rule}` in {place} drops them"),
            None => format!("the policy of {place} drops them"),
        }
    }

    /// Accepts what passes today anyway, at the top of the chain that would drop it.
    /// None where a name can't be part of a command: whoever owns a netns may give a chain any name.
    fn remedy(&self, dropped: &Dropped) -> Option<String> {
        let table = &self.firewall.tables[dropped.at.table];
        let chain = &table.chains[dropped.at.base].name;
        if !super::nft::is_plain(&table.name) || !super::nft::is_plain(chain) {
            return None;
        }
        let base = table.chains[dropped.at.base].base.as_ref();
        let into = base
            .is_some_and(|base| matches!(base.hook, super::ir::Hook::Prerouting | super::ir::Hook::Input));
        let loopback = self.target.scope == Scope::Loopback;
        let end = if dropped.packet.request { "dport" } else { "sport" };
        let proto = self.target.proto;
        let port = self.target.port;
        Some(match table.tool {
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
        })
    }

    fn add(&mut self, kind: ObjectionKind, at: &At, remedy: Option<String>, text: String) {
        let table = &self.firewall.tables[at.table];
        let chain = &table.chains[at.chain];
        let drops = chain.base.as_ref().is_some_and(|base| base.drops);
        let rule = match at.rule {
            Some(rule) => chain.rules[rule].text.clone(),
            None => if drops { "policy drop" } else { "policy accept" }.into(),
        };
        let objection = Objection { kind, rule, place: table.place(&chain.name), text, remedy };
        let is_same = |other: &&mut Objection| {
            (other.kind, &other.rule, &other.place, &other.text)
                == (objection.kind, &objection.rule, &objection.place, &objection.text)
        };
        match self.found.iter_mut().find(is_same) {
            // What would let in too much for some is no remedy for others.
            Some(other) if other.remedy != objection.remedy => other.remedy = None,
            Some(_) => {}
            None => self.found.push(objection),
        }
    }
}

/// Whether a rule gives packets to a socket that isn't bound to where they go.
fn is_of_a_proxy(rule: &Rule) -> bool {
    let to_socket = |condition: &Condition| match condition {
        Condition::Unknown(_, text) => {
            text.starts_with("-m socket") || text.contains(r#""socket":{"key":"transparent""#)
        }
        _ => false,
    };
    rule.steps.iter().any(|step| {
        index::conditions(step).any(|condition| index::has(condition, &to_socket))
            || index::actions(step).any(|action| matches!(action, Action::Nat(nat) if nat.kind == "tproxy"))
    })
}

/// Whether the rule's own conditions leave it open that it meets packets of this port.
fn may_meet(rule: &Rule, target: &ExemptTarget) -> bool {
    let holds = |end: End| {
        rule.steps.iter().all(|step| match step {
            Step::If(condition) => may_hold(condition, target, end),
            Step::Do(_) | Step::Case(_) => true,
        })
    };
    holds(End::Destination) || (target.scope == Scope::Outgoing && holds(End::Source))
}

/// Whether it can hold for a packet that has the port at this end.
fn may_hold(condition: &Condition, target: &ExemptTarget, end: End) -> bool {
    match condition {
        Condition::In(Field::Protocol, set) => set.contains(target.proto.0.into()),
        Condition::In(Field::Port(of), set) if *of == end => set.contains(target.port.into()),
        Condition::All(all) => all.iter().all(|one| may_hold(one, target, end)),
        Condition::Any(any) => any.iter().any(|one| may_hold(one, target, end)),
        Condition::Not(condition) => match &**condition {
            Condition::In(Field::Protocol, set) => !set.contains(target.proto.0.into()),
            Condition::In(Field::Port(of), set) if *of == end => !set.contains(target.port.into()),
            _ => true,
        },
        _ => true,
    }
}

#[cfg(test)]
mod tests;
