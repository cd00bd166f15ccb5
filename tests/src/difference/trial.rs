//! One rule set: what is answered for each side of the asked port, and what its commands do to flows.
//! A flow counts as broken only if it fails with patience, passes again without the commands, and fails again with them.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ctwatch::firewall::{self, Commands, ObjectionKind};
use ctwatch::kernel::roots::Roots;

use super::grammar::RuleSet;
use super::ground::{self, Asked};
use super::random::Random;
use crate::cases::{difference, rules, target};
use crate::lab::{self, Entry, Flow, Piece, Place, Seen, Side, measure};
use crate::shell::{run, run_with_input};

/// A flow that passes needs a few milliseconds on a quiet machine.
const SHORT: Duration = Duration::from_millis(150);
/// For what seems to be broken: longer than a SYN's second attempt.
pub const LONG: Duration = Duration::from_millis(2500);
/// For what is refused anyway.
const MIDDLE: Duration = Duration::from_millis(400);
/// So often another set is made where the tools refuse one.
const ATTEMPTS: u32 = 20;

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    /// A flow that passed is refused, or meets others than before.
    Broken { flow: String, before: String, after: String },
    /// A flow that was refused passes.
    Opened { flow: String, answer: String },
    /// It exempts nothing, or only half of a flow.
    Tracked { flow: String, entry: Entry },
    /// A command failed.
    Failed(String),
    /// The rules are others after the undo.
    Undo(String),
}

impl Harm {
    /// The flow that comes to it.
    fn flow(&self) -> Option<&str> {
        match self {
            Self::Broken { flow, .. } | Self::Opened { flow, .. } | Self::Tracked { flow, .. } => Some(flow),
            Self::Failed(_) | Self::Undo(_) => None,
        }
    }
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { flow, before, after } => write!(f, "broken: {flow}: {after} (before: {before})"),
            Self::Opened { flow, answer } => write!(f, "opened: {flow}: {answer}"),
            Self::Tracked { flow, entry } => {
                write!(f, "tracked: {flow}: entry {} to {}", entry.src, entry.dst)
            }
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Undo(lines) => write!(f, "undo: {lines}"),
        }
    }
}

/// What was answered.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// No objection.
    Advised,
    /// There is nothing to exempt.
    Nothing,
    /// Each objection's kind and words.
    Refused(Vec<(ObjectionKind, String)>),
}

/// An answer and what its commands did.
#[derive(Clone, Debug)]
pub struct Answer {
    pub piece: Piece,
    pub verdict: Verdict,
    pub harms: Vec<Harm>,
    /// Of the flows that passed, so many were the piece's own.
    pub own_flows: usize,
    /// So many flows passed at all.
    pub passing: usize,
    /// Of so many.
    pub flows: usize,
    now: Vec<String>,
    set: RuleSet,
}

impl Answer {
    /// Forgets harm to flows that came to none in an earlier try of the same piece.
    pub fn keep_what_repeats(&mut self, earlier: &Answer) {
        let is_same = |one: &Harm, other: &Harm| match (one.flow(), other.flow()) {
            (Some(one), Some(other)) => one == other,
            (None, None) => true,
            _ => false,
        };
        self.harms.retain(|harm| earlier.harms.iter().any(|other| is_same(harm, other)));
    }

    /// What may never be. Where half of a NOTRACK stands already, flows that it breaks today may work with the other half.
    pub fn is_counterexample(&self) -> bool {
        let has_half = self.rules().to_string().to_lowercase().contains("notrack");
        let counts = |harm: &Harm| !(has_half && matches!(harm, Harm::Opened { .. }));
        !matches!(self.verdict, Verdict::Refused(_)) && self.harms.iter().any(counts)
    }

    /// Whether these flows and this exemption would have been fine; how it is undone is another matter.
    pub fn is_harmless(&self) -> bool {
        self.harms.iter().all(|harm| matches!(harm, Harm::Undo(_)))
    }

    /// Refused, though it would have been fine; a limit, a mark or a helper would be lost without a flow that shows it. Where no
    /// flow of its own passes, nobody would ask, and nothing shows that it would be fine.
    pub fn is_refused_without_need(&self) -> bool {
        self.own_flows > 0 && self.is_without_need()
    }

    fn is_without_need(&self) -> bool {
        matches!(&self.verdict, Verdict::Refused(objections) if !objections.iter().any(|(kind, text)| is_unseen(*kind, text)))
            && self.is_harmless()
    }

