//! The judge against a plain evaluator that knows one flow at a time: for random rules, both must find the same breakage.
//! The evaluator shares no code with the walker, and every flow the rules can tell apart is tried.

use proptest::prelude::*;

use crate::firewall::ir::{
    Action, Base, Chain, Condition, End, Family, Field, Hook, Kind, Rule, RuleTable, Step, Tool, state,
};
use crate::firewall::ranges::Ranges;
use crate::firewall::{ExemptTarget, Firewall, ObjectionKind, Scope};
use crate::model::Protocol;

const PORT: u16 = 80;
/// Rules name addresses and ports from here on, so many; flows have those and one more.
const ADDRESS: u128 = 10 << 24;
const CLIENT_PORT: u128 = 40_000;
const CHOICES: u128 = 4;
const DEVICES: [&str; 3] = ["eth0", "eth1", "wg0"];
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A flow, and the packet of it in question.
#[derive(Clone, Copy, Debug)]
struct Flow {
    address: u128,
    port: u128,
    device: &'static str,
    request: bool,
    flags: u8,
    state: u8,
}

fn holds(condition: &Condition, flow: &Flow) -> bool {
    let client = |end: End| (end == End::Source) == flow.request;
    match condition {
        Condition::Family(family) => *family == Family::V4,
        Condition::In(Field::Protocol, set) => set.contains(6),
        Condition::In(Field::Address(end), set) if client(*end) => set.contains(flow.address),
        Condition::In(Field::Port(end), set) => {
            set.contains(if client(*end) { flow.port } else { PORT.into() })
        }
        Condition::TcpFlags { mask, value } => flow.flags & mask == *value,
        Condition::State(bits) => flow.state & bits != 0,
        Condition::Tracked => flow.state != state::UNTRACKED,
        Condition::Device { out, name } => {
            // Requests come in, replies go out; the other interface has no name.
            let device = if *out != flow.request { flow.device } else { "" };
            name.strip_suffix('*').map_or(device == name, |start| device.starts_with(start))
        }
        Condition::All(all) => all.iter().all(|condition| holds(condition, flow)),
        Condition::Any(any) => any.iter().any(|condition| holds(condition, flow)),
        Condition::Not(condition) => !holds(condition, flow),
        other => unreachable!("no strategy makes {other:?}"),
    }
}

/// Some(true) is accepted, Some(false) dropped, None undecided.
fn decide(chains: &[Chain], name: &str, flow: &Flow) -> Option<bool> {
    let chain = chains.iter().find(|chain| chain.name == name).expect("it is there");
    'rules: for rule in &chain.rules {
        for step in &rule.steps {
            let action = match step {
                Step::If(condition) if holds(condition, flow) => continue,
                Step::If(_) => continue 'rules,
                Step::Do(action) => action,
                Step::Case(cases) => match cases.iter().find(|(condition, _)| holds(condition, flow)) {
                    Some((_, action)) => action,
                    None => continue,
                },
            };
            match action {
                Action::Accept => return Some(true),
                Action::Drop => return Some(false),
                Action::Return => return None,
                Action::Goto(name) => return decide(chains, name, flow),
                Action::Jump(name) => {
                    if let Some(verdict) = decide(chains, name, flow) {
                        return Some(verdict);
                    }
                }
                _ => {}
            }
        }
    }
    None
}

fn passes(table: &RuleTable, flow: &Flow) -> bool {
    let hook = if flow.request { Hook::Input } else { Hook::Output };
    let mut bases: Vec<_> = table
        .chains
        .iter()
        .filter(|chain| chain.base.as_ref().is_some_and(|base| base.hook == hook))
        .collect();
    bases.sort_by_key(|chain| chain.base.as_ref().map(|base| base.priority));
    bases.into_iter().all(|chain| {
        let drops = chain.base.as_ref().is_some_and(|base| base.drops);
        decide(&table.chains, &chain.name, flow).unwrap_or(!drops)
    })
}

/// Whether a whole connection passes.
fn works(table: &RuleTable, address: u128, port: u128, device: &'static str, tracked: bool) -> bool {
    let packets = [
        (true, SYN, state::NEW),
        (false, SYN | ACK, state::ESTABLISHED),
        (true, ACK, state::ESTABLISHED),
        (false, ACK, state::ESTABLISHED),
        (true, ACK | 1, state::ESTABLISHED),
    ];
    packets.into_iter().all(|(request, flags, known)| {
        let state = if tracked { known } else { state::UNTRACKED };
        passes(table, &Flow { address, port, device, request, flags, state })
    })
}

fn breaks_somebody(table: &RuleTable, opens: bool) -> bool {
    (0..=CHOICES).any(|address| {
        (0..=CHOICES).any(|port| {
            DEVICES.into_iter().any(|device| {
                let (address, port) = (ADDRESS + address, CLIENT_PORT + port);
                let works = |tracked| works(table, address, port, device, tracked);
                works(true) != opens && works(false) == opens
            })
        })
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Source), Just(End::Destination)]
}

