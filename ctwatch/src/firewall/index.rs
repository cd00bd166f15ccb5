//! The rules prepared for walking, once for all questions: chains by name, base chains in their order, rules of one
//! shape joined. A list of 20,000 banned addresses is one rule here; what a rule does stays what it was.

use std::collections::{BTreeSet, HashMap};

use super::ir::{Action, Condition, Family, Field, Hook, Nat, Rule, RuleTable, Step};
use super::ranges::Ranges;

/// All tables.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// In the order of the tables.
    pub tables: Vec<TableIndex>,
    /// Base chains in the order of their priorities: (table, chain). Of equal ones the kernel runs the newer first
    /// (nf_hook_entries_grow, net/netfilter/core.c, 6.12), and no list says which of two tables' chains is newer: there are two
    /// orders where that may matter.
    pub orders: Vec<Vec<(usize, usize)>>,
    /// Some rule assigns a helper.
    pub helps: bool,
    /// Some rule exempts packets.
    pub exempts: bool,
    /// The bits of a packet's mark that no rule sets: a program, a qdisc or a chain of another kind may have set them.
    pub foreign_marks: u32,
    /// Some rule asks for TCP flags.
    pub asks_flags: bool,
}

/// One table.
#[derive(Clone, Debug)]
pub struct TableIndex {
    names: HashMap<String, usize>,
    /// The rules of each chain that decide or change anything.
    pub chains: Vec<Vec<Walked>>,
    /// For each chain those that jump to it.
    callers: Vec<Vec<usize>>,
    /// The translations, and in which chain.
    nats: Vec<(usize, Nat)>,
}

/// A rule, or several that differ in one address only.
#[derive(Clone, Debug)]
pub struct Walked {
    /// The first of them.
    pub rule: usize,
    /// What it does.
    pub steps: Vec<Step>,
    /// The chains it jumps to.
    jumps: Vec<usize>,
    /// It may end the packet's way through the chain.
    ends: bool,
}

impl Walked {
    fn new(rule: usize, steps: Vec<Step>, names: &HashMap<String, usize>) -> Self {
        let targets = steps.iter().flat_map(actions).filter_map(|action| match action {
            Action::Jump(name) | Action::Goto(name) => Some(name),
            _ => None,
        });
        let jumps = targets.filter_map(|name| names.get(name).copied()).collect();
        let ends =
            steps.iter().flat_map(actions).any(|action| matches!(action, Action::Accept | Action::Return));
        Self { rule, steps, jumps, ends }
    }

    /// Whether it leads to one of these chains, does a wanted translation, or decides that others aren't reached.
    pub fn leads_to(&self, chains: &[bool], wanted: &dyn Fn(&Nat) -> bool) -> bool {
        self.ends
            || self.jumps.iter().any(|chain| chains[*chain])
            || self
                .steps
                .iter()
                .flat_map(actions)
                .any(|action| matches!(action, Action::Nat(nat) if wanted(nat)))
    }
}

impl Index {
    /// Of these tables.
    pub fn new(tables: &[RuleTable]) -> Self {
        let mut bases = Vec::new();
        for (table, of) in tables.iter().enumerate() {
            for (chain, of) in of.chains.iter().enumerate() {
                bases.extend(of.base.as_ref().map(|base| (base.priority, table, chain)));
            }
        }
        let in_order = |is_newest_first: bool| {
            let mut bases = bases.clone();
            bases.sort_by_key(|(priority, table, chain)| {
                let table = if is_newest_first { tables.len() - table } else { *table };
                (*priority, table, std::cmp::Reverse(*chain))
            });
            bases.into_iter().map(|(_, table, chain)| (table, chain)).collect::<Vec<_>>()
        };
        let mut orders = vec![in_order(true)];
        if may_depend_on_order(tables, &bases) {
            orders.push(in_order(false));
        }
        let steps = || {
            let chains = tables.iter().flat_map(|table| &table.chains);
            chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.steps).flat_map(actions)
        };
        Self {
            helps: steps().any(|action| matches!(action, Action::Helper(_))),
            exempts: steps().any(|action| matches!(action, Action::Notrack)),
            tables: tables.iter().map(TableIndex::new).collect(),
            foreign_marks: !steps().fold(0, |bits, action| match action {
                Action::SetMark { value, .. } => bits | value,
                _ => bits,
            }),
            asks_flags: tables
                .iter()
                .flat_map(|table| &table.chains)
                .flat_map(|chain| &chain.rules)
                .flat_map(|rule| &rule.steps)
                .flat_map(conditions)
                .any(|condition| has(condition, &|one| matches!(one, Condition::TcpFlags { .. }))),
            orders,
        }
    }
}

