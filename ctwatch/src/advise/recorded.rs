//! Advice from a recording: the demand of its peak window, the table listing and the machine snapshot nearest to it.
//! Reads nothing but the recording, judges rules as they were then, and says what a recording can't hold (programs).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result, bail};
use ctwatch_common::Cause;
use ctwatch_common::slot::SlotKind;
use jiff::Timestamp;

use super::case::{Case, Firewall, ServiceFacts};
use super::demand::{Demand, Service};
use super::facts;
use super::gc::Gc;
use super::measure::Measure;
use super::netns_commands::NetnsCommands;
use super::report::Source;
use super::rule_set::RuleSet;
use super::target::ServiceTarget;
use crate::firewall::{Firewall as Judge, Objection, ObjectionKind};
use crate::foreign::{Foreign, Shown as _};
use crate::machine::{self, Machine};
use crate::model::{HOST_NETNS, Loss, NetnsId, NetnsNumber, WallMono, is_home_netns};
use crate::record::Recording;
use crate::record::delta_decoder::DeltaDecoder;
use crate::record::reader::{Head, RecordedRun, Stored};
use crate::record::rows::Names;
use crate::record::rows::{SnapshotReason, StoredListing};
use crate::record::timeline;

/// Services of which something is said besides their numbers.
const NAMED: usize = 12;
/// A table listed so long before or after the window says less of it.
const FAR_S: f64 = 120.0;

/// What is asked of a recording.
#[derive(Clone, Debug)]
pub struct Question {
    /// The netns by what the recording calls it, or its inode number; `None`: the one that lost most.
    pub netns: Option<Which>,
    /// Length of the window, seconds.
    pub window_s: f64,
    /// Ticks to look at.
    pub ticks: RangeInclusive<i64>,
    /// Also evaluate at this multiple of the rate.
    pub times: f64,
    /// Only with the machine's numbers: what else is known of it is full of names.
    pub bare: bool,
}

/// A netns of a recording.
#[derive(Clone, Debug)]
pub enum Which {
    /// Its name.
    Name(String),
    /// Its inode number.
    Number(NetnsNumber),
}

/// The case a recording makes, and where it comes from.
///
/// # Errors
/// The recording is damaged, or lacks what advice needs; the error says what and how to record it.
pub fn case(recording: &Recording, version: &'static str, question: &Question) -> Result<(Case, Source)> {
    let file = recording.path().shown();
    let doing = || format!("advising from {file}");
    let found = Contents::read(recording, question).with_context(doing)?;
    let worst = worst(recording, &found, question).with_context(doing)?;
    let timeline = &recording.timeline().with_context(doing)?;
    let place_us = |(run, one): &&(i64, Head)| timeline.place_us(*run, one.at.mono_us);
    let worst_us = timeline.place_us(worst.run.id, worst.to.mono_us);
    let of_netns = found.listings.iter().filter(|(_, one)| one.netns == Some(worst.netns));
    let listing = nearest(of_netns, place_us, worst_us);
    let Some(listing) = listing else {
        bail!(
            "{}: the recording has no table listing of that netns; choose another one with --netns",
            doing()
        );
    };
    let Some((of, facts)) = nearest(found.facts.iter(), place_us, worst_us) else {
        bail!(
            "{}: the recording has no machine snapshot, which `ctwatch record` takes when it starts and when a trigger \
             fires: record again",
            doing()
        );
    };
    let apart_s = timeline::seconds(worst_us, place_us(&listing));
    let listing = &recording.listing(listing.0, &listing.1).with_context(doing)?;
    let facts = recording.machine(*of, facts).with_context(doing)?;
    let mut machine: Machine = serde_json::from_str(&facts.json).with_context(|| {
        format!(
            "{}: its machine snapshot is from another version of ctwatch: use the version that recorded it",
            doing()
        )
    })?;
    machine.table.count = Some(listing.entries);
    if question.bare {
        (machine.settings, machine.managers) = Default::default();
        (machine.published, machine.published_is_cut, machine.notes) = Default::default();
    }
    let (mut measure, sampled) = replay(recording, &worst, listing, question.window_s).with_context(doing)?;
    let services = measure.services();
    let rules = rules_then(recording, &worst).with_context(doing)?;
    if let Some(ports) = ports_then(recording, &worst).with_context(doing)? {
        machine.ephemeral_ports = ports;
    }
    let mut source = source(version, &worst, (listing, apart_s), &measure, &machine, sampled);
    match &rules {
        Ok(rules) if question.bare => source.notes.push(rules.when.clone()),
        Ok(rules) => {
            source.notes.extend(std::iter::once(rules.when.clone()).chain(rules.notes.iter().cloned()))
        }
        Err(why) => source.notes.push(format!("firewall rules are unknown: {why}")),
    }
    Ok((assemble(services, &measure, machine, &worst, &rules, question.times), source))
}

