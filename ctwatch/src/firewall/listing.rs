//! Lists of rules: which enable conntrack, which exempt, which publish ports.
//! Whether a rule concerns a flow is decided in `judge`.

use serde::{Deserialize, Serialize};

use super::ir::{Action, Condition, EXTENSION, End, Field, Rule, RuleTable, Step};
use crate::foreign::Foreign;

/// A rule and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// "inet filter input", "iptables raw OUTPUT".
    pub place: Foreign,
    /// The rule as its tool prints it.
    pub rule: Foreign,
    /// The command that removes it, where one is known.
    pub delete: Option<String>,
}

/// A port that a rule redirects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// IP protocol; absent if the rule doesn't say.
    pub proto: Option<u8>,
    /// First and last port; 0 and 65535 if the rule doesn't say.
    pub ports: (u16, u16),
    /// Where to, as the rule has it.
    pub to: Foreign,
    /// "docker", "kube-proxy", "podman", "CNI", "nat rule".
    pub by: Foreign,
    /// "iptables nat DOCKER".
    pub place: Foreign,
    /// The rule as its tool prints it.
    pub rule: Foreign,
}

/// Every rule for which `wanted` holds.
fn listed(tables: &[RuleTable], wanted: impl Fn(&Rule) -> bool) -> Vec<Listed> {
    let mut found = Vec::new();
    for table in tables {
        for chain in &table.chains {
            let rules = chain.rules.iter().filter(|rule| wanted(rule));
            found.extend(rules.map(|rule| Listed {
                place: table.place(&chain.name),
                rule: rule.text.clone(),
                delete: rule.delete.clone(),
            }));
        }
    }
    found
}

fn does(rule: &Rule, wanted: impl Fn(&Action) -> bool) -> bool {
    rule.steps.iter().any(|step| match step {
        Step::Do(action) => wanted(action),
        Step::Case(cases) => cases.iter().any(|(_, action)| wanted(action)),
        Step::If(_) => false,
    })
}

pub fn untracked(tables: &[RuleTable]) -> Vec<Listed> {
    listed(tables, |rule| does(rule, |action| matches!(action, Action::Notrack)))
}

pub fn has_nat(tables: &[RuleTable]) -> bool {
    tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules).any(is_nat)
}

fn is_nat(rule: &Rule) -> bool {
    does(rule, |action| matches!(action, Action::Nat(nat) if nat.kind != "tproxy"))
}

/// Rules that ask for a connection's state or mark, write it, count connections or translate: each makes the kernel
/// track (nf_ct_netns_get, net/netfilter/nf_conntrack_proto.c, 6.12).
pub fn tracking(tables: &[RuleTable]) -> Vec<Listed> {
    listed(tables, tracks)
}

/// Whether it is such a rule.
pub fn tracks(rule: &Rule) -> bool {
    let writes = |action: &Action| {
        matches!(action, Action::MarkFromConnection | Action::WriteConnection | Action::Helper(_))
    };
    let asks = rule.steps.iter().any(|step| match step {
        Step::If(condition) => asks(condition),
        Step::Case(cases) => cases.iter().any(|(condition, _)| asks(condition)),
        Step::Do(_) => false,
    });
    asks || is_nat(rule) || does(rule, writes)
}

fn asks(condition: &Condition) -> bool {
    match condition {
        Condition::State(_)
        | Condition::Tracked
        | Condition::Translated(_)
        | Condition::Original
        | Condition::CountsConnections(_) => true,
        Condition::All(all) | Condition::Any(all) => all.iter().any(asks),
        Condition::Not(condition) => asks(condition),
        _ => false,
    }
}

pub fn published(tables: &[RuleTable]) -> Vec<Published> {
    let mut found = Vec::new();
    for table in tables {
        for chain in &table.chains {
            for rule in &chain.rules {
                let Some(nat) = rule.steps.iter().find_map(|step| match step {
                    Step::Do(Action::Nat(nat)) if nat.is_destination() && nat.kind != "tproxy" => Some(nat),
                    _ => None,
                }) else {
                    continue;
                };
                let ports =
                    intervals(rule, Field::Port(End::Destination)).unwrap_or_else(|| vec![(0, 65_535)]);
                let proto = intervals(rule, Field::Protocol).and_then(|list| match list[..] {
                    [(low, high)] if low == high => u8::try_from(low).ok(),
                    _ => None,
                });
                for (low, high) in ports {
                    let port = |number: u128| u16::try_from(number).unwrap_or(u16::MAX);
                    found.push(Published {
                        proto,
                        ports: (port(low), port(high)),
                        to: nat.to.clone().unwrap_or_default().into(),
                        by: by(&table.name, &chain.name).unwrap_or("nat rule").into(),
                        place: table.place(&chain.name),
                        rule: rule.text.clone(),
                    });
                }
            }
        }
    }
    found
}

/// The numbers a rule asks for at its top level.
fn intervals(rule: &Rule, field: Field) -> Option<Vec<(u128, u128)>> {
    fn find(condition: &Condition, field: Field) -> Option<Vec<(u128, u128)>> {
        match condition {
            Condition::In(of, set) if *of == field => Some(set.intervals().to_vec()),
            Condition::All(all) => all.iter().find_map(|condition| find(condition, field)),
            _ => None,
        }
    }
    rule.steps.iter().find_map(|step| match step {
        Step::If(condition) => find(condition, field),
        _ => None,
    })
}

/// Which program made a chain, by its naming scheme.
pub fn by(table: &str, chain: &str) -> Option<&'static str> {
    const MAKERS: [(&str, &str); 8] = [
        ("DOCKER", "docker"),
        ("KUBE-", "kube-proxy"),
        ("CILIUM", "cilium"),
        ("CNI-", "CNI"),
        ("NETAVARK", "podman"),
        ("nv_", "podman"),
        ("cali-", "calico"),
        ("LIBVIRT", "libvirt"),
    ];
    match table {
        "kube-proxy" => Some("kube-proxy"),
        "netavark" => Some("podman"),
        "docker-bridges" => Some("docker"),
        _ => MAKERS.into_iter().find(|(start, _)| chain.starts_with(start)).map(|(_, maker)| maker),
    }
}

/// Whether nft shows rules of iptables-nft that it can't print in full.
pub fn has_extensions(tables: &[RuleTable]) -> bool {
    let rules = tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    rules.flat_map(|rule| &rule.steps).any(|step| match step {
        Step::If(Condition::Unknown(_, text)) | Step::Do(Action::Unknown(text)) => {
            text.starts_with(EXTENSION)
        }
        _ => false,
    })
}
