//! Prevention: `ctwatch advise` on the span that is reported.
//! Why there is no advice is an answer, too.

use std::ops::RangeInclusive;

use crate::advise::items::{ChangeKind, Item};
use crate::advise::recorded::{Question, case};
use crate::advise::report::{Advice, report};
use crate::firewall::{Commands, ObjectionKind};
use crate::foreign::Foreign;
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;

/// As long as `ctwatch advise` measures by default.
const WINDOW_S: f64 = 15.0;

/// The advice, or why there is none.
pub(super) fn of(
    recording: &Recording,
    version: &'static str,
    ticks: RangeInclusive<i64>,
    anonymizer: Option<&mut Anonymizer>,
) -> (Option<Advice>, Option<String>) {
    let question =
        Question { netns: None, window_s: WINDOW_S, ticks, times: 2.0, bare: anonymizer.is_some() };
    match (case(recording, version, &question), anonymizer) {
        (Ok((case, source)), None) => (Some(report(&case, source, None)), None),
        (Ok((case, source)), Some(anonymizer)) => {
            let mut advice = report(&case, source, None);
            advice.name = advice.name.map(|name| anonymizer.netns(name.raw()).into());
            // They name files of the host, and so does what takes those away again.
            for item in &mut advice.items {
                item.commands.keep.clear();
                item.commands.undo.retain(|line| !line.starts_with("rm -f"));
                without_rules(item);
            }
            (Some(advice), None)
        }
        (Err(_), Some(_)) => (None, Some("the recording lacks what advice needs".to_owned())),
        (Err(error), None) => (None, Some(format!("{error:#}"))),
    }
}

/// Takes the words of rules out of a piece of advice, which name addresses, chains and interfaces, and leaves the verdict.
fn without_rules(item: &mut Item) {
    if !matches!(item.kind, ChangeKind::Notrack | ChangeKind::Firewall) {
        return;
    }
    item.refused.sort_by_key(|objection| objection.kind);
    item.refused.dedup_by_key(|objection| objection.kind);
    for objection in &mut item.refused {
        objection.text = in_general(objection.kind).to_owned();
        objection.rule = "left out of an anonymized report".into();
        objection.place = Foreign::default();
        objection.remedy = None;
    }
    if item.kind == ChangeKind::Firewall {
        item.evidence = "rules enable conntrack".to_owned();
    }
    item.notes.clear();
    if item.refused.is_empty() {
        item.commands = Commands::default();
        item.notes.push(
            "nothing forbids it; its commands may name addresses and interfaces, so an anonymized report leaves them out"
                .to_owned(),
        );
    }
}

fn in_general(kind: ObjectionKind) -> &'static str {
    match kind {
        ObjectionKind::PublishedPort => "a published port: untracked packets aren't translated",
        ObjectionKind::NatRule => "a rule translates these flows, which needs them tracked",
        ObjectionKind::Helper => "a helper inspects these connections",
        ObjectionKind::EstablishedOnly => "a rule lets only packets of known connections pass",
        ObjectionKind::ConnectionMark => "packets take their mark from the connection",
        ObjectionKind::OpensAccess => "a rule that refuses or limits connections would no longer apply",
        ObjectionKind::IcmpErrors => "ICMP errors about these connections would be dropped",
        ObjectionKind::Unknown => "unknown whether a rule needs these flows tracked",
        ObjectionKind::HalfUntracked => "a part of these flows is exempt already",
        ObjectionKind::AlreadyUntracked => "these flows are exempt already",
    }
}
