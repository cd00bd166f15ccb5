//! NOTRACK: exempts flows that need no state from tracking.
//! Blocked wherever a rule needs them tracked; the item then has no commands.

use super::{ChangeKind, Draft, Item, Level, NOT_PERSISTENT, major_services};
use crate::advise::case::{Case, ServiceFacts};
use crate::advise::demand::Service;
use crate::advise::owners;
use crate::advise::whatif::Changes;
use crate::model::Direction;

pub(super) fn items(case: &Case) -> Vec<Item> {
    major_services(case)
        .filter(|(service, _)| {
            service.proto.has_ports()
                && service.port != 0
                // Forwarded flows get no commands here; that they are translated is worth saying.
                && (service.direction != Direction::Forwarded
                    || case.facts(&service.target()).is_some_and(|facts| !facts.objections.is_empty()))
        })
        .filter_map(|(service, part)| item(case, service, part))
        .collect()
}

fn item(case: &Case, service: &Service, part: f64) -> Option<Item> {
    let target = service.target();
    let facts = case.facts(&target).filter(|facts| !facts.untracked)?;
    let (risk, risk_text) = risk(target.direction);
    let mut item = Draft {
        id: format!("notrack-{}", super::super::slug(&target)),
        kind: ChangeKind::Notrack,
        title: format!("exempt {target} from tracking"),
        evidence: format!(
            "{target} accounts for {:.0} % of the entries needed, and no rule needs its state",
            part * 100.0
        ),
        change: Changes { notrack: vec![target], ..Changes::default() },
        risk,
        risk_text: risk_text.to_owned(),
    }
    .on(case);
    judge(case, facts, &mut item);
    if !item.refused.is_empty() {
        item.evidence = format!("{target} accounts for {:.0} % of the entries needed", part * 100.0);
    }
    Some(item)
}

/// What may go wrong with flows that aren't tracked.
pub(super) const fn risk(direction: Option<Direction>) -> (Level, &'static str) {
    match direction {
        Some(Direction::Loopback) => {
            (Level::Low, "NAT or `ct state established` rules added later won't match these flows")
        }
        _ => (
            Level::Medium,
            "these flows lose NAT, helpers and `ct state established`: rules added later must accept both directions by \
             port; ICMP errors no longer match them",
        ),
    }
}

/// Gives the item its commands, or the reasons why it has none.
pub(super) fn judge(case: &Case, facts: &ServiceFacts, item: &mut Item) {
    if facts.objections.is_empty() {
        match &facts.notrack {
            Some(commands) => item.commands.clone_from(commands),
            None => item.notes.push("no commands: neither nft nor iptables is installed".to_owned()),
        }
        if !facts.warnings.is_empty() {
            item.risk = Level::Medium;
            item.notes.extend(facts.warnings.iter().cloned());
        }
        item.notes.push("existing entries remain until they expire".to_owned());
        if !case.is_kept_at_boot {
            item.notes.push(NOT_PERSISTENT.to_owned());
        }
    } else {
        item.refused.clone_from(&facts.objections);
        item.notes.extend(owners::notes(facts.objections.iter().map(|objection| objection.place.as_str())));
    }
}
