//! Items of advice, one file per kind, and their order.
//! Each item is a what-if first: its numbers come from the demand model, not from a rule of thumb.

mod firewall;
mod notrack;
mod reuse;
mod size;
mod timeouts;
mod way_in;

pub(crate) use timeouts::rfc;

use std::path::Path;

use serde::{Serialize, Serializer};

use super::case::Case;
use super::demand::{Outcome, Service};
use super::whatif::Changes;
use crate::firewall::{Commands, Objection};
use crate::foreign::Shown as _;
use crate::text::shell::quote;

/// A table whose peaks exceed this fill has too little headroom.
pub const TARGET_FILL: f64 = 0.8;
/// Services and savings below this share of the load are not worth advice.
const MIN_SHARE: f64 = 0.05;

/// What kind of change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Keep a login reachable.
    WayIn,
    /// Reuse connections.
    Reuse,
    /// Exempt flows from tracking.
    Notrack,
    /// A larger table.
    Size,
    /// A shorter timeout.
    Timeout,
    /// No stateful firewall.
    Firewall,
}

/// How much can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Little.
    Low,
    /// Rare cases.
    Medium,
    /// Likely to break something: review first.
    High,
}

/// An item of advice.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// Its id: `max`, `time_wait`, `notrack-6379-tcp-lo`.
    pub id: String,
    /// What kind of change it is.
    pub kind: ChangeKind,
    /// What to do.
    pub title: String,
    /// The evidence for it.
    pub evidence: String,
    /// The change, as `--what-if` takes it.
    pub change: Changes,
    /// The table with the change.
    pub after: Outcome,
    /// The same at [`Case::times`] the present load.
    pub at_times: Outcome,
    /// Whether nothing is dropped then, with headroom.
    pub solves: bool,
    /// How much more memory the kernel may take, bytes.
    pub memory_bytes: i64,
    /// How much can go wrong.
    pub risk: Level,
    /// What can go wrong.
    pub risk_text: String,
    /// Why it must not be done here; an item with reasons has no commands.
    #[serde(serialize_with = "objections")]
    pub refused: Vec<Objection>,
    /// The commands.
    pub commands: Commands,
    /// Settings that no command can change.
    pub settings: Vec<String>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// Objections as JSON has them: where the rule is goes with the rule.
fn objections<S: Serializer>(objections: &[Objection], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Row<'a> {
        rule: String,
        text: &'a str,
        remedy: Option<&'a str>,
    }
    serializer.collect_seq(objections.iter().map(|objection| Row {
        rule: objection.located_rule(),
        text: &objection.text,
        remedy: objection.remedy.as_deref(),
    }))
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
            solves: after.fits_for_certain() && after.peak <= TARGET_FILL * limit(after.max),
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

/// The services with a major share of the load, and that share.
fn major_services(case: &Case) -> impl Iterator<Item = (&Service, f64)> {
    let total = case.demand.after(&NOW).needed;
    let parts = case.demand.needs(&NOW).map(move |(service, needs)| (service, needs / total));
    parts.filter(|(_, part)| *part >= MIN_SHARE)
}

/// No change.
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

/// The note on changes in another netns.
const NOT_PERSISTENT: &str = "not persistent: whatever creates this netns must set it again";

/// The note on what can't be set from here.
const ONLY_THE_HOST: &str = "nf_conntrack_max and the buckets are one for all netns and read-only in all but the host's: \
                             only its root can set them, there";

/// All advice for this case, the best first.
#[must_use]
pub fn advise(case: &Case) -> Vec<Item> {
    let mut items = way_in::items(case);
    if case.demand.is_quiet() {
        return items;
    }
    let is_kept = |item: &Item| case.ways_in.iter().any(|way| item.change.notrack == [way.target]);
    let mut others = notrack::items(case);
    others.retain(|item| items.is_empty() || !is_kept(item));
    items.extend(reuse::items(case));
    items.extend(others);
    items.extend(size::items(case));
    items.extend(timeouts::items(case));
    items.extend(firewall::items(case));
    items.sort_by(|a, b| {
        // Among equals, root causes come first: `ChangeKind` is in that order.
        // A way in comes first: an admin who is locked out can do nothing.
        let rank = |item: &Item| {
            (!item.refused.is_empty(), item.kind != ChangeKind::WayIn, !item.solves, item.risk, item.kind)
        };
        rank(a).cmp(&rank(b)).then(a.after.peak.total_cmp(&b.after.peak)).then(a.id.cmp(&b.id))
    });
    items
}

