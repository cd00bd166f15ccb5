//! Removing the rules that enable conntrack: whether every verdict stays the same, and the commands.
//! Allowed only where these rules decide nothing that other rules don't: the same packets must pass, and no others.

use std::collections::BTreeSet;

use super::commands::Commands;
use super::ir::{Action, Condition, Rule, RuleTable, Step, Tool, state};
use super::listing::{self, Listed};
use super::{Objection, ObjectionKind, iptables, nft};
use crate::foreign::Foreign;
use crate::text::shell::one_line;

/// How the names of files begin that hold the rules as they were.
pub const SAVED: &str = "/run/ctwatch-firewall";

/// The commands, or why these rules have to stay.
pub fn without_tracking(tables: &[RuleTable]) -> Result<Commands, Vec<Objection>> {
    let mut found: Vec<Objection> = Vec::new();
    let mut tracking = Vec::new();
    for table in tables {
        for chain in &table.chains {
            for rule in chain.rules.iter().filter(|rule| listing::tracks(rule)) {
                let place = table.place(&chain.name);
                let objection = |(kind, text): (ObjectionKind, String)| Objection {
                    kind,
                    rule: rule.text.clone(),
                    place: place.clone(),
                    text,
                    remedy: None,
                };
                found.extend(needed(table, rule).map(objection));
                tracking.push((
                    table,
                    Listed { place: place.clone(), rule: rule.text.clone(), delete: rule.delete.clone() },
                ));
            }
        }
    }
    // One of each kind says it all.
    found.sort_by_key(|objection| objection.kind);
    found.dedup_by_key(|objection| objection.kind);
    if found.is_empty() { commands(&tracking).map_err(|objection| vec![objection]) } else { Err(found) }
}

/// What a rule does, and whether it does that to invalid packets alone.
fn actions(rule: &Rule) -> impl Iterator<Item = (bool, &Action)> {
    let on_invalid =
        rule.steps.iter().any(|step| matches!(step, Step::If(condition) if is_invalid(condition)));
    let whole = rule.steps.iter().filter_map(|step| match step {
        Step::Do(action) => Some(action),
        _ => None,
    });
    let cases = rule.steps.iter().filter_map(|step| match step {
        Step::Case(cases) => Some(cases),
        _ => None,
    });
    let cases = cases.flatten().map(move |(condition, action)| (on_invalid || is_invalid(condition), action));
    whole.map(move |action| (on_invalid, action)).chain(cases)
}

/// Why this rule can't go, if it can't.
fn needed(table: &RuleTable, rule: &Rule) -> Option<(ObjectionKind, String)> {
    actions(rule).find_map(|(on_invalid, action)| match action {
        Action::Continue | Action::WriteConnection => None,
        // Such packets belong to no connection; the receiving host answers them by a reset, if at all.
        Action::Drop if on_invalid => None,
        Action::Drop => Some((
            ObjectionKind::OpensAccess,
            "this rule drops packets by connection state: without it they would get in".to_owned(),
        )),
        Action::Accept | Action::Return | Action::Jump(_) | Action::Goto(_) => decides(table).map(|what| {
            (
                ObjectionKind::EstablishedOnly,
                format!("this rule accepts packets by connection state; without it they would reach {what}"),
            )
        }),
        Action::Nat(nat) => {
            Some((ObjectionKind::NatRule, format!("{} doesn't work without conntrack", nat.kind)))
        }
        Action::Helper(name) => Some((
            ObjectionKind::Helper,
            format!(
                "the {} helper inspects connections and allows the ones they announce",
                Foreign::from(name.as_str())
            ),
        )),
        Action::MarkFromConnection => Some((
            ObjectionKind::ConnectionMark,
            "packets take their mark from the connection here: routing or shaping by mark would change"
                .to_owned(),
        )),
        Action::Queue
        | Action::Notrack
        | Action::SetMark { .. }
        | Action::MarkUnknown(..)
        | Action::Writes(_)
        | Action::Template { .. }
        | Action::Unknown(_) => {
            Some((ObjectionKind::Unknown, "what this rule does depends on connection state".to_owned()))
        }
    })
}

