//! No stateful firewall: without rules that use connection state, conntrack tracks nothing.
//! The last resort, and blocked wherever rules depend on state.

use super::{ChangeKind, Draft, Item, Level, NOT_PERSISTENT};
use crate::advise::case::Case;
use crate::advise::owners;
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
        title: "remove the rules that enable conntrack".to_owned(),
        evidence: match rules.as_slice() {
            [one] => format!("one rule enables conntrack: {one}"),
            [first, rest @ ..] => {
                format!("{} rules enable conntrack: {first}, and {} more", rules.len(), rest.len())
            }
            [] => String::new(),
        },
        change: Changes { notrack, ..Changes::default() },
        risk: Level::High,
        risk_text: "no stateful firewall on this host: filter elsewhere what it protects".to_owned(),
    }
    .on(case);
    item.change = Changes::default();
    match (&case.firewall.removal, case.firewall.objections.is_empty()) {
        (Some(commands), true) => {
            item.commands = commands.clone();
            if !case.is_kept_at_boot {
                item.notes.push(NOT_PERSISTENT.to_owned());
            }
            item.notes.push(
                "the verdict on every packet stays the same without these rules; existing entries remain until they expire"
                    .to_owned(),
            );
            item.notes.push(
                "if the rules change, run `ctwatch advise` again: nft rules are addressed by handle"
                    .to_owned(),
            );
        }
        _ => item.refused.clone_from(&case.firewall.objections),
    }
    // A tracking rule's text begins with its place.
    let places = rules.iter().filter_map(|rule| rule.split_once(": ").map(|(place, _)| place));
    let blocking = item.refused.iter().map(|objection| objection.place.raw());
    item.notes.extend(owners::notes(places.chain(blocking)));
    if item.refused.is_empty() && item.commands.now.is_empty() {
        return Vec::new();
    }
    vec![item]
}