    pub fn rules(&self) -> &RuleSet {
        &self.set
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match &self.verdict {
            Verdict::Advised => "advised".to_owned(),
            Verdict::Nothing => "said to be untracked already".to_owned(),
            Verdict::Refused(objections) => {
                let all: Vec<_> = objections.iter().map(|(kind, text)| format!("{kind:?}: {text}")).collect();
                format!("refused ({})", all.join("; "))
            }
        };
        write!(f, "{} is {verdict}", self.piece)?;
        for harm in &self.harms {
            write!(f, "\n  {harm}")?;
        }
        if !self.harms.is_empty() {
            for line in &self.now {
                write!(f, "\n  now: {line}")?;
            }
        }
        Ok(())
    }
}

/// Whether the loss is one that a flow or two don't show.
pub fn is_unseen(kind: ObjectionKind, text: &str) -> bool {
    matches!(kind, ObjectionKind::ConnectionMark | ObjectionKind::Helper)
        || ["limit", "ct count", "connmark", "ct mark", "label", "helper", "length"]
            .iter()
            .any(|word| text.contains(word))
}

/// How long to wait now for answers that may never come: several times what the plain flows take where no rule is, lest a busy
/// machine be taken for rules that refuse.
pub fn patience(place: &Place, asked: &Asked) -> Result<Duration> {
    place.host().run(|| run(&["nft", "flush", "ruleset"]).map(drop))?;
    let is_plain =
        |flow: &Flow| flow.from.is_none() && flow.from_port.is_none() && place.owner(flow.to.ip()).is_some();
    let flows: Vec<Flow> = ground::flows(asked).into_iter().filter(is_plain).collect();
    let began = Instant::now();
    measure(place, &flows, LONG)?;
    Ok((began.elapsed() * 4).clamp(SHORT, LONG))
}

/// Loads a random set; sets that the tools refuse are counted and made anew.
pub fn load(place: &Place, random: &mut Random, asked: &Asked) -> Result<Option<(RuleSet, u32)>> {
    for refused in 0..ATTEMPTS {
        let set = RuleSet::random(random, asked);
        if put(place, &set)?.is_none() {
            return Ok(Some((set, refused)));
        }
    }
    Ok(None)
}

/// Loads it in place of what was there; what a tool says if it refuses.
fn put(place: &Place, set: &RuleSet) -> Result<Option<String>> {
    place.host().run(|| {
        run(&["nft", "flush", "ruleset"])?;
        for part in &set.parts {
            if let Err(error) = run_with_input(part.tool, &part.text) {
                return Ok(Some(format!("{error:#}")));
            }
        }
        Ok(None)
    })
}

/// A rule set that is loaded, and what passes with it.
pub struct Trial<'a> {
    place: &'a Place,
    asked: Asked,
    set: RuleSet,
    flows: Vec<Flow>,
    before: Vec<Seen>,
    entries: Vec<Entry>,
    rules: String,
    /// How long an answer may take.
    patience: Duration,
}

impl<'a> Trial<'a> {
    pub fn new(place: &'a Place, asked: &Asked, set: &RuleSet, patience: Duration) -> Result<Self> {
        let flows = ground::flows(asked);
        place.host().run(lab::flush)?;
        let before = measure(place, &flows, patience)?;
        // Whoever means harm must not be let in; what else becomes of them is nobody's concern.
        let counts = |(flow, seen): &(Flow, Seen)| !ground::is_hostile(flow) || seen.answer.is_none();
        let (flows, before) = flows.into_iter().zip(before).filter(counts).unzip();
        let (entries, rules) = place.host().run(|| Ok((lab::entries()?, rules()?)))?;
        Ok(Self { place, asked: *asked, set: set.clone(), flows, before, entries, rules, patience })
    }

    /// The flows and what became of them before.
    pub fn before(&self) -> impl Iterator<Item = String> {
        self.flows
            .iter()
            .zip(&self.before)
            .map(|(flow, seen)| format!("{flow}: {}", seen.answer.as_deref().unwrap_or("no answer")))
    }

    /// Asks about each side of the port.
    pub fn all(&self) -> Result<Vec<Answer>> {
        self.ask(&[Side::Loopback, Side::In, Side::Out])
    }