/// Two items applied together.
#[derive(Clone, Debug, Serialize)]
pub struct Combination {
    /// Their ids.
    pub ids: [String; 2],
    /// Both changes.
    pub change: Changes,
    /// The table with both.
    pub after: Outcome,
}

/// The two items that achieve most together at the lowest risk.
#[must_use]
pub fn best_combination(case: &Case, items: &[Item]) -> Option<Combination> {
    let usable: Vec<&Item> = items
        .iter()
        .filter(|item| {
            let is_a_remedy = !matches!(item.kind, ChangeKind::Firewall | ChangeKind::WayIn);
            item.refused.is_empty() && is_a_remedy
        })
        .collect();
    let pairs = usable.iter().enumerate().flat_map(|(index, one)| {
        usable[index + 1..].iter().filter_map(move |other| {
            // Two ways to save the same entries add nothing.
            let is_same = one.kind == other.kind
                || (one.kind <= ChangeKind::Notrack && other.kind <= ChangeKind::Notrack);
            (!is_same).then_some((*one, *other))
        })
    });
    let ranked = pairs.map(|(one, other)| {
        let change = one.change.and(&other.change);
        let after = case.demand.after(&change);
        let fill = after.peak / limit(after.max);
        let combination = Combination { ids: [one.id.clone(), other.id.clone()], change, after };
        (fill > TARGET_FILL, one.risk.max(other.risk), fill, combination)
    });
    let best = ranked.min_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)));
    best.map(|(.., combination)| combination)
}

/// Sets a sysctl of the netns, named by what follows `nf_conntrack_`: now, persistently, and back.
fn set_sysctl(case: &Case, item: &mut Item, name: &str, value: u32, before: u32) {
    let full = format!("net.netfilter.nf_conntrack_{name}");
    // The limit is one for all netns and read-only in all but the host's; each has its own timeouts.
    let prefix = if name == "max" { "" } else { case.netns_prefix.as_str() };
    let set = |value| format!("{prefix}sysctl -w {full}={value}");
    let mut commands = Commands { now: vec![set(value)], keep: Vec::new(), undo: vec![set(before)] };
    let settings = &case.machine.settings;
    if name == "max" && case.is_away_from_host {
        // The buckets are the host's, too.
        let Commands { now, .. } = std::mem::take(&mut item.commands).and(commands);
        item.settings.extend(now);
        item.notes.push(ONLY_THE_HOST.to_owned());
        return;
    }
    if let Some(owner) = case.machine.owner_of(&full) {
        item.settings.extend(owner.instead(&full, u64::from(value)));
        item.notes.push(format!(
            "{} sets this sysctl {}: set the value in {}, or it will be overwritten",
            owner.evidence.sentence(),
            owner.when.sentence(),
            owner.configured_in
        ));
    } else if if name == "max" { !case.is_away_from_host } else { case.is_kept_at_boot } {
        // A file per item, so that undoing one leaves the others.
        let file = file_for(&settings.sysctl_file(), &item.id);
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
        item.notes.push(NOT_PERSISTENT.to_owned());
    }
    item.commands = std::mem::take(&mut item.commands).and(commands);
}

/// A sibling of this file named after an item, as a word for the shell: "99-ctwatch.conf" becomes "99-ctwatch-max.conf".
fn file_for(file: &Path, id: &str) -> String {
    let path = file.shown().into_raw();
    quote(&match path.strip_suffix(".conf") {
        Some(stem) => format!("{stem}-{id}.conf"),
        None => format!("{path}-{id}"),
    })
}

#[cfg(test)]
mod tests;
