//! NOTRACK: flows that need no state go past conntrack, unless a rule needs them tracked.
//! Refused wherever that would break something; then it has no commands.

use super::{ChangeKind, Draft, ELSEWHERE, Item, Level, major_services};
use crate::advise::case::Case;
use crate::advise::demand::Service;
use crate::advise::whatif::Changes;
use crate::model::{Direction, Protocol};

pub(super) fn items(case: &Case) -> Vec<Item> {
    major_services(case)
        .filter(|(service, _)| {
            Protocol(service.proto).has_ports()
                && service.port != 0
                // What is only passed on has no commands here; that it is translated is a reason to name.
                && (service.direction != Direction::Forwarded
                    || case.facts(&service.target()).is_some_and(|facts| !facts.objections.is_empty()))
        })
        .filter_map(|(service, part)| item(case, service, part))
        .collect()
}

fn item(case: &Case, service: &Service, part: f64) -> Option<Item> {
    let target = service.target();
    let facts = case.facts(&target).filter(|facts| !facts.untracked)?;
    let mut item = Draft {
        id: format!("notrack-{}", super::super::slug(&target)),
        kind: ChangeKind::Notrack,
        title: format!("don't track {target}"),
        evidence: format!("{target} needs {:.0} % of the table and no rule needs its state", part * 100.0),
        change: Changes { notrack: vec![target], ..Changes::default() },
        risk: if service.direction == Direction::Loopback { Level::Low } else { Level::Medium },
        risk_text: match service.direction {
            Direction::Loopback => "later NAT or `ct state established` rules for these flows won't match them",
            _ => {
                "no NAT, no helper and no `ct state established` for these flows: rules added later must accept both \
                 directions by port; ICMP errors no longer match them"
            }
        }
        .to_owned(),
    }
    .on(case);
    if facts.objections.is_empty() {
        match &facts.notrack {
            Some(commands) => item.commands.clone_from(commands),
            None => {
                item.notes.push("no command for it: neither nft nor iptables is installed here".to_owned())
            }
        }
        if !facts.warnings.is_empty() {
            item.risk = Level::Medium;
            item.notes.clone_from(&facts.warnings);
        }
        item.notes.push("entries that exist stay until they expire".to_owned());
        if !case.netns_prefix.is_empty() {
            item.notes.push(ELSEWHERE.to_owned());
        }
    } else {
        item.evidence = format!("{target} needs {:.0} % of the table", part * 100.0);
        item.refused.clone_from(&facts.objections);
    }
    Some(item)
}