    fn ask(&self, sides: &[Side]) -> Result<Vec<Answer>> {
        let (firewall, _, notes) = self.place.host().run(|| Ok(firewall::read(&Roots::default())))?;
        let mut answers = Vec::new();
        for side in sides {
            let piece = Piece { port: self.asked.port, proto: self.asked.proto, side: *side };
            let exempt = target(&piece);
            let objections = firewall.objections(&exempt);
            let commands = firewall.notrack_commands(&exempt, firewall.preferred_tool());
            let mut reasons: Vec<_> = objections
                .iter()
                .filter(|one| one.kind.forbids())
                .map(|one| (one.kind, format!("{} [{}]", one.text, one.located_rule())))
                .collect();
            reasons.extend(
                notes.iter().map(|note| (ObjectionKind::Unknown, format!("{}: {}", note.tool, note.text))),
            );
            let untracked = objections.iter().any(|one| one.kind == ObjectionKind::AlreadyUntracked);
            let (verdict, harms) = if untracked {
                (Verdict::Nothing, self.tracked(&piece, &self.before, &self.entries))
            } else {
                let verdict = if reasons.is_empty() { Verdict::Advised } else { Verdict::Refused(reasons) };
                let harms = self.try_commands(&piece, &commands, matches!(verdict, Verdict::Advised))?;
                (verdict, harms)
            };
            let own =
                self.flows.iter().zip(&self.before).filter(|(flow, seen)| self.is_own(&piece, flow, seen));
            answers.push(Answer {
                piece,
                verdict,
                harms,
                own_flows: own.count(),
                passing: self.before.iter().filter(|seen| seen.answer.is_some()).count(),
                flows: self.flows.len(),
                now: commands.now,
                set: self.set.clone(),
            });
        }
        Ok(answers)
    }

    /// Whether a flow that passed is one that the piece is about: to its very address and port, by nobody's translation.
    fn is_own(&self, piece: &Piece, flow: &Flow, seen: &Seen) -> bool {
        let (Some(answer), Some(from)) = (&seen.answer, seen.from) else { return false };
        let expected = self
            .place
            .owner(flow.to.ip())
            .map(|owner| format!("{owner} port {} sees {}", flow.to.port(), from.ip()));
        flow.is_of(piece, self.place.own()) && expected.as_ref() == Some(answer)
    }

    /// The piece's own flows that have an entry.
    fn tracked(&self, piece: &Piece, seen: &[Seen], entries: &[Entry]) -> Vec<Harm> {
        let mut harms = Vec::new();
        for ((flow, before), seen) in self.flows.iter().zip(&self.before).zip(seen) {
            let Some(from) = seen.from.filter(|_| self.is_own(piece, flow, before)) else { continue };
            if let Some(entry) = entries.iter().find(|entry| flow.has(entry, from)) {
                harms.push(Harm::Tracked { flow: flow.to_string(), entry: *entry });
            }
        }
        harms
    }

    fn shell(&self, lines: &[String]) -> Option<Harm> {
        self.place
            .host()
            .run(|| lines.iter().try_for_each(|line| run(&["sh", "-c", line]).map(drop)))
            .err()
            .map(|error| Harm::Failed(format!("{error:#}")))
    }

    /// Does what is advised, or would have been, and undoes it. What `counts` has to be sure.
    fn try_commands(&self, piece: &Piece, commands: &Commands, counts: bool) -> Result<Vec<Harm>> {
        let host = self.place.host();
        let mut harms: Vec<Harm> = self.shell(&commands.now).into_iter().collect();
        host.run(lab::flush)?;
        let after = measure(self.place, &self.flows, self.patience)?;
        let entries = host.run(lab::entries)?;
        let mut suspects: Vec<usize> =
            (0..self.flows.len()).filter(|at| after[*at].answer != self.before[*at].answer).collect();
        let mut tracked = self.tracked(piece, &after, &entries);
        if is_narrowed(&commands.now) {
            // Then some stay as they are, on purpose; a half is nobody's purpose.
            let is_half =
                |harm: &Harm| matches!(harm, Harm::Tracked { flow, entry } if self.is_half(flow, entry));
            let own =
                self.flows.iter().zip(&self.before).filter(|(flow, seen)| self.is_own(piece, flow, seen));
            if tracked.len() < own.count() {
                tracked.retain(is_half);
            }
        }
        harms.extend(tracked);
        if !suspects.is_empty() {
            let seen =
                self.confirm(&mut suspects, false, if counts { LONG } else { self.patience.max(MIDDLE) })?;
            if !counts {
                harms.extend(suspects.drain(..).zip(seen).map(|(at, seen)| self.changed(at, &seen)));
            }
        }
        harms.extend(self.shell(&commands.undo));
        let rules = host.run(rules)?;
        if rules != self.rules {
            harms.push(Harm::Undo(difference(&self.rules, &rules)));
            put(self.place, &self.set)?;
        }
        if !suspects.is_empty() {
            self.confirm(&mut suspects, true, LONG)?;
        }
        if !suspects.is_empty() {
            // Once more, to be sure.
            let _ = self.shell(&commands.now);
            let after = self.confirm(&mut suspects, false, LONG)?;
            harms.extend(suspects.drain(..).zip(after).map(|(at, seen)| self.changed(at, &seen)));
            let _ = self.shell(&commands.undo);
            if host.run(crate::cases::rules)? != self.rules {
                put(self.place, &self.set)?;
            }
        }
        Ok(harms)
    }