/// Rules of the netns as they were in the window.
struct RulesThen {
    firewall: Judge,
    /// When they were read.
    when: String,
    notes: Vec<String>,
}

/// The rules that were in force when the window ended; if they were first read after it, those. `Err` says why there are
/// none to judge by.
fn rules_then(recording: &Recording, worst: &PeakWindow) -> Result<Result<RulesThen, String>> {
    let all = recording.rules_heads(worst.run.id)?;
    if all.is_empty() {
        return Ok(Err("recorded before rule sets were kept".to_owned()));
    }
    let own: Vec<_> = all.into_iter().filter(|one| one.netns == Some(worst.netns)).collect();
    let then = own.iter().rfind(|one| one.at.mono_us <= worst.to.mono_us).or(own.first());
    let Some(then) = then else {
        return Ok(Err("the rules of this netns were not recorded".to_owned()));
    };
    let then = recording.rule_set(worst.run.id, then)?;
    let Some(packed) = &then.rules else {
        return Ok(Err(format!("those of {:.0} were dropped to keep the recording small", then.at.time)));
    };
    let rules = match RuleSet::unpack(packed) {
        Ok(rules) => rules,
        Err(error) => return Ok(Err(format!("{error:#}"))),
    };
    let (firewall, notes) = rules.parse();
    let why = match then.reason {
        SnapshotReason::Start => "when the recorder started",
        SnapshotReason::Trigger => "when a trigger fired",
        SnapshotReason::Changed => "when they had changed",
    };
    let late = if then.at.mono_us > worst.to.mono_us { ", after this window" } else { "" };
    Ok(Ok(RulesThen {
        firewall,
        when: format!("firewall rules as read at {:.0}, {why}{late}", then.at.time),
        notes: notes.into_iter().map(|note| format!("{}: {}", note.tool, note.text)).collect(),
    }))
}

/// The ports that clients got in a netns other than the recorder's, if that was recorded, and is known.
fn ports_then(recording: &Recording, worst: &PeakWindow) -> Result<Option<Option<machine::EphemeralPorts>>> {
    let settings = recording.netns_settings(worst.run.id)?;
    if !settings.iter().any(|one| one.netns == worst.netns) {
        return Ok(None);
    }
    let value = |name: &str| {
        let full = format!("net.ipv4.{name}");
        let of = settings.iter().filter(|one| one.netns == worst.netns && one.setting.name == full);
        let mut of: Vec<_> = of.collect();
        let then = of.iter().rposition(|one| one.setting.at.mono_us <= worst.to.mono_us).unwrap_or(0);
        (!of.is_empty()).then(|| of.swap_remove(then).setting.value.clone().map(Foreign::into_raw))?
    };
    Ok(Some(machine::ports::from_sysctls(value)))
}

/// What a recording holds besides ticks.
struct Contents {
    runs: Vec<RecordedRun>,
    /// Each with its run.
    listings: Vec<(i64, Head)>,
    facts: Vec<(i64, Head)>,
    /// The span of the last incident.
    incident: Option<RangeInclusive<i64>>,
    names: HashMap<i64, HashMap<NetnsId, Names>>,
}

