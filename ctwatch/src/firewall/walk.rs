//! Walks the base chains as the kernel does, with every path a flow could take at once.
//! Bounded: rules that branch too much make it give up and say so, never make it slow.

use std::collections::HashMap;

use super::Scope;
use super::ir::{Action, Chain, Condition, Family, Hook, Kind, Rule, RuleTable, Step};
use super::path::{At, Packet, Path, Place};

/// How many rule visits one question may cost.
const BUDGET: usize = 400_000;
/// As deep as the kernel lets chains jump: NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h, 6.12.
const DEEPEST: usize = 16;
/// Up to so many paths are compared with each other to drop doubles.
const COMPARED: usize = 64;

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
    /// One didn't.
    pub dropped: Vec<(Path, Dropped)>,
}

/// Rules to walk through.
pub struct Walker<'a> {
    tables: &'a [RuleTable],
    scope: Scope,
    /// Base chains in the order of their priorities: (table, chain).
    bases: Vec<(usize, usize)>,
    /// Whether a chain decides or changes anything.
    effects: HashMap<(usize, usize), bool>,
    left: usize,
}

#[derive(Default)]
struct Out {
    through: Vec<Path>,
    accepted: Vec<Path>,
    dropped: Vec<(Path, At)>,
}

impl<'a> Walker<'a> {
    /// For flows of this scope.
    pub fn new(tables: &'a [RuleTable], scope: Scope) -> Self {
        let mut bases = Vec::new();
        for (table, of) in tables.iter().enumerate() {
            for (chain, of) in of.chains.iter().enumerate() {
                bases.extend(of.base.as_ref().map(|base| (base.priority, table, chain)));
            }
        }
        bases.sort_by_key(|(priority, ..)| *priority);
        let mut walker = Self {
            tables,
            scope,
            bases: bases.into_iter().map(|(_, table, chain)| (table, chain)).collect(),
            effects: HashMap::new(),
            left: BUDGET,
        };
        for (table, of) in tables.iter().enumerate() {
            for chain in 0..of.chains.len() {
                walker.has_effect(table, chain, 0);
            }
        }
        walker
    }

    /// Sends the packets of a flow, one after the other.
    pub fn run(&mut self, tracked: bool, packets: &[Packet], start: Vec<Path>) -> Result<Run, TooMuch> {
        let mut run = Run { passed: start, dropped: Vec::new() };
        for packet in packets {
            for hook in hooks(self.scope, packet.request) {
                for (table, chain) in self.bases.clone() {
                    let base = self.chain(table, chain).base.as_ref().expect("it is a base chain");
                    if base.hook != *hook || !self.tables[table].sees(packet.family) {
                        continue;
                    }
                    if base.kind == Kind::Nat && !(tracked && self.translates(*hook, packet)) {
                        continue;
                    }
                    self.base(tracked, packet, (table, chain), &mut run)?;
                }
            }
            run.passed.iter_mut().for_each(Path::next_packet);
        }
        Ok(run)
    }

    /// NAT is set up with a flow's first packet; behind lo that packet's entry is confirmed and stays as it is.
    fn translates(&self, hook: Hook, packet: &Packet) -> bool {
        let behind_lo = self.scope == Scope::Loopback && matches!(hook, Hook::Prerouting | Hook::Input);
        packet.index == 0 && packet.icmp.is_none() && !behind_lo
    }

    fn base(
        &mut self,
        tracked: bool,
        packet: &Packet,
        (table, chain): (usize, usize),
        run: &mut Run,
    ) -> Result<(), TooMuch> {
        let base = self.chain(table, chain).base.as_ref().expect("it is a base chain");
        let policy = At { table, chain, rule: None, base: chain };
        let place = Place { packet, base, at: policy, tracked, scope: self.scope };
        let mut paths = std::mem::take(&mut run.passed);
        if base.kind == Kind::Nat {
            // An exempted packet has no entry, so nat chains don't see it.
            let exempt = paths.extract_if(.., |path| path.exempt);
            run.passed = exempt.collect();
        }
        let out = self.walk(chain, paths, &place, 0)?;
        run.passed.extend(out.accepted);
        run.dropped.extend(out.dropped.into_iter().map(|(path, at)| (path, Dropped { packet: *packet, at })));
        for mut path in out.through {
            if base.drops {
                run.dropped.push((path, Dropped { packet: *packet, at: policy }));
            } else {
                path.accepted.push((packet.index, policy));
                run.passed.push(path);
            }
        }
        Ok(())
    }

