//! What `ctwatch advise` says, in one shape for all formats.
//! Numbers come from the model; this only puts them together.

use jiff::Timestamp;
use serde::Serialize;

use super::case::Case;
use super::demand::{Basis, Outcome, Service};
use super::items::{self, Combination, Item};
use super::target::ServiceTarget;
use super::whatif::Changes;
use crate::contract::{millis, optional_rounded, rounded};
use crate::foreign::Foreign;
use crate::model::{Direction, NetnsId, Protocol, ServicePort, TimeoutKind};
use crate::text;

/// Services named one by one.
const SHOWN: usize = 8;

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "advice")]
pub struct Advice {
    /// [`crate::contract::SCHEMA`]
    pub schema: u32,
    /// Version of ctwatch.
    pub version: String,
    /// When the window ended.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// `uname -r`
    pub kernel_release: String,
    /// The netns.
    pub netns: NetnsId,
    /// What it is called; null if it has no name.
    pub name: Option<Foreign>,
    /// How long was measured, seconds.
    #[serde(serialize_with = "rounded")]
    pub window_s: f64,
    /// How flows were counted: "kprobe", or "census" where no program can count them.
    pub measured_by: &'static str,
    /// Put before a command that acts on that netns; empty in the own one. A word for the shell.
    #[serde(skip)]
    pub enter: String,
    /// The table.
    pub table: TableDemand,
    /// The services, the largest need first.
    pub services: Vec<ServiceLine>,
    /// The change that was asked about; null if none was.
    pub what_if: Option<WhatIf>,
    /// Advice, the best first.
    pub items: Vec<Item>,
    /// The two items that achieve most together; null if there are no two.
    pub together: Option<Combination>,
    /// What else should be known.
    pub notes: Vec<String>,
}

/// The table, now and at the present demand.
#[derive(Clone, Debug, Serialize)]
pub struct TableDemand {
    /// Entries when looked at.
    pub count: u32,
    /// Those of them that early_drop leaves alone, assured or offloaded ones; null if unknown.
    pub unevictable: Option<u32>,
    /// nf_conntrack_max; 0 is unlimited.
    pub max: u32,
    /// Buckets; null if unknown.
    pub buckets: Option<u64>,
    /// Packets refused each second for want of room.
    #[serde(serialize_with = "rounded")]
    pub refused_packets_per_s: f64,
    /// Offered load: flows that would come each second if none was dropped.
    #[serde(serialize_with = "rounded")]
    pub offered_per_s: f64,
    /// Flows that got in each second.
    #[serde(serialize_with = "rounded")]
    pub admitted_per_s: f64,
    /// What the present demand needs.
    pub demand: Outcome,
    /// What this multiple of the present demand needs.
    pub at_times: Outcome,
    /// The multiple.
    pub times: f64,
    /// What the need rests on.
    pub basis: Basis,
    /// Entries that flows from before the window would need if they had kept coming; null if there are none such.
    #[serde(serialize_with = "optional_rounded")]
    pub earlier: Option<f64>,
    /// Bytes an entry takes at most.
    pub entry_bytes: u64,
    /// What this kernel would have chosen for this host; null if unknown.
    pub kernel_default_max: Option<u64>,
    /// What the rule of thumb of old kernels gives (RAM/16384/(ARCH/32)): history, not advice.
    pub old_rule_max: Option<u64>,
    /// And the buckets that went with it (max/8).
    pub old_rule_buckets: Option<u64>,
}

/// One service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceLine {
    /// The protocol.
    pub proto: Protocol,
    /// Service port; null where the protocol has none.
    pub port: Option<u16>,
    /// Its ICMP type; null if it isn't ICMP.
    pub icmp_type: Option<u8>,
    /// And code.
    pub icmp_code: Option<u8>,
    /// Its well-known name.
    pub service: Option<&'static str>,
    /// The direction of its flows.
    pub direction: Direction,
    /// The software that serves it here.
    pub server: Option<Foreign>,
    /// The software here that uses it.
    pub clients: Vec<Foreign>,
    /// Entries when looked at.
    pub entries: u32,
    /// Flows that got in each second.
    #[serde(serialize_with = "rounded")]
    pub admitted_per_s: f64,
    /// Flows that would come each second.
    #[serde(serialize_with = "rounded")]
    pub offered_per_s: f64,
    /// Packets refused each second.
    #[serde(serialize_with = "rounded")]
    pub refused_packets_per_s: f64,
    /// How long an entry lasts on average, seconds; null if nothing comes.
    #[serde(serialize_with = "optional_rounded")]
    pub lifetime_s: Option<f64>,
    /// Entries it needs at the present demand.
    #[serde(serialize_with = "rounded")]
    pub needs: f64,
    /// What that rests on.
    pub basis: Basis,
    /// None, or next to none, of its flows got in: each is taken to stay as long as this timeout, seconds.
    pub assumed_lifetime_s: Option<u32>,
    /// Its entries are from before the window: what they would need if they had kept coming; null if they aren't.
    #[serde(serialize_with = "optional_rounded")]
    pub earlier: Option<f64>,
    /// The state most of its entries are in; null if it has none.
    pub mostly: Option<Mostly>,
    /// Entries it would have with the change that was asked about.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_rounded")]
    pub then: Option<f64>,
}