    fn changed(&self, at: usize, seen: &Seen) -> Harm {
        let words = |seen: &Seen| seen.answer.clone().unwrap_or_else(|| "no answer".to_owned());
        let (flow, before) = (self.flows[at].to_string(), &self.before[at]);
        if before.answer.is_none() {
            Harm::Opened { flow, answer: words(seen) }
        } else {
            Harm::Broken { flow, before: words(before), after: words(seen) }
        }
    }

    /// Tries the suspects with patience and keeps those that are (or are not) as before. Returns what was seen of them.
    fn confirm(&self, suspects: &mut Vec<usize>, as_before: bool, patience: Duration) -> Result<Vec<Seen>> {
        self.place.host().run(lab::flush)?;
        let flows: Vec<Flow> = suspects.iter().map(|at| self.flows[*at].clone()).collect();
        let seen = measure(self.place, &flows, patience)?;
        let mut all = seen.into_iter();
        let mut kept = Vec::new();
        suspects.retain(|at| {
            let seen = all.next().expect("one for each");
            let keep = (seen.answer == self.before[*at].answer) == as_before;
            kept.extend(keep.then_some(seen));
            keep
        });
        Ok(kept)
    }

    /// Whether the entry was opened by the flow's server: its client's direction is untracked.
    fn is_half(&self, flow: &str, entry: &Entry) -> bool {
        flow.parse::<Flow>().is_ok_and(|flow| entry.src == SocketAddr::new(flow.to.ip(), flow.to.port()))
    }
}

/// Whether commands are for some addresses or one family only.
fn is_narrowed(now: &[String]) -> bool {
    let text = now.join("\n");
    let addresses = [&ground::V4, &ground::V6].into_iter().any(|of| {
        [of.lan, of.client, of.wan, of.outside, of.dmz, of.neighbour, of.lan_net, of.wan_net]
            .iter()
            .any(|address| text.contains(address))
    });
    let families = ["table ip ", "table ip6 ", "nfproto", "127.0.0.", "::1", " daddr ", " saddr "];
    let one_program = now.iter().all(|line| line.contains("ip6tables"))
        || now.iter().all(|line| !line.contains("ip6tables") && line.contains("iptables"));
    addresses || families.iter().any(|word| text.replace("fib daddr", "").contains(word)) || one_program
}

/// Makes the set of each counterexample smaller for as long as it stays one in the same way.
pub fn shrink(place: &Place, asked: &Asked, answers: &mut [Answer]) -> Result<()> {
    for answer in answers.iter_mut().filter(|answer| answer.is_counterexample()) {
        let kinds = kinds(answer);
        let mut smaller = answer.set.smaller().into_iter();
        while let Some(set) = smaller.next() {
            if put(place, &set)?.is_some() {
                continue;
            }
            let again = Trial::new(place, asked, &set, LONG)?.ask(&[answer.piece.side])?;
            let same = again.into_iter().find(|one| {
                one.is_counterexample() && self::kinds(one).iter().any(|kind| kinds.contains(kind))
            });
            if let Some(same) = same {
                *answer = same;
                smaller = answer.set.smaller().into_iter();
            }
        }
    }
    place.host().run(|| run(&["nft", "flush", "ruleset"]).map(drop)).context("after the last set")
}

/// The kinds of harm; an undo that leaves something counts if there is nothing else.
fn kinds(answer: &Answer) -> Vec<std::mem::Discriminant<Harm>> {
    let flows: Vec<_> = answer.harms.iter().filter(|harm| !matches!(harm, Harm::Undo(_))).collect();
    let harms = if flows.is_empty() { answer.harms.iter().collect() } else { flows };
    harms.into_iter().map(std::mem::discriminant).collect()
}
