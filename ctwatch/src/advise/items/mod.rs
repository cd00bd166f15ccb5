//! Pieces of advice, one file per kind, and their order.
//! Each piece is a change on paper first: what it promises comes from the model, not from a rule of thumb.

mod firewall;
mod notrack;
mod reuse;
mod size;
mod timeouts;

pub(crate) use timeouts::rfc;

use std::path::Path;

use serde::Serialize;

use super::case::{Case, Commands, Objection};
use super::demand::{Outcome, Service};
use super::whatif::Changes;

/// A table fuller than this at its peaks has too little room.
pub const COMFORT: f64 = 0.8;
/// What makes up less than this part of the table is not worth advice.
const WORTH: f64 = 0.05;

/// What kind of change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Connections are used again.
    Reuse,
    /// Flows go untracked.
    Notrack,
    /// A larger table.
    Size,
    /// Entries go sooner.
    Timeout,
    /// No stateful firewall.
    Firewall,
}

/// How much may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Little.
    Low,
    /// Something, in rare cases.
    Medium,
    /// Think first.
    High,
}

/// A piece of advice.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// What it is called: `max`, `time_wait`, `notrack-6379-tcp-lo`.
    pub id: String,
    /// What kind of change it is.
    pub kind: ChangeKind,
    /// What to do.
    pub title: String,
    /// What it rests on.
    pub evidence: String,
    /// The change, as `--what-if` takes it.
    pub change: Changes,
    /// The table then.
    pub after: Outcome,
    /// The table then at [`Case::times`] the present rate.
    pub at_times: Outcome,
    /// Whether nothing is refused then, with room to spare.
    pub solves: bool,
    /// How much more memory the kernel may take, bytes.
    pub memory_bytes: i64,
    /// How much may go wrong,
    pub risk: Level,
    /// and what.
    pub risk_text: String,
    /// Why it must not be done here. Then it has no commands.
    pub refused: Vec<Objection>,
    /// What to type.
    pub commands: Commands,
    /// What else to set, where commands can't.
    pub settings: Vec<String>,
    /// What one should know.
    pub notes: Vec<String>,
}

/// The parts of an item that differ from kind to kind.
struct Draft {
    id: String,
    kind: ChangeKind,
    title: String,
    evidence: String,
    change: Changes,
    risk: Level,
    risk_text: String,
}

impl Draft {
    /// The item, with what the model says of it.
    fn on(self, case: &Case) -> Item {
        let Self { id, kind, title, evidence, change, risk, risk_text } = self;
        let after = case.demand.after(&change);
        let entries = |outcome: &Outcome| outcome.peak.min(limit(outcome.max)) as i64;
        let before = case.demand.after(&Changes::default());
        let memory_bytes = (entries(&after) - entries(&before)) * case.entry_bytes() as i64;
        Item {
            at_times: case.demand.after(&Changes { times: case.times, ..change.clone() }),
            solves: after.peak <= COMFORT * limit(after.max),
            id,
            kind,
            title,
            evidence,
            change,
            after,
            memory_bytes,
            risk,
            risk_text,
            refused: Vec::new(),
            commands: Commands::default(),
            settings: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// The services that need much of the table, and which part of it.
fn major_services(case: &Case) -> impl Iterator<Item = (&Service, f64)> {
    let total = case.demand.after(&NOW).needed;
    let parts = case.demand.needs(&NOW).map(move |(service, needs)| (service, needs / total));
    parts.filter(|(_, part)| *part >= WORTH)
}

/// Nothing is changed.
static NOW: Changes = Changes {
    max: None,
    timeouts: std::collections::BTreeMap::new(),
    notrack: Vec::new(),
    keepalive: Vec::new(),
    times: 1.0,
};

fn limit(max: u32) -> f64 {
    if max == 0 { f64::INFINITY } else { f64::from(max) }
}

/// Of what is done in another netns.
const ELSEWHERE: &str = "what starts this netns has to set it anew each time";

/// All advice for this case, the best first.
#[must_use]
pub fn advise(case: &Case) -> Vec<Item> {
    let mut items = reuse::items(case);
    items.extend(notrack::items(case));
    items.extend(size::items(case));
    items.extend(timeouts::items(case));
    items.extend(firewall::items(case));
    items.sort_by(|a, b| {
        // Of equals, what goes to the root comes first: the kinds are in that order.
        let rank = |item: &Item| (!item.refused.is_empty(), !item.solves, item.risk, item.kind);
        rank(a).cmp(&rank(b)).then(a.after.peak.total_cmp(&b.after.peak)).then(a.id.cmp(&b.id))
    });
    items
}

/// Two pieces of advice at once.
#[derive(Clone, Debug, Serialize)]
pub struct Combination {
    /// Their ids.
    pub ids: [String; 2],
    /// Both changes.
    pub change: Changes,
    /// The table then.
    pub after: Outcome,
}

/// The two pieces that do most together at the lowest risk.
#[must_use]
pub fn together(case: &Case, items: &[Item]) -> Option<Combination> {
    let usable: Vec<&Item> =
        items.iter().filter(|item| item.refused.is_empty() && item.kind != ChangeKind::Firewall).collect();
    let pairs = usable.iter().enumerate().flat_map(|(index, one)| {
        usable[index + 1..].iter().filter_map(move |other| {
            // Two ways to spare the same flows add nothing.
            let is_same = one.kind == other.kind
                || (one.kind <= ChangeKind::Notrack && other.kind <= ChangeKind::Notrack);
            (!is_same).then_some((*one, *other))
        })
    });
    let ranked = pairs.map(|(one, other)| {
        let change = one.change.and(&other.change);
        let after = case.demand.after(&change);
        let fill = after.peak / limit(after.max);
        let together = Combination { ids: [one.id.clone(), other.id.clone()], change, after };
        (fill > COMFORT, one.risk.max(other.risk), fill, together)
    });
    let best = ranked.min_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)));
    best.map(|(.., together)| together)
}