/// The state most entries are in.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Mostly {
    /// By the timeout that ends it.
    pub state: TimeoutKind,
    /// Which part of the entries that is.
    #[serde(serialize_with = "rounded")]
    pub share: f64,
}

/// The answer to `--what-if`.
#[derive(Clone, Debug, Serialize)]
pub struct WhatIf {
    /// The change.
    pub change: Changes,
    /// The table then.
    pub after: Outcome,
    /// The same at the multiple of the rate.
    pub at_times: Outcome,
    /// Memory of a full table, bytes.
    pub memory_bytes: u64,
    /// What one should know before.
    pub warnings: Vec<String>,
}

/// What the case was drawn from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Version of ctwatch.
    pub version: &'static str,
    /// When the window ended.
    pub time: Timestamp,
    /// The netns.
    pub netns: NetnsId,
    /// What it is called.
    pub name: Option<Foreign>,
    /// Length of the window, seconds.
    pub window_s: f64,
    /// How flows were counted.
    pub measured_by: &'static str,
    /// What else should be known.
    pub notes: Vec<String>,
}

/// Advises.
#[must_use]
pub fn report(case: &Case, source: Source, what_if: Option<&Changes>) -> Advice {
    let now = Changes::default();
    let items = items::advise(case);
    let demand = case.demand.after(&now);
    let sum = |of: fn(&Service) -> f64| case.demand.services.iter().map(of).sum::<f64>();
    let then: Option<Vec<f64>> =
        what_if.map(|change| case.demand.needs(change).map(|(_, needs)| needs).collect());
    let mut services: Vec<ServiceLine> = case
        .demand
        .needs(&now)
        .enumerate()
        .map(|(index, (service, needs))| {
            line(case, service, needs, then.as_ref().and_then(|then| then.get(index).copied()))
        })
        .collect();
    services.sort_by(|a, b| b.needs.total_cmp(&a.needs));
    services.truncate(SHOWN);
    let table = &case.machine.table;
    let mut notes = source.notes;
    notes.extend(unsure(case, notes.iter().any(|note| note.contains("an upper bound"))));
    let gc_interval = case.demand.gc_interval();
    if sum(|service| service.refused_per_s) > 0.0 && source.window_s < gc_interval {
        notes.push(format!(
            "a full table admits flows in bursts, after each garbage collection: here about every {gc_interval:.0} s; use \
             a longer --window"
        ));
    }
    Advice {
        schema: crate::contract::SCHEMA,
        version: source.version.to_owned(),
        time: source.time,
        kernel_release: case.machine.kernel_release.clone(),
        netns: source.netns,
        name: source.name,
        window_s: source.window_s,
        measured_by: source.measured_by,
        enter: case.netns_prefix.clone(),
        table: TableDemand {
            count: table.count.unwrap_or(0) as u32,
            unevictable: case.demand.unevictable,
            max: case.demand.max,
            buckets: table.buckets,
            refused_packets_per_s: sum(|service| service.refused_per_s),
            offered_per_s: sum(|service| service.offered_per_s),
            admitted_per_s: sum(|service| service.admitted_per_s),
            demand,
            at_times: case.demand.after(&Changes { times: case.times, ..Changes::default() }),
            times: case.times,
            basis: case.demand.basis(),
            earlier: case.demand.earlier(),
            entry_bytes: case.entry_bytes(),
            kernel_default_max: table.kernel_default.map(|sizes| sizes.max),
            old_rule_max: table.old_rule.map(|sizes| sizes.max),
            old_rule_buckets: table.old_rule.map(|sizes| sizes.buckets),
        },
        services,
        what_if: what_if.map(|change| answer(case, change)),
        together: items::best_combination(case, &items),
        items,
        notes,
    }
}

/// So many times more flows came than come now, if that is said.
const BUSIER: f64 = 2.0;
/// Services that are named in a note.
const NAMED_IN_NOTES: usize = 3;

