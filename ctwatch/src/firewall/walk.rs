//! Walks the base chains as the kernel does, with every path a flow could take at once.
//! Bounded: rules that branch too much make it give up and say so, never make it slow.

use std::collections::HashMap;

use super::index::{Index, Walked};
use super::ir::{Action, Condition, Hook, Kind, Nat, RuleTable, Stays, Step, Tool};
use super::path::{At, Packet, Path, Place, View, Way};
use super::{Firewall, nat};

/// How many rule visits one question may cost in all, beside so many for each rule.
const BUDGET: usize = 400_000;
/// See [`BUDGET`].
const BUDGET_PER_RULE: usize = 60;
/// How many of them a question within it may cost that may as well stay open.
const SHARE: usize = 20_000;
/// As deep as the kernel lets chains jump: NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h, 6.12.
const DEEPEST: usize = 16;
/// Up to so many paths at once stay as they are, each with the rules that accepted it; of more, those are joined that together
/// stand for a question that needn't have been asked.
const APART: usize = 32;
/// So many ways to be dropped are told apart; the others are like them.
const TOLD: usize = 256;

/// The rules branch too much to be judged.
#[derive(Clone, Copy, Debug)]
pub struct TooMuch;

/// Where a packet was dropped.
#[derive(Clone, Copy, Debug)]
pub struct Dropped {
    /// Which packet of the flow.
    pub packet: Packet,
    /// By what.
    pub at: At,
}

/// How all paths of a flow ended.
#[derive(Default)]
pub struct Run {
    /// Every packet passed.
    pub passed: Vec<Path>,
    /// One didn't; the first [`TOLD`].
    pub dropped: Vec<(Path, Dropped)>,
    /// Taken out where a rule translated them, if asked for; the first [`TOLD`].
    pub translated: Vec<Path>,
}

/// Where packets are sent through.
#[derive(Clone, Copy, Debug)]
pub struct World<'h> {
    /// Conntrack sees the flow; else NOTRACK is in force.
    pub tracked: bool,
    /// Which way it goes.
    pub way: Way,
    /// Which hooks, if not all of this way.
    pub hooks: Option<&'h [Hook]>,
}

/// Which rules are walked.
#[derive(Clone, Copy)]
pub enum Rules<'w> {
    /// All.
    All,
    /// All, as far as the first translation.
    Untranslated,
    /// Only those that end in a translation of this kind, and what decides whether they are reached in the chains of
    /// translations. More flows get there than in truth.
    Translating(&'w Translations),
}

/// Some of the rules that translate.
pub struct Translations {
    wanted: Box<dyn Fn(&Nat) -> bool>,
    /// Which chains lead to one, by table.
    chains: Vec<Vec<bool>>,
}

impl Translations {
    /// Those for which `wanted` holds.
    pub fn new(firewall: &Firewall, wanted: Box<dyn Fn(&Nat) -> bool>) -> Self {
        let chains = firewall.index().tables.iter().map(|table| table.chains_with(&*wanted)).collect();
        Self { wanted, chains }
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.chains.iter().flatten().any(|has| *has)
    }
}

/// Rules to walk through.
pub struct Walker<'a> {
    firewall: &'a Firewall,
    tables: &'a [RuleTable],
    index: &'a Index,
    /// Base chains in one of the orders that they may have.
    bases: &'a [(usize, usize)],
    left: usize,
}

#[derive(Default)]
struct Out {
    through: Vec<Path>,
    accepted: Vec<Path>,
    dropped: Vec<(Path, At)>,
    translated: Vec<Path>,
}

impl Out {
    /// What a chain that was jumped to decided.
    fn decided(&mut self, done: Self) -> Vec<Path> {
        self.accepted.extend(done.accepted);
        self.dropped.extend(done.dropped);
        self.dropped.truncate(TOLD);
        self.translated.extend(done.translated);
        self.translated.truncate(TOLD);
        done.through
    }
}

impl<'a> Walker<'a> {
    /// For one question, with the base chains in this order.
    pub fn new(firewall: &'a Firewall, bases: &'a [(usize, usize)]) -> Self {
        let index = firewall.index();
        let rules: usize = index.tables.iter().flat_map(|table| &table.chains).map(Vec::len).sum();
        Self { firewall, tables: &firewall.tables, index, bases, left: BUDGET + BUDGET_PER_RULE * rules }
    }

    /// A question within this one that may as well stay open: it gets a share of what is left.
    pub fn in_short<T>(&mut self, ask: impl FnOnce(&mut Self) -> Result<T, TooMuch>) -> Result<T, TooMuch> {
        let share = self.left.min(SHARE);
        let rest = std::mem::replace(&mut self.left, share) - share;
        let answer = ask(self);
        self.left += rest;
        answer
    }