    fn chain(&self, table: usize, chain: usize) -> &'a Chain {
        &self.tables[table].chains[chain]
    }

    fn walk(
        &mut self,
        chain: usize,
        mut paths: Vec<Path>,
        place: &Place<'_>,
        depth: usize,
    ) -> Result<Out, TooMuch> {
        let table = place.at.table;
        let mut out = Out::default();
        for (index, rule) in self.chain(table, chain).rules.iter().enumerate() {
            if paths.is_empty() || !self.matters(table, rule) {
                continue;
            }
            self.left = self.left.checked_sub(paths.len()).ok_or(TooMuch)?;
            let at = At { table, chain, rule: Some(index), base: place.at.base };
            let place = Place { at, ..*place };
            let (mut going, mut next) = (std::mem::take(&mut paths), Vec::new());
            for step in &rule.steps {
                going = match step {
                    Step::If(condition) => split(going, condition, &place, &mut next),
                    Step::Do(action) => self.act(action, going, &place, &mut out, depth)?,
                    Step::Case(cases) => {
                        let mut on = Vec::new();
                        for (condition, action) in cases {
                            let mut others = Vec::new();
                            let hit = split(going, condition, &place, &mut others);
                            going = others;
                            on.extend(self.act(action, hit, &place, &mut out, depth)?);
                        }
                        on.extend(going);
                        on
                    }
                };
                self.left = self.left.checked_sub(going.len() + next.len()).ok_or(TooMuch)?;
            }
            next.extend(going);
            paths = without_doubles(next);
        }
        out.through.extend(paths);
        Ok(out)
    }

    /// Does it for these paths; gives back those that go on with the rule.
    fn act(
        &mut self,
        action: &Action,
        mut paths: Vec<Path>,
        place: &Place<'_>,
        out: &mut Out,
        depth: usize,
    ) -> Result<Vec<Path>, TooMuch> {
        let accept = |mut paths: Vec<Path>, out: &mut Out| {
            paths.iter_mut().for_each(|path| path.accepted.push((place.packet.index, place.at)));
            out.accepted.extend(paths);
        };
        match action {
            Action::Accept => accept(std::mem::take(&mut paths), out),
            Action::Drop => out.dropped.extend(paths.drain(..).map(|path| (path, place.at))),
            Action::Return => out.through.append(&mut paths),
            Action::Jump(name) | Action::Goto(name) => {
                let chains = &self.tables[place.at.table].chains;
                match chains.iter().position(|chain| chain.name == *name) {
                    Some(chain) if depth < DEEPEST => {
                        let done = self.walk(chain, paths, place, depth + 1)?;
                        out.accepted.extend(done.accepted);
                        out.dropped.extend(done.dropped);
                        paths = done.through;
                    }
                    _ => paths = perhaps_dropped(paths, name, place, out),
                }
                if matches!(action, Action::Goto(_)) {
                    out.through.append(&mut paths);
                }
            }
            Action::Queue => {
                paths = perhaps_dropped(paths, "queue", place, out);
                accept(std::mem::take(&mut paths), out);
            }
            Action::Unknown(text) => paths = perhaps_dropped(paths, text, place, out),
            Action::Nat(nat) => {
                for path in &mut paths {
                    path.nat.get_or_insert_with(|| (place.at, nat.clone()));
                }
                if place.base.kind == Kind::Nat {
                    accept(std::mem::take(&mut paths), out);
                }
            }
            Action::Notrack => {
                for path in &mut paths {
                    // It leaves a packet alone that has an entry: nft_notrack_eval, xt_ct_target, 6.12.
                    path.exempt |= !path.view(place).1;
                }
            }
            Action::Helper(name) => {
                for path in &mut paths {
                    path.helper.get_or_insert_with(|| (place.at, name.clone()));
                }
            }
            Action::SetMark { mask, value } => {
                paths.iter_mut().for_each(|path| path.mark = path.mark.map(|mark| (mark & !mask) ^ value));
            }
            Action::MarkUnknown => paths.iter_mut().for_each(|path| path.mark = None),
            Action::MarkFromConnection => {
                for path in paths.iter_mut().filter(|path| path.view(place).1) {
                    path.mark_read.get_or_insert(place.at);
                    path.mark = None;
                }
            }
            Action::Continue | Action::WriteConnection => {}
        }
        Ok(paths)
    }

    fn matters(&self, table: usize, rule: &Rule) -> bool {
        let action = |action: &Action| match action {
            Action::Jump(name) => {
                let chain = self.tables[table].chains.iter().position(|chain| chain.name == *name);
                chain.is_none_or(|chain| self.effects.get(&(table, chain)).copied().unwrap_or(true))
            }
            Action::Continue | Action::WriteConnection => false,
            _ => true,
        };
        rule.steps.iter().any(|step| match step {
            Step::If(condition) => counts(condition),
            Step::Do(does) => action(does),
            Step::Case(cases) => cases.iter().any(|(_, does)| action(does)),
        })
    }

    fn has_effect(&mut self, table: usize, chain: usize, depth: usize) -> bool {
        if let Some(known) = self.effects.get(&(table, chain)) {
            return *known;
        }
        let of = self.chain(table, chain);
        let targets = of.rules.iter().flat_map(|rule| &rule.steps).flat_map(|step| match step {
            Step::Do(Action::Jump(name)) => vec![name],
            Step::Case(cases) => {
                let jumps = cases.iter().filter_map(|(_, action)| match action {
                    Action::Jump(name) => Some(name),
                    _ => None,
                });
                jumps.collect()
            }
            _ => Vec::new(),
        });
        if depth < DEEPEST {
            for name in targets {
                let called = self.tables[table].chains.iter().position(|chain| chain.name == *name);
                if let Some(called) = called {
                    self.has_effect(table, called, depth + 1);
                }
            }
        }
        let effect = of.rules.iter().any(|rule| self.matters(table, rule));
        self.effects.insert((table, chain), effect);
        effect
    }
}