/// Whether chains of different tables that run at the same place change what others there see.
fn may_depend_on_order(tables: &[RuleTable], bases: &[(i32, usize, usize)]) -> bool {
    let changes = |table: usize| {
        let rules = tables[table].chains.iter().flat_map(|chain| &chain.rules);
        rules.flat_map(|rule| &rule.steps).flat_map(actions).any(|action| {
            matches!(
                action,
                Action::Nat(_)
                    | Action::Notrack
                    | Action::Template { .. }
                    | Action::SetMark { .. }
                    | Action::MarkUnknown(..)
                    | Action::MarkFromConnection
            )
        })
    };
    let mut by_place: HashMap<(i32, Hook), BTreeSet<usize>> = HashMap::new();
    for (priority, table, chain) in bases {
        let base = tables[*table].chains[*chain].base.as_ref().expect("it is a base chain");
        by_place.entry((*priority, base.hook)).or_default().insert(*table);
    }
    by_place.into_values().any(|here| {
        [Family::V4, Family::V6].into_iter().any(|family| {
            let see = || here.iter().filter(|table| tables[**table].sees(family));
            see().count() > 1 && see().any(|table| changes(*table))
        })
    })
}

/// The conditions of a step.
pub fn conditions(step: &Step) -> impl Iterator<Item = &Condition> {
    let (one, many) = match step {
        Step::If(condition) => (Some(condition), &[][..]),
        Step::Case(cases) => (None, &cases[..]),
        Step::Do(_) => (None, &[][..]),
    };
    one.into_iter().chain(many.iter().map(|(condition, _)| condition))
}

/// Whether the condition or a part of it is such a one.
pub fn has(condition: &Condition, wanted: &dyn Fn(&Condition) -> bool) -> bool {
    wanted(condition)
        || match condition {
            Condition::All(all) | Condition::Any(all) => all.iter().any(|one| has(one, wanted)),
            Condition::Not(condition) => has(condition, wanted),
            _ => false,
        }
}

impl TableIndex {
    fn new(table: &RuleTable) -> Self {
        let names: HashMap<String, usize> =
            table.chains.iter().enumerate().rev().map(|(at, chain)| (chain.name.clone(), at)).collect();
        let mut callers = vec![Vec::new(); table.chains.len()];
        let mut nats = Vec::new();
        let mut found = Vec::new();
        for (at, chain) in table.chains.iter().enumerate() {
            let mut changes = false;
            for step in chain.rules.iter().flat_map(|rule| &rule.steps) {
                changes |= counts_in(step);
                for action in actions(step) {
                    match action {
                        Action::Jump(name) | Action::Goto(name) => match names.get(name) {
                            Some(to) => callers[*to].push(at),
                            None => changes = true,
                        },
                        Action::Nat(nat) => nats.push((at, nat.clone())),
                        _ => {}
                    }
                    changes |= changes_anything(action);
                }
            }
            found.push(changes);
        }
        let mut index = Self { names, chains: Vec::new(), callers, nats };
        index.spread(&mut found);
        index.chains = table
            .chains
            .iter()
            .map(|chain| {
                let rules = chain.rules.iter().enumerate();
                let matter = |rule: &Rule| rule.steps.iter().any(|step| index.matters(step, &found));
                let joined = joined(rules.filter(|(_, rule)| matter(rule)));
                joined.into_iter().map(|(rule, steps)| Walked::new(rule, steps, &index.names)).collect()
            })
            .collect();
        index
    }

    fn matters(&self, step: &Step, chains: &[bool]) -> bool {
        counts_in(step)
            || actions(step).any(|action| match action {
                Action::Jump(name) => self.chain(name).is_none_or(|chain| chains[chain]),
                other => changes_anything(other),
            })
    }

