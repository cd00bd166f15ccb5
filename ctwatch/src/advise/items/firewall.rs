//! No stateful firewall: without a rule that asks for state, conntrack tracks nothing.
//! The last resort, and refused wherever rules depend on state.

use super::{ChangeKind, Draft, ELSEWHERE, Item, Level};
use crate::advise::case::Case;
use crate::advise::target::ServiceTarget;
use crate::advise::whatif::Changes;

pub(super) fn items(case: &Case) -> Vec<Item> {
    let rules = &case.firewall.tracking;
    if rules.is_empty() || case.demand.services.is_empty() {
        return Vec::new();
    }
    // Every service untracked.
    let notrack: Vec<ServiceTarget> = case.demand.services.iter().map(|service| service.target()).collect();
    let mut item = Draft {
        id: "firewall".to_owned(),
        kind: ChangeKind::Firewall,
        title: "take away the rules that make conntrack track".to_owned(),
        evidence: match rules.as_slice() {
            [one] => format!("one rule makes the kernel track: {one}"),
            [first, rest @ ..] => {
                format!("{} rules make the kernel track: {first}, and {} more", rules.len(), rest.len())
            }
            [] => String::new(),
        },
        change: Changes { notrack, ..Changes::default() },
        risk: Level::High,
        risk_text: "the host is without a stateful firewall: what it guards must be filtered elsewhere"
            .to_owned(),
    }
    .on(case);
    item.change = Changes::default();
    match (&case.firewall.removal, case.firewall.objections.is_empty()) {
        (Some(commands), true) => {
            item.commands = commands.clone();
            if !case.netns_prefix.is_empty() {
                item.notes.push(ELSEWHERE.to_owned());
            }
            item.notes.push(
                "these rules decide nothing that others don't; entries that exist stay until they expire"
                    .to_owned(),
            );
            item.notes.push(
                "if the rules have changed since, ask anew: nft's are named by their handles".to_owned(),
            );
        }
        _ => item.refused.clone_from(&case.firewall.objections),
    }
    if item.refused.is_empty() && item.commands.now.is_empty() {
        return Vec::new();
    }
    vec![item]
}