impl Contents {
    fn read(recording: &Recording, question: &Question) -> Result<Self> {
        let runs = recording.runs()?;
        let (mut listings, mut facts, mut incident, mut names) =
            (Vec::new(), Vec::new(), None, HashMap::new());
        for run in &runs {
            listings.extend(recording.listing_heads(run.id)?.into_iter().map(|head| (run.id, head)));
            facts.extend(recording.machine_heads(run.id)?.into_iter().map(|head| (run.id, head)));
            let within = |tick: i64| question.ticks.contains(&tick);
            let last = recording.incidents(run.id)?.into_iter().rfind(|(_, one)| within(one.tick));
            incident = last.map(|(_, one)| one.detail_from..=one.detail_to).or(incident);
            names.insert(run.id, recording.names(run.id)?);
        }
        if let Some(which) = &question.netns {
            listings.retain(|(run, one)| one.netns.is_some_and(|netns| which.is(netns, names.get(run))));
        }
        if listings.is_empty() {
            bail!(
                "the recording has no table listing{}; `ctwatch record` lists the table, entry by entry, when it starts and \
                 when a trigger fires: record again, as root",
                if question.netns.is_some() { " of that netns" } else { "" }
            );
        }
        Ok(Self { runs, listings, facts, incident, names })
    }
}

impl Which {
    fn is(&self, id: NetnsId, names: Option<&HashMap<NetnsId, Names>>) -> bool {
        match self {
            Self::Number(number) => number.means(id),
            Self::Name(wanted) => names
                .and_then(|names| names.get(&id)?.name.as_ref())
                .is_some_and(|name| name.is_called(wanted)),
        }
    }
}

/// The peak window.
#[derive(Clone, Debug)]
struct PeakWindow {
    run: RecordedRun,
    netns: NetnsId,
    name: Option<Foreign>,
    from: Timestamp,
    to: WallMono,
    ticks: RangeInclusive<i64>,
    refused: i64,
    max: Option<u32>,
}

/// The window in which a listed netns dropped most; if nothing was dropped, the one before its listing.
fn worst(recording: &Recording, found: &Contents, question: &Question) -> Result<PeakWindow> {
    let mut best: Option<PeakWindow> = None;
    for run in &found.runs {
        let listed: Vec<NetnsId> =
            found.listings.iter().filter(|(of, _)| *of == run.id).filter_map(|(_, one)| one.netns).collect();
        if listed.is_empty() {
            continue;
        }
        let mut sliding = SlidingWindow::new(question.window_s, &listed);
        for stored in recording.ticks(run, i64::MIN..=*question.ticks.end())? {
            let stored = stored?;
            let inside = stored.id >= *question.ticks.start()
                && found.incident.as_ref().is_none_or(|incident| incident.contains(&stored.id));
            sliding.add(&stored, inside);
            let Some((netns, refused)) = sliding.most().filter(|_| inside) else { continue };
            if best.as_ref().is_none_or(|best| refused > best.refused) {
                best = Some(sliding.window(run, found, netns, refused, &stored));
            }
        }
        if best.is_none() {
            best = sliding.before_listing(recording, run, found)?;
        }
    }
    best.context("the recording has no ticks in that span; widen it")
}

/// A window that moves over the ticks.
struct SlidingWindow<'a> {
    window_s: f64,
    listed: &'a [NetnsId],
    ticks: VecDeque<(i64, f64, Timestamp, BTreeMap<NetnsId, i64>)>,
    refused: BTreeMap<NetnsId, i64>,
    seconds: f64,
    max: HashMap<NetnsId, Option<u32>>,
}

impl<'a> SlidingWindow<'a> {
    fn new(window_s: f64, listed: &'a [NetnsId]) -> Self {
        Self {
            window_s,
            listed,
            ticks: VecDeque::new(),
            refused: BTreeMap::new(),
            seconds: 0.0,
            max: HashMap::new(),
        }
    }

    fn add(&mut self, stored: &Stored, inside: bool) {
        let tick = &stored.tick;
        for netns in &tick.netns {
            self.max.insert(netns.id, netns.max);
        }
        let mut refused: BTreeMap<NetnsId, i64> = BTreeMap::new();
        for (key, losses) in tick.losses.iter().filter(|_| inside) {
            let netns = NetnsId::from_packed(key.netns);
            let is_full = matches!(key.decode(), Some(SlotKind::Loss { cause: Cause::TableFull, .. }));
            if is_full && self.listed.contains(&netns) {
                *refused.entry(netns).or_default() += losses;
            }
        }
        for (netns, losses) in &refused {
            *self.refused.entry(*netns).or_default() += losses;
        }
        let seconds = tick.interval_us as f64 / 1e6;
        self.seconds += seconds;
        self.ticks.push_back((stored.first, seconds, tick.time, refused));
        while self.ticks.len() > 1 && self.seconds > self.window_s + 0.5 {
            let Some((_, seconds, _, refused)) = self.ticks.pop_front() else { break };
            self.seconds -= seconds;
            for (netns, losses) in refused {
                *self.refused.entry(netns).or_default() -= losses;
            }
        }
    }

