//! A way in: while the table is full no login gets through, so the login's port is exempted before all else.
//! Judged like every other NOTRACK; it mends nothing, and is offered where the table is about to be full, or on request.

use super::{ChangeKind, Draft, Item, TARGET_FILL, limit, notrack};
use crate::advise::case::{Case, WayIn};
use crate::advise::whatif::Changes;

pub(super) fn items(case: &Case) -> Vec<Item> {
    let now = case.demand.after(&Changes::default());
    let refuses = case.demand.services.iter().any(|service| service.refused_per_s > 0.0);
    let count = case.machine.table.count.unwrap_or(0) as f64;
    let is_tight = refuses || now.peak.max(count) > TARGET_FILL * limit(now.max);
    case.ways_in.iter().filter(|way| is_tight || way.is_asked_for).filter_map(|way| item(case, way)).collect()
}

fn item(case: &Case, way: &WayIn) -> Option<Item> {
    let target = way.target;
    let facts = case.facts(&target).filter(|facts| !facts.untracked)?;
    let (risk, risk_text) = notrack::risk(target.direction);
    let mut item = Draft {
        id: format!("keep-{}", super::super::slug(&target)),
        kind: ChangeKind::WayIn,
        title: format!("keep a way in: exempt {target} from tracking"),
        evidence: match &way.who {
            Some(who) => format!(
                "{who} listens there: exempt, it lets you in while the table is full; it mends nothing else"
            ),
            None => {
                "asked for with --keep: exempt, it is reached while the table is full; it mends nothing else"
                    .to_owned()
            }
        },
        change: Changes { notrack: vec![target], ..Changes::default() },
        risk,
        risk_text: risk_text.to_owned(),
    }
    .on(case);
    if way.who.is_none() {
        item.notes.push(format!("no login is served on {target} as far as processes here tell"));
    }
    notrack::judge(case, facts, &mut item);
    Some(item)
}