/// Sets a sysctl of the netns, by what follows `nf_conntrack_`: now, for good, and back.
fn set_sysctl(case: &Case, item: &mut Item, name: &str, value: u32, before: u32) {
    let full = format!("net.netfilter.nf_conntrack_{name}");
    // The limit is one for all netns and read-only in all but the host's; each has its own timeouts.
    let prefix = if name == "max" { "" } else { case.netns_prefix.as_str() };
    let set = |value| format!("{prefix}sysctl -w {full}={value}");
    let mut commands = Commands { now: vec![set(value)], keep: Vec::new(), undo: vec![set(before)] };
    let settings = &case.machine.settings;
    if let Some(owner) = case.machine.owner_of(&full) {
        item.settings.extend(owner.instead(&full, u64::from(value)));
        item.notes.push(format!(
            "{} sets this sysctl {}: give it the value in {}, or it comes back",
            owner.evidence, owner.when, owner.configured_in
        ));
    } else if prefix.is_empty() {
        // A file for each piece, so that undoing one leaves the others.
        let file = file_for(&settings.new_sysctl_file, &item.id);
        commands.keep.push("mkdir -p /etc/sysctl.d".to_owned());
        commands.keep.push(format!("echo '{full} = {value}' > {file}"));
        commands.undo.push(format!("rm -f {file}"));
        if settings.loaded_at_boot.is_none() && settings.set_again_on_load.is_none() {
            // systemd-sysctl runs before a firewall loads conntrack: without the module there is no such sysctl yet.
            let file = file_for(Path::new("/etc/modules-load.d/ctwatch.conf"), &item.id);
            commands.keep.push("mkdir -p /etc/modules-load.d".to_owned());
            commands.keep.push(format!("echo nf_conntrack > {file}"));
            commands.undo.push(format!("rm -f {file}"));
        }
    } else {
        item.notes.push(ELSEWHERE.to_owned());
    }
    item.commands = std::mem::take(&mut item.commands).and(commands);
}

/// A file beside this one that bears a piece's id: "99-ctwatch.conf" becomes "99-ctwatch-max.conf".
fn file_for(file: &Path, id: &str) -> String {
    let path = file.display().to_string();
    match path.strip_suffix(".conf") {
        Some(stem) => format!("{stem}-{id}.conf"),
        None => format!("{path}-{id}"),
    }
}

#[cfg(test)]
mod tests;