    /// Sends the packets of a flow, one after the other, by all rules.
    pub fn run(&mut self, world: &World<'_>, packets: &[Packet], start: Vec<Path>) -> Result<Run, TooMuch> {
        self.run_by(Rules::Untranslated, world, packets, start)
    }

    /// The same, by these rules.
    pub fn run_by(
        &mut self,
        rules: Rules<'_>,
        world: &World<'_>,
        packets: &[Packet],
        start: Vec<Path>,
    ) -> Result<Run, TooMuch> {
        let mut run = Run { passed: start, ..Run::default() };
        for (place, packet) in packets.iter().enumerate() {
            if place > 0 {
                run.passed.iter_mut().for_each(Path::next_packet);
            }
            let by_way = hooks(world.way, packet.request);
            for hook in world.hooks.unwrap_or(by_way) {
                for (table, chain) in self.bases {
                    let base = self.tables[*table].chains[*chain].base.as_ref().expect("it is a base chain");
                    if base.hook != *hook || !self.tables[*table].sees(packet.family) {
                        continue;
                    }
                    let translates = world.tracked && translates(world.way, *hook, packet);
                    if base.kind == Kind::Nat && !translates {
                        continue;
                    }
                    if let Rules::Translating(some) = rules
                        && (base.kind != Kind::Nat || !some.chains[*table][*chain])
                    {
                        continue;
                    }
                    self.base(rules, world, packet, (*table, *chain), &mut run)?;
                }
            }
        }
        run.passed.iter_mut().for_each(Path::end_packet);
        Ok(run)
    }

    fn base(
        &mut self,
        rules: Rules<'_>,
        world: &World<'_>,
        packet: &Packet,
        (table, chain): (usize, usize),
        run: &mut Run,
    ) -> Result<(), TooMuch> {
        let base = self.tables[table].chains[chain].base.as_ref().expect("it is a base chain");
        let policy = At { table, chain, rule: None, base: chain };
        let place = Place {
            packet,
            base,
            at: policy,
            tracked: world.tracked,
            way: world.way,
            host: &self.firewall.host,
            helps: self.firewall.has_helpers(),
            foreign_marks: self.index.foreign_marks,
        };
        let mut paths = std::mem::take(&mut run.passed);
        if base.kind == Kind::Nat {
            // An exempted packet has no entry, so nat chains don't see it. What has its translation of this kind keeps it.
            let done = paths.extract_if(.., |path| path.exempt || path.has_translation_for(base.hook));
            run.passed = done.collect();
        }
        let out = self.walk(rules, chain, paths, &place, 0)?;
        run.passed.extend(out.accepted);
        run.translated.extend(out.translated);
        run.translated.truncate(TOLD);
        let tell = |(path, at)| (path, Dropped { packet: *packet, at });
        run.dropped.extend(out.dropped.into_iter().map(tell));
        for mut path in out.through {
            if base.drops && !matches!(rules, Rules::Translating(_)) {
                run.dropped.push(tell((path, policy)));
            } else {
                path.accepted.push((packet.index, policy));
                run.passed.push(path);
            }
        }
        run.dropped.truncate(TOLD);
        if run.passed.len() > APART {
            run.passed = joined(std::mem::take(&mut run.passed));
        }
        Ok(())
    }

    fn matters(table: usize, rule: &Walked, rules: Rules<'_>) -> bool {
        let Rules::Translating(some) = rules else { return true };
        rule.leads_to(&some.chains[table], &*some.wanted)
    }