/// What isn't known of the demand, in sentences.
fn unsure(case: &Case, is_said: bool) -> Vec<String> {
    let services = &case.demand.services;
    let mut refused: Vec<&Service> = services.iter().filter(|one| one.assumed_lifetime().is_some()).collect();
    refused.sort_by(|a, b| b.offered_per_s.total_cmp(&a.offered_per_s));
    let mut notes = Vec::new();
    for service in refused.iter().take(NAMED_IN_NOTES) {
        let Some((phase, seconds)) = service.assumed_lifetime() else { continue };
        let target = service.target();
        let whose = match (phase, service.proto) {
            (TimeoutKind::Generic, proto) => format!("{proto}'s first packet"),
            (TimeoutKind::SynSent, _) => format!("an unanswered SYN (nf_conntrack_{})", phase.sysctl()),
            _ => format!("nf_conntrack_{}", phase.sysctl()),
        };
        let bound = match service.basis {
            Basis::Assumed => "more if connections last, less if the server refuses them",
            Basis::AtMost => {
                "at most, since retries can't be told from new flows, unless its flows last longer"
            }
            Basis::AtLeast | Basis::Measured => "a lower bound: entries of flows that go on last longer",
        };
        notes.push(format!(
            "{target}: next to none of its flows got in, so how long they last isn't known: each is taken to stay {seconds} s, \
             the timeout of {whose}; {bound}"
        ));
    }
    if let Some(more) = refused.len().checked_sub(NAMED_IN_NOTES).filter(|more| *more > 0) {
        notes.push(format!("the same goes for {more} more services"));
    }
    let busier = |service: &&Service| {
        let entered = service.entered_per_s()?;
        (entered > BUSIER * service.offered_per_s).then(|| (service.target(), entered, service.offered_per_s))
    };
    for (target, entered, offered) in services.iter().filter_map(|one| busier(&one)).take(NAMED_IN_NOTES) {
        notes.push(format!(
            "{target}: its entries came at {} flows/s, more than the {} that come now; what it needs is for the former",
            text::rate(entered),
            text::rate(offered)
        ));
    }
    let is_upper =
        |service: &&Service| service.basis == Basis::AtMost && service.assumed_lifetime().is_none();
    if !is_said && services.iter().any(|service| is_upper(&service)) {
        notes.push(
            "not every refused packet was seen with its tuple, so retries can't be told from new flows: each counts as a flow, \
             and the offered load is an upper bound"
                .to_owned(),
        );
    }
    notes
}

fn line(case: &Case, service: &Service, needs: f64, then: Option<f64>) -> ServiceLine {
    let facts = case.facts(&service.target());
    let all: u32 = service.residences.iter().map(|residence| residence.entries).sum();
    let most = service
        .residences
        .iter()
        .max_by_key(|residence| residence.entries)
        .filter(|residence| residence.entries > 0);
    let port = ServicePort { proto: service.proto, port: service.port }.parts();
    ServiceLine {
        proto: service.proto,
        port: port.port,
        icmp_type: port.icmp_type,
        icmp_code: port.icmp_code,
        basis: service.basis,
        assumed_lifetime_s: service.assumed_lifetime().map(|(_, seconds)| seconds),
        earlier: service.earlier,
        service: port.service,
        direction: service.direction,
        server: facts.and_then(|facts| facts.server.clone()),
        clients: facts.map(|facts| facts.clients.clone()).unwrap_or_default(),
        entries: service.entries,
        admitted_per_s: service.admitted_per_s,
        offered_per_s: service.offered_per_s,
        refused_packets_per_s: service.refused_per_s,
        lifetime_s: (service.offered_per_s > 0.0)
            .then(|| needs / service.entered_per_s().unwrap_or(0.0).max(service.offered_per_s)),
        needs,
        mostly: most.map(|residence| Mostly {
            state: residence.phase,
            share: f64::from(residence.entries) / f64::from(all),
        }),
        then,
    }
}

fn answer(case: &Case, change: &Changes) -> WhatIf {
    let after = case.demand.after(change);
    let max = u64::from(after.max);
    let mut warnings = Vec::new();
    for target in &change.notrack {
        let is_seen =
            case.demand.services.iter().any(|one| target.covers(one.proto, one.port, one.direction));
        if !is_seen {
            warnings.push(format!("notrack={target}: no such flows were seen; no effect"));
        }
        let objections = case
            .facts
            .iter()
            .filter(|(of, _)| target.covers(of.proto, of.port, of.direction.unwrap_or(Direction::In)))
            .flat_map(|(_, facts)| &facts.objections);
        warnings.extend(objections.map(|objection| format!("notrack={target}: {}", objection.text)));
    }
    let seen = |target: &ServiceTarget| {
        case.demand.services.iter().any(|one| target.covers(one.proto, one.port, one.direction))
    };
    for (target, _) in change.keepalive.iter().filter(|(target, _)| !seen(target)) {
        warnings.push(format!("keepalive={target}: no such flows were seen; no effect"));
    }
    for (phase, seconds) in change.timeouts.iter().filter(|_| case.firewall.nat) {
        if let Some((document, least)) = items::rfc(*phase).filter(|(_, least)| seconds < least) {
            warnings.push(format!(
                "{} is below {least} s, which {document} requires with NAT; this host uses NAT",
                phase.name()
            ));
        }
    }
    WhatIf {
        change: change.clone(),
        memory_bytes: case
            .machine
            .table
            .entry
            .memory(max, case.machine.table.buckets.unwrap_or(0).max(max))
            .1,
        at_times: case.demand.after(&Changes { times: change.times * case.times, ..change.clone() }),
        after,
        warnings,
    }
}