/// The hooks a packet passes, in order.
fn hooks(scope: Scope, request: bool) -> &'static [Hook] {
    const IN: &[Hook] = &[Hook::Prerouting, Hook::Input];
    const OUT: &[Hook] = &[Hook::Output, Hook::Postrouting];
    const LOOPED: &[Hook] = &[Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input];
    match (scope, request) {
        (Scope::Loopback, _) => LOOPED,
        (Scope::Served, true) | (Scope::Outgoing, false) => IN,
        (Scope::Served, false) | (Scope::Outgoing, true) => OUT,
    }
}

/// Whether the rule counts connections, which matters even where nothing follows from the count.
fn counts(condition: &Condition) -> bool {
    match condition {
        Condition::CountsConnections(_) => true,
        Condition::All(all) | Condition::Any(all) => all.iter().any(counts),
        Condition::Not(condition) => counts(condition),
        _ => false,
    }
}

fn split(paths: Vec<Path>, condition: &Condition, place: &Place<'_>, others: &mut Vec<Path>) -> Vec<Path> {
    let mut holding = Vec::with_capacity(paths.len());
    for path in paths {
        let (yes, no) = path.split(condition, place);
        holding.extend(yes);
        others.extend(no);
    }
    holding
}

/// Both ways, for something that may end the packet.
fn perhaps_dropped(paths: Vec<Path>, what: &str, place: &Place<'_>, out: &mut Out) -> Vec<Path> {
    let mut on = Vec::new();
    let ends = Condition::Unknown(super::ir::Stays::Packet, format!("ended by {what}"));
    let dropped = split(paths, &ends, place, &mut on);
    out.dropped.extend(dropped.into_iter().map(|path| (path, place.at)));
    on
}

fn without_doubles(paths: Vec<Path>) -> Vec<Path> {
    if paths.len() < 2 || paths.len() > COMPARED {
        return paths;
    }
    let mut kept: Vec<Path> = Vec::with_capacity(paths.len());
    for path in paths {
        if !kept.contains(&path) {
            kept.push(path);
        }
    }
    kept
}

/// The families to ask about.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