    /// A chain by its name.
    pub fn chain(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Which chains do a translation for which `wanted` holds, themselves or by others that they jump to.
    pub fn chains_with(&self, wanted: &dyn Fn(&Nat) -> bool) -> Vec<bool> {
        let mut found = vec![false; self.callers.len()];
        for (chain, nat) in &self.nats {
            found[*chain] = found[*chain] || wanted(nat);
        }
        self.spread(&mut found);
        found
    }

    /// From chains to those that jump to them.
    fn spread(&self, found: &mut [bool]) {
        let mut todo: Vec<usize> = (0..found.len()).filter(|at| found[*at]).collect();
        while let Some(at) = todo.pop() {
            for caller in &self.callers[at] {
                if !std::mem::replace(&mut found[*caller], true) {
                    todo.push(*caller);
                }
            }
        }
    }
}

/// Whether the step counts connections, which matters even where nothing follows from the count.
fn counts_in(step: &Step) -> bool {
    conditions(step).any(|condition| has(condition, &|one| matches!(one, Condition::CountsConnections(_))))
}

/// Anything but going on.
fn changes_anything(action: &Action) -> bool {
    !matches!(action, Action::Continue | Action::WriteConnection | Action::Writes(_) | Action::Jump(_))
}

/// What a step does, if its conditions hold.
pub fn actions(step: &Step) -> impl Iterator<Item = &Action> {
    let (one, many) = match step {
        Step::Do(action) => (Some(action), &[][..]),
        Step::Case(cases) => (None, &cases[..]),
        Step::If(_) => (None, &[][..]),
    };
    one.into_iter().chain(many.iter().map(|(_, action)| action))
}

/// Neighbours that do the same for different addresses become one rule.
fn joined<'r>(rules: impl Iterator<Item = (usize, &'r Rule)>) -> Vec<(usize, Vec<Step>)> {
    let mut done = Vec::new();
    let mut run: Option<Run> = None;
    for (at, rule) in rules {
        let next = Run::of(at, rule);
        match (&mut run, next) {
            (Some(run), Some(next)) if run.shape == next.shape && run.field == next.field => {
                run.intervals.extend(next.intervals);
            }
            (_, next) => {
                done.extend(run.take().map(Run::end));
                match next {
                    Some(next) => run = Some(next),
                    None => done.push((at, rule.steps.clone())),
                }
            }
        }
    }
    done.extend(run.map(Run::end));
    done
}

/// Rules that end a packet's way through the chain for some addresses.
struct Run {
    rule: usize,
    field: Field,
    /// Their steps without the addresses.
    shape: Vec<Step>,
    intervals: Vec<(u128, u128)>,
}

impl Run {
    fn of(at: usize, rule: &Rule) -> Option<Self> {
        let (last, _) = rule.steps.split_last()?;
        if !matches!(last, Step::Do(Action::Drop | Action::Accept | Action::Return | Action::Goto(_))) {
            return None;
        }
        let mut shape = rule.steps.clone();
        let mut addresses = shape.iter_mut().filter_map(|step| match step {
            Step::If(condition) => address(condition),
            _ => None,
        });
        let (field, set) = addresses.next()?;
        let intervals = std::mem::take(set).intervals().to_vec();
        let is_only = addresses.next().is_none();
        is_only.then_some(Self { rule: at, field, shape, intervals })
    }

    fn end(self) -> (usize, Vec<Step>) {
        let Self { rule, field, mut shape, intervals } = self;
        let hole = shape.iter_mut().find_map(|step| match step {
            Step::If(condition) => address(condition).filter(|(of, set)| *of == field && set.is_empty()),
            _ => None,
        });
        if let Some((_, set)) = hole {
            *set = Ranges::of(intervals);
        }
        (rule, shape)
    }
}

/// The addresses that have to hold, if it asks for some.
fn address(condition: &mut Condition) -> Option<(Field, &mut Ranges)> {
    match condition {
        Condition::In(field @ Field::Address(_), set) => Some((*field, set)),
        Condition::All(all) => all.iter_mut().find_map(address),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::ir::End;

    fn ban(address: u128, action: Action) -> Rule {
        let set = Ranges::one(address);
        let steps = vec![Step::If(Condition::In(Field::Address(End::Source), set)), Step::Do(action)];
        Rule { steps, text: format!("ban {address}").into(), delete: None }
    }

    #[test]
    fn neighbours_of_one_shape_become_one_rule_and_the_order_of_others_stays() {
        let rules = [
            ban(1, Action::Drop),
            ban(5, Action::Drop),
            ban(3, Action::Accept),
            ban(7, Action::Drop),
            ban(8, Action::Jump("elsewhere".to_owned())),
            ban(9, Action::Jump("elsewhere".to_owned())),
        ];
        let joined = joined(rules.iter().enumerate());
        let firsts: Vec<usize> = joined.iter().map(|(rule, _)| *rule).collect();
        assert_eq!(firsts, [0, 2, 3, 4, 5], "a chain run twice may not do the same twice");
        let both = Condition::In(Field::Address(End::Source), Ranges::of([(1, 1), (5, 5)]));
        assert_eq!(joined[0].1[0], Step::If(both));
    }
}