fn some_of(from: u128) -> impl Strategy<Value = Ranges> {
    (0..CHOICES, 0..CHOICES).prop_map(move |(a, b)| Ranges::span(from + a.min(b), from + a.max(b)))
}

fn condition() -> impl Strategy<Value = Condition> {
    let leaf = prop_oneof![
        (any::<bool>(), some_of(ADDRESS)).prop_map(|(request, set)| {
            // Of the client only: the service's address is the same for all.
            let (end, device) = if request { (End::Source, "") } else { (End::Destination, "") };
            let client = Condition::In(Field::Address(end), set);
            // Only where this end is the client's: nothing came in for a reply, nothing leaves for a request.
            Condition::All(vec![Condition::Device { out: request, name: device.to_owned() }, client])
        }),
        (end(), some_of(CLIENT_PORT)).prop_map(|(end, set)| Condition::In(Field::Port(end), set)),
        end().prop_map(|end| Condition::In(Field::Port(end), Ranges::one(PORT.into()))),
        prop_oneof![Just(state::NEW), Just(state::ESTABLISHED), Just(state::UNTRACKED), Just(6)]
            .prop_map(Condition::State),
        Just(Condition::Tracked),
        Just(Condition::TcpFlags { mask: SYN | ACK, value: SYN }),
        (any::<bool>(), prop_oneof![Just("eth0"), Just("eth1"), Just("eth*"), Just("lo")])
            .prop_map(|(out, name)| Condition::Device { out, name: name.to_owned() }),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|condition| Condition::Not(Box::new(condition))),
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Condition::All),
            proptest::collection::vec(inner, 0..3).prop_map(Condition::Any),
        ]
    })
}

fn rule(targets: &'static [&'static str]) -> impl Strategy<Value = Rule> {
    let action = || {
        let chain = proptest::sample::select(targets);
        prop_oneof![
            3 => Just(Action::Accept),
            2 => Just(Action::Drop),
            1 => Just(Action::Return),
            1 => Just(Action::Continue),
            2 => chain.clone().prop_map(|name| if name.is_empty() { Action::Continue } else { Action::Jump(name.to_owned()) }),
            1 => chain.prop_map(|name| if name.is_empty() { Action::Drop } else { Action::Goto(name.to_owned()) }),
        ]
    };
    let step = prop_oneof![
        3 => condition().prop_map(Step::If),
        1 => proptest::collection::vec((condition(), action()), 0..3).prop_map(Step::Case),
    ];
    (proptest::collection::vec(step, 0..3), action()).prop_map(|(mut steps, action)| {
        steps.push(Step::Do(action));
        Rule { steps, text: "a rule".into(), delete: None }
    })
}

fn chain(
    name: &'static str,
    hook: Option<Hook>,
    targets: &'static [&'static str],
) -> impl Strategy<Value = Chain> {
    (proptest::collection::vec(rule(targets), 0..4), any::<bool>(), -1..2).prop_map(
        move |(rules, drops, priority)| Chain {
            name: name.to_owned(),
            base: hook.map(|hook| Base { kind: Kind::Filter, hook, priority, drops }),
            rules,
        },
    )
}

fn table() -> impl Strategy<Value = RuleTable> {
    (
        chain("input", Some(Hook::Input), &["a", "b"]),
        chain("later", Some(Hook::Input), &["a", "b"]),
        chain("output", Some(Hook::Output), &["a", "b"]),
        chain("a", None, &["b"]),
        chain("b", None, &[""]),
    )
        .prop_map(|(input, later, output, a, b)| RuleTable {
            program: "nft".to_owned(),
            tool: Tool::Nft,
            family: "ip",
            name: "random".to_owned(),
            chains: vec![input, later, output, a, b],
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn an_objection_is_made_exactly_when_some_connection_breaks(table in table()) {
        let firewall = Firewall { tables: vec![table.clone()], ..Firewall::default() };
        let objections = firewall.objections(&ExemptTarget { proto: Protocol::TCP, port: PORT, scope: Scope::Served });
        let said = |kind| objections.iter().any(|objection| objection.kind == kind);
        prop_assert!(!said(ObjectionKind::Unknown), "all of it can be judged: {objections:?}");
        prop_assert_eq!(said(ObjectionKind::EstablishedOnly), breaks_somebody(&table, false), "{:#?}", objections);
    }

    #[test]
    fn a_connection_that_is_only_let_in_without_tracking_is_seen(table in table()) {
        let firewall = Firewall { tables: vec![table.clone()], ..Firewall::default() };
        let objections = firewall.objections(&ExemptTarget { proto: Protocol::TCP, port: PORT, scope: Scope::Served });
        let said = objections.iter().any(|objection| objection.kind == ObjectionKind::OpensAccess);
        // It is said of a flow whose first packet is refused today; one refused later is none to open.
        prop_assert!(!said || breaks_somebody(&table, true), "{objections:#?}");
    }
}