    fn walk(
        &mut self,
        rules: Rules<'_>,
        chain: usize,
        mut paths: Vec<Path>,
        place: &Place<'_>,
        depth: usize,
    ) -> Result<Out, TooMuch> {
        let table = place.at.table;
        let mut out = Out::default();
        let index = self.index;
        let mut apart = APART;
        for rule in &index.tables[table].chains[chain] {
            if paths.is_empty() {
                break;
            }
            self.left = self.left.checked_sub(paths.len()).ok_or(TooMuch)?;
            if !Self::matters(table, rule, rules) {
                continue;
            }
            let at = At { table, chain, rule: Some(rule.rule), base: place.at.base };
            let place = Place { at, ..*place };
            // First those for which a part of the rule can't hold: another part would split them for nothing.
            let conditions = || {
                rule.steps.iter().map_while(|step| match step {
                    Step::If(condition) => Some(condition),
                    Step::Do(_) | Step::Case(_) => None,
                })
            };
            let fails =
                |path: &Path| conditions().any(|condition| path.sure(condition, &place) == Some(false));
            if paths.iter().all(fails) {
                continue;
            }
            let (mut next, mut going): (Vec<Path>, Vec<Path>) =
                std::mem::take(&mut paths).into_iter().partition(fails);
            let begun = next.len() + going.len();
            for step in &rule.steps {
                going = match step {
                    Step::If(condition) => split(going, condition, &place, &mut next),
                    Step::Do(action) => self.act(rules, action, going, &place, &mut out, depth)?,
                    Step::Case(cases) => {
                        let mut on = Vec::new();
                        for (condition, action) in cases {
                            let mut others = Vec::new();
                            let hit = split(going, condition, &place, &mut others);
                            going = others;
                            if !hit.is_empty() {
                                on.extend(self.act(rules, action, hit, &place, &mut out, depth)?);
                            }
                        }
                        self.left = self.left.checked_sub(cases.len() / 8).ok_or(TooMuch)?;
                        on.extend(going);
                        on
                    }
                };
                if going.is_empty() {
                    break;
                }
            }
            let changed = begun != next.len() || !going.is_empty();
            next.extend(going);
            self.left = self.left.checked_sub(next.len()).ok_or(TooMuch)?;
            paths = next;
            if changed && paths.len() > 1 {
                paths = without_doubles(paths);
                if paths.len() > apart {
                    paths = joined(paths);
                    apart = APART.max(2 * paths.len());
                }
            }
        }
        out.through.extend(paths);
        Ok(out)
    }

    /// Does it for these paths; gives back those that go on with the rule.
    fn act(
        &mut self,
        rules: Rules<'_>,
        action: &Action,
        mut paths: Vec<Path>,
        place: &Place<'_>,
        out: &mut Out,
        depth: usize,
    ) -> Result<Vec<Path>, TooMuch> {
        if paths.is_empty() {
            return Ok(paths);
        }
        let accept = |mut paths: Vec<Path>, out: &mut Out| {
            paths.iter_mut().for_each(|path| path.accepted.push((place.packet.index, place.at)));
            out.accepted.extend(paths);
        };
        match action {
            Action::Accept => accept(std::mem::take(&mut paths), out),
            Action::Drop => {
                out.dropped.extend(paths.drain(..).map(|path| (path, place.at)));
                out.dropped.truncate(TOLD);
            }
            Action::Return => out.through.append(&mut paths),
            Action::Jump(name) | Action::Goto(name) => {
                match self.index.tables[place.at.table].chain(name) {
                    Some(chain) if depth < DEEPEST => {
                        let done = self.walk(rules, chain, paths, place, depth + 1)?;
                        paths = out.decided(done);
                    }
                    _ => paths = not_understood(paths, name, place, out),
                }
                if matches!(action, Action::Goto(_)) {
                    out.through.append(&mut paths);
                }
            }
            Action::Queue => {
                for path in &mut paths {
                    path.queued.get_or_insert(place.at);
                }
                paths = perhaps_dropped(paths, place, out);
                accept(std::mem::take(&mut paths), out);
            }
            Action::Unknown(text) => paths = not_understood(paths, text, place, out),
            Action::Nat(nat) => {
                if let Rules::Translating(some) = rules
                    && !(some.wanted)(nat)
                {
                    return Ok(paths);
                }
                for path in &mut paths {
                    nat::apply(path, nat, place);
                }
                if matches!(rules, Rules::Untranslated) {
                    out.translated.append(&mut paths);
                } else if place.base.kind == Kind::Nat {
                    accept(std::mem::take(&mut paths), out);
                }
            }
            Action::Notrack => {
                for path in &mut paths {
                    // It leaves a packet alone that has an entry: nft_notrack_eval, xt_ct_target, 6.12.
                    path.exempt |=
                        path.template.is_none() && matches!(path.view(place), View::Known(_, false));
                }
            }
            Action::Template { zone } => {
                // iptables' CT leaves a packet alone that is exempt: xt_ct_target, net/netfilter/xt_CT.c, 6.12.
                let spares = self.tables[place.at.table].tool != Tool::Nft;
                let is_exempt = |path: &Path| path.exempt || !place.tracked;
                for path in paths.iter_mut().filter(|path| !(spares && is_exempt(path))) {
                    path.template.get_or_insert(place.at);
                    if path.zone.is_none() {
                        path.zone.clone_from(zone);
                    }
                }
            }
            Action::Helper(name) => {
                for path in &mut paths {
                    path.helper.get_or_insert_with(|| (place.at, name.clone()));
                }
            }
            Action::SetMark { mask, value } => {
                paths.iter_mut().for_each(|path| path.set_mark(*mask, *value));
            }
            Action::MarkUnknown(stays, _) => {
                paths.iter_mut().for_each(|path| path.make_mark_unknown(*stays));
            }
            Action::MarkFromConnection => {
                let has_entry = |path: &&mut Path| !matches!(path.view(place), View::Known(_, false));
                for path in paths.iter_mut().filter(has_entry) {
                    path.mark_read.get_or_insert(place.at);
                    path.make_mark_unknown(Stays::Packet);
                }
            }
            Action::Continue | Action::WriteConnection | Action::Writes(_) => {}
        }
        Ok(paths)
    }
}