/// What in a table makes a difference to a packet that gets there, other than rules that go away, too.
fn decides(table: &RuleTable) -> Option<String> {
    for chain in &table.chains {
        if chain.base.as_ref().is_some_and(|base| base.drops) {
            return Some(format!("the drop policy of {}", table.place(&chain.name)));
        }
        for rule in &chain.rules {
            let does = actions(rule).any(|(on_invalid, action)| {
                let harmless = matches!(
                    action,
                    Action::Accept
                        | Action::Continue
                        | Action::Return
                        | Action::Jump(_)
                        | Action::Goto(_)
                        | Action::WriteConnection
                );
                !(harmless || (on_invalid && *action == Action::Drop))
            });
            if does {
                return Some(format!("`{}` in {}", rule.text, table.place(&chain.name)));
            }
        }
    }
    None
}

/// Whether it holds for packets alone that belong to no connection and can't begin one.
fn is_invalid(condition: &Condition) -> bool {
    match condition {
        Condition::State(bits) => *bits == state::INVALID,
        Condition::All(all) => all.iter().any(is_invalid),
        Condition::Any(any) => !any.is_empty() && any.iter().all(is_invalid),
        _ => false,
    }
}

/// Whether a table, and what lists it, is called as the tools call theirs.
fn has_plain_names(table: &RuleTable) -> bool {
    match table.tool {
        Tool::Nft => nft::is_plain(&table.name) && nft::is_plain(table.family),
        Tool::Iptables | Tool::Ip6tables => {
            iptables::is_table(&table.name) && iptables::is_save(&format!("{}-save", table.program))
        }
    }
}

/// Saves the tables, takes the rules away, and puts the tables' rules back.
fn commands(tracking: &[(&RuleTable, Listed)]) -> Result<Commands, Objection> {
    let cannot = |listed: &Listed, text: &str| Objection {
        kind: ObjectionKind::Unknown,
        rule: listed.rule.clone(),
        place: listed.place.clone(),
        text: text.to_owned(),
        remedy: None,
    };
    let mut deletes = Vec::new();
    for (table, listed) in tracking {
        match &listed.delete {
            // The names of tables and programs become names of files, too.
            Some(delete) if has_plain_names(table) => deletes.push(delete.clone()),
            _ => return Err(cannot(listed, "no command is known that removes this rule")),
        }
        if table.tool == Tool::Nft && listing::has_extensions(std::slice::from_ref(table)) {
            return Err(cannot(
                listed,
                "nft can't restore rules that iptables made in this table: install iptables",
            ));
        }
    }
    let of = |tool: Tool| -> BTreeSet<(&str, &str, &str)> {
        let tables = tracking.iter().filter(|(table, _)| table.tool == tool);
        tables.map(|(table, _)| (table.program.as_str(), table.family, table.name.as_str())).collect()
    };
    let (mut now, mut undo) = (Vec::new(), Vec::new());
    // A second `now` must not save what the first one left. And half a file must not be taken for a whole one.
    let save = |file: &str, list: &str| {
        format!("[ -f {file} ] || {{ ( {list} ) > {file}.part && mv {file}.part {file}; }}")
    };
    let nft = of(Tool::Nft);
    if !nft.is_empty() {
        let file = format!("{SAVED}.nft");
        let each = |word: &str| -> Vec<String> {
            nft.iter().map(|(_, family, name)| format!("{word} table {family} {name}")).collect()
        };
        let list: Vec<String> = each("list").iter().map(|list| format!("nft {list}")).collect();
        now.push(save(&file, &list.join(" && ")));
        // Tables, chains and sets stay where they are, so that hooks of one priority keep their order.
        let flush: Vec<String> = each("add").into_iter().chain(each("flush")).collect();
        undo.push(format!(
            "[ ! -f {file} ] || {{ {{ echo '{}'; cat {file}; }} | nft -f - && rm -f {file}; }}",
            flush.join("; ")
        ));
    }
    for (tool, suffix) in [(Tool::Iptables, "v4"), (Tool::Ip6tables, "v6")] {
        for (program, _, table) in of(tool) {
            let file = format!("{SAVED}.{program}.{table}.{suffix}");
            now.push(save(&file, &format!("{program}-save -c -t {table}")));
            undo.push(format!("[ ! -f {file} ] || {{ {program}-restore -w -c < {file} && rm -f {file}; }}"));
        }
    }
    now.extend(deletes);
    let mut keep = vec!["# remove these rules from the file that loads them at boot (/etc/nftables.conf, /etc/iptables/rules.v4 …):".to_owned()];
    keep.extend(
        tracking.iter().map(|(_, listed)| one_line(&format!("#   {}: {}", listed.place, listed.rule))),
    );
    keep.push(
        "echo 'not persistent yet: remove these rules from the file that loads them at boot' >&2".to_owned(),
    );
    Ok(Commands { now, keep, undo })
}
