//! NOTRACK: exempts flows that need no state from tracking.
//! Blocked wherever a rule needs them tracked; the item then has no commands.

use super::{ChangeKind, Draft, Item, Level, NOT_PERSISTENT, major_services};
use crate::advise::case::{Case, ServiceFacts};
use crate::advise::owners;
use crate::advise::target::ServiceTarget;
use crate::advise::whatif::Changes;
use crate::model::{Direction, TimeoutKind};
use crate::text::counted;

pub(super) fn items(case: &Case) -> Vec<Item> {
    let mut items: Vec<Item> = major_services(case)
        .filter(|(service, _)| {
            service.proto.has_ports()
                && service.port != 0
                // Forwarded flows get no commands here; that they are translated is worth saying.
                && (service.direction != Direction::Forwarded
                    || case.facts(&service.target()).is_some_and(|facts| !facts.objections.is_empty()))
        })
        .filter_map(|(service, part)| {
            item(
                case,
                service.target(),
                format!("{} accounts for {:.0} % of the entries needed", service.target(), part * 100.0),
            )
        })
        .collect();
    for target in &case.asked {
        let is_there = items.iter().any(|item| item.change.notrack.contains(target));
        let has_way = !matches!(target.direction, None | Some(Direction::Forwarded));
        if !is_there && has_way && target.proto.has_ports() && target.port != 0 {
            let small = case.demand.services.iter().any(|service| service.target() == *target);
            let evidence = if small { "needs few entries" } else { "was asked for; no entry of it was seen" };
            items.extend(item(case, *target, format!("{target} {evidence}")));
        }
    }
    items
}

fn item(case: &Case, target: ServiceTarget, evidence: String) -> Option<Item> {
    let facts = case.facts(&target).filter(|facts| !facts.untracked)?;
    let (risk, risk_text) = risk(target.direction);
    let mut item = Draft {
        id: format!("notrack-{}", super::super::slug(&target)),
        kind: ChangeKind::Notrack,
        title: format!("exempt {target} from tracking"),
        evidence,
        change: Changes { notrack: vec![target], ..Changes::default() },
        risk,
        risk_text: risk_text.to_owned(),
    }
    .on(case);
    judge(case, facts, &mut item);
    if item.refused.is_empty() {
        item.evidence.push_str(", and no rule needs its state");
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

/// How many connections of the service have an entry that is established.
fn established(case: &Case, target: Option<&ServiceTarget>) -> u64 {
    let services = case.demand.services.iter().filter(|service| Some(&service.target()) == target);
    let residences = services.flat_map(|service| &service.residences);
    residences.filter(|one| one.phase == TimeoutKind::Established).map(|one| u64::from(one.entries)).sum()
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
        let established = match established(case, item.change.notrack.first()) {
            0 => "established connections".to_owned(),
            count => counted(count, "established connection", "established connections"),
        };
        item.notes.push(format!(
            "existing entries remain until they expire; {established} continue untracked, except those that a rule translated which \
             has been removed since: these break"
        ));
        item.notes.push(
            "undoing it later may cut the connections that are open then: conntrack has missed what they sent meanwhile, calls their \
             packets INVALID or new, and a rule that drops those drops them (net.netfilter.nf_conntrack_tcp_be_liberal = 1 spares those with \
             an entry)"
                .to_owned(),
        );
        if !case.is_kept_at_boot {
            item.notes.push(NOT_PERSISTENT.to_owned());
        }
    } else {
        item.refused.clone_from(&facts.objections);
        item.notes.extend(owners::notes(facts.objections.iter().map(|objection| objection.place.raw())));
    }
}