/// NAT is set up with a flow's first packet; behind lo that packet's entry is confirmed and stays as it is.
fn translates(way: Way, hook: Hook, packet: &Packet) -> bool {
    let behind_lo = way == Way::Loopback && matches!(hook, Hook::Prerouting | Hook::Input);
    packet.index == 0 && packet.icmp.is_none() && !behind_lo
}

/// The hooks a packet passes, in order.
pub fn hooks(way: Way, request: bool) -> &'static [Hook] {
    const IN: &[Hook] = &[Hook::Prerouting, Hook::Input];
    const OUT: &[Hook] = &[Hook::Output, Hook::Postrouting];
    const LOOPED: &[Hook] = &[Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input];
    const THROUGH: &[Hook] = &[Hook::Prerouting, Hook::Forward, Hook::Postrouting];
    match (way, request) {
        (Way::Loopback, _) => LOOPED,
        (Way::Served, true) | (Way::Outgoing, false) => IN,
        (Way::Served, false) | (Way::Outgoing, true) => OUT,
        (Way::Forwarded | Way::Arriving, _) => THROUGH,
    }
}

fn split(paths: Vec<Path>, condition: &Condition, place: &Place<'_>, others: &mut Vec<Path>) -> Vec<Path> {
    let mut holding = Vec::new();
    for path in paths {
        match path.sure(condition, place) {
            Some(true) => holding.push(path),
            Some(false) => others.push(path),
            None => {
                let (yes, no) = path.split(condition, place);
                holding.extend(yes);
                others.extend(no);
            }
        }
    }
    holding
}

/// Both ways, for something that may end the packet. It is an objection by itself, so that the flows need not be told apart by it.
fn perhaps_dropped(mut paths: Vec<Path>, place: &Place<'_>, out: &mut Out) -> Vec<Path> {
    for path in &mut paths {
        path.gambled.get_or_insert(place.at);
    }
    out.dropped.extend(paths.iter().take(TOLD).map(|path| (path.clone(), place.at)));
    out.dropped.truncate(TOLD);
    paths
}

/// The same for what may do anything else, too.
fn not_understood(mut paths: Vec<Path>, what: &str, place: &Place<'_>, out: &mut Out) -> Vec<Path> {
    for path in &mut paths {
        path.unknown.get_or_insert_with(|| (place.at, what.to_owned()));
    }
    perhaps_dropped(paths, place, out)
}

/// Each of them once.
fn without_doubles(paths: Vec<Path>) -> Vec<Path> {
    let mut kept: Vec<Path> = Vec::with_capacity(paths.len());
    let mut known: HashMap<u64, Vec<usize>> = HashMap::new();
    for path in paths {
        let same = known.entry(path.fingerprint()).or_default();
        if !same.iter().any(|at| kept[*at] == path) {
            same.push(kept.len());
            kept.push(path);
        }
    }
    kept
}

/// Two paths that differ in the answer to one question are one for which it hasn't been asked; as often as there are such.
fn joined(mut paths: Vec<Path>) -> Vec<Path> {
    loop {
        let before = paths.len();
        let mut kept: Vec<Option<Path>> = Vec::with_capacity(before);
        let mut known: HashMap<u64, Vec<usize>> = HashMap::new();
        for mut path in paths {
            loop {
                let partner = path.fingerprints_but_one().into_iter().find_map(|fingerprint| {
                    let near = known.get(&fingerprint)?;
                    near.iter().find_map(|at| Some((*at, kept[*at].as_ref()?.joined(&path)?)))
                });
                let Some((at, both)) = partner else { break };
                kept[at] = None;
                path = both;
            }
            for fingerprint in path.fingerprints_but_one() {
                known.entry(fingerprint).or_default().push(kept.len());
            }
            kept.push(Some(path));
        }
        paths = kept.into_iter().flatten().collect();
        if paths.len() == before {
            return paths;
        }
    }
}