    fn most(&self) -> Option<(NetnsId, i64)> {
        let most = self.refused.iter().max_by_key(|(_, refused)| **refused)?;
        (*most.1 > 0).then_some((*most.0, *most.1))
    }

    fn window(
        &self,
        run: &RecordedRun,
        found: &Contents,
        netns: NetnsId,
        refused: i64,
        last: &Stored,
    ) -> PeakWindow {
        let (first, seconds, time, _) = self.ticks.front().cloned().unwrap_or_default();
        let name = found.names.get(&run.id).and_then(|names| names.get(&netns)?.name.clone());
        PeakWindow {
            run: run.clone(),
            netns,
            name,
            from: time - jiff::SignedDuration::from_secs_f64(seconds),
            to: WallMono { time: last.tick.time, mono_us: last.tick.mono_us },
            ticks: first..=last.id,
            refused,
            max: self.max.get(&netns).copied().flatten(),
        }
    }

    /// Nothing was dropped: the window that ends where the table was listed last.
    fn before_listing(
        &self,
        recording: &Recording,
        run: &RecordedRun,
        found: &Contents,
    ) -> Result<Option<PeakWindow>> {
        let last = found.listings.iter().rfind(|(of, _)| *of == run.id);
        let Some((listing, netns)) = last.and_then(|(_, listing)| Some((listing, listing.netns?))) else {
            return Ok(None);
        };
        let listed = [netns];
        let mut sliding = SlidingWindow::new(self.window_s, &listed);
        let mut window = None;
        for stored in recording.ticks(run, i64::MIN..=i64::MAX)? {
            let stored = stored?;
            // A listing at the start has no tick before it: the first window after it will do.
            if stored.tick.mono_us > listing.at.mono_us && sliding.seconds >= self.window_s - 0.5 {
                break;
            }
            sliding.add(&stored, true);
            window = Some(sliding.window(run, found, netns, 0, &stored));
        }
        Ok(window)
    }
}

/// What lies nearest to a place on the timeline.
fn nearest<T>(all: impl Iterator<Item = T>, place_us: impl Fn(&T) -> i64, to_us: i64) -> Option<T> {
    all.min_by_key(|one| place_us(one).abs_diff(to_us))
}

/// Lets the ticks and losses of the window through the door of a live measurement. Also says whether losses are a sample.
fn replay(
    recording: &Recording,
    worst: &PeakWindow,
    listing: &StoredListing,
    window_s: f64,
) -> Result<(Measure, bool)> {
    let timeouts = *listing.census.timeouts();
    let mut measure = Measure::new(worst.netns, window_s, timeouts, worst.run.run.counts_flows);
    let is_refusal = |loss: &Loss| loss.cause == Cause::TableFull && loss.packet.netns == worst.netns;
    let mut kept = 0;
    recording.each_loss(worst.ticks.clone(), |loss| kept += i64::from(is_refusal(loss)))?;
    let sampled = kept < worst.refused;
    let mut decoder = DeltaDecoder::default();
    let names = HashMap::new();
    let mut before = None;
    for stored in recording.ticks(&worst.run, i64::MIN..=*worst.ticks.end())? {
        let stored = stored?;
        decoder.add(&stored.tick);
        if stored.first < *worst.ticks.start() {
            before = (stored.id + 1 >= *worst.ticks.start()).then(|| decoder.sample(&stored.tick, &names));
            continue;
        }
        if let Some(before) = before.take() {
            measure.sample(&before);
        } else if measure.is_new() {
            measure.sample(&DeltaDecoder::default().sample(&stored.tick, &names));
        }
        recording.each_loss(stored.first..=stored.id, |loss| measure.loss(loss))?;
        let mut sample = decoder.sample(&stored.tick, &names);
        // Tuples that were not kept are as good as lost.
        sample.lost_events[Cause::TableFull as usize] += u64::from(sampled);
        measure.sample(&sample);
    }
    measure.listed(listing.census.clone());
    Ok((measure, sampled))
}

fn source(
    version: &'static str,
    worst: &PeakWindow,
    (listing, apart_s): (&StoredListing, f64),
    measure: &Measure,
    machine: &Machine,
    sampled: bool,
) -> Source {
    let mut notes = vec![format!(
        "from a recording: flows and drops from {:.0} to {:.0}, table listed at {:.0} ({})",
        worst.from,
        worst.to.time,
        listing.at.time,
        listing.reason.name()
    )];
    if apart_s.abs() > FAR_S {
        notes.push(format!(
            "the table was listed {:.0} min {} that window: states and lifetimes may have differed",
            apart_s.abs() / 60.0,
            if apart_s < 0.0 { "before" } else { "after" }
        ));
    }
    if sampled {
        notes.push(
            "a recording keeps a sample of the drops, so retries can't be told from new flows: each dropped packet counts \
             as a flow, and the offered load is an upper bound"
                .to_owned(),
        );
    }
    if !worst.run.run.counts_flows {
        notes.push(
            "flows were not counted: arrival rates are estimated from the timeouts of the entries".to_owned(),
        );
    }
    if worst.name.as_ref().is_some_and(|name| *name != HOST_NETNS) {
        notes.push(
            "run the commands inside that netns (nsenter, ip netns exec), but those for nf_conntrack_max and hashsize on the \
             host: only its root can set them"
                .to_owned(),
        );
    }
    notes.extend(machine.notes.iter().cloned());
    Source {
        version,
        time: worst.to.time,
        netns: worst.netns,
        name: worst.name.clone(),
        window_s: measure.seconds(),
        measured_by: if worst.run.run.counts_flows { "kprobe" } else { "census" },
        notes,
    }
}

fn assemble(
    services: Vec<Service>,
    measure: &Measure,
    machine: Machine,
    worst: &PeakWindow,
    rules: &Result<RulesThen, String>,
    times: f64,
) -> Case {
    let is_host = worst.name.is_none() || is_home_netns(worst.name.as_ref());
    let inside = if is_host { NetnsCommands::here(true) } else { NetnsCommands::entered(worst.netns) };
    let mut facts: BTreeMap<ServiceTarget, ServiceFacts> = BTreeMap::new();
    for service in services.iter().take(NAMED) {
        let (target, mut known) = (service.target(), ServiceFacts::default());
        match rules {
            Ok(rules) => facts::judge(&mut known, &target, &machine, &rules.firewall, &inside),
            Err(why) => known = unknown_facts(why),
        }
        facts.insert(target, known);
    }
    let firewall = match rules {
        Ok(rules) => facts::rules(&rules.firewall, &machine, &facts, &inside),
        Err(_) => Firewall::default(),
    };
    Case {
        demand: Demand {
            services,
            max: worst.max.unwrap_or_else(|| machine.table.max.unwrap_or(0) as u32),
            ephemeral: machine.ephemeral_ports.as_ref().map(machine::EphemeralPorts::ceiling),
            gc: Gc {
                // Up to 5.14 one scan every two minutes.
                every_s: machine.kernel_version.filter(|version| *version < (5, 15)).map(|_| 120.0),
                reaped_per_s: 0.0,
            },
            unevictable: None,
        },
        timeouts: *measure.timeouts(),
        machine,
        times,
        ways_in: Vec::new(),
        netns_prefix: String::new(),
        is_away_from_host: false,
        is_kept_at_boot: is_host,
        asked: Vec::new(),
        firewall,
        facts,
    }
}

/// A service of which the recording can't say whether a rule needs its state.
fn unknown_facts(why: &str) -> ServiceFacts {
    let objection = Objection {
        kind: ObjectionKind::Unknown,
        rule: format!("unknown: {why}").into(),
        place: Foreign::default(),
        text: "unknown whether NAT or a stateful rule needs these flows tracked".to_owned(),
        remedy: Some("sudo ctwatch advise".to_owned()),
    };
    ServiceFacts { objections: vec![objection], ..ServiceFacts::default() }
}

#[cfg(test)]
mod tests;
