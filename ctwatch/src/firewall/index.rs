//! The rules prepared for walking, once for all questions: chains by name, base chains in their order, rules of one
//! shape joined. A list of 20,000 banned addresses is one rule here; what a rule does stays what it was.

use std::collections::HashMap;

use super::ir::{Action, Condition, Field, Rule, RuleTable, Step};
use super::ranges::Ranges;

/// All tables.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// In the order of the tables.
    pub tables: Vec<TableIndex>,
    /// Base chains in the order of their priorities: (table, chain).
    pub bases: Vec<(usize, usize)>,
}

/// One table.
#[derive(Clone, Debug)]
pub struct TableIndex {
    names: HashMap<String, usize>,
    /// The rules of each chain that decide or change anything.
    pub chains: Vec<Vec<Walked>>,
}

/// A rule, or several that differ in one address only.
#[derive(Clone, Debug)]
pub struct Walked {
    /// The first of them.
    pub rule: usize,
    /// What it does.
    pub steps: Vec<Step>,
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
        bases.sort_by_key(|(priority, ..)| *priority);
        Self {
            tables: tables.iter().map(TableIndex::new).collect(),
            bases: bases.into_iter().map(|(_, table, chain)| (table, chain)).collect(),
        }
    }
}

impl TableIndex {
    fn new(table: &RuleTable) -> Self {
        let names: HashMap<String, usize> =
            table.chains.iter().enumerate().rev().map(|(at, chain)| (chain.name.clone(), at)).collect();
        let mut index = Self { names, chains: Vec::new() };
        let does_anything = index.which(table.chains.iter().map(|chain| &chain.rules[..]), &changes_anything);
        index.chains = table
            .chains
            .iter()
            .map(|chain| {
                let rules = chain.rules.iter().enumerate();
                joined(rules.filter(|(_, rule)| index.matters(&rule.steps, &does_anything, &changes_anything)))
            })
            .collect();
        index
    }

    /// A chain by its name.
    pub fn chain(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Which chains do something for which `wanted` holds, themselves or by others that they jump to.
    pub fn chains_with(&self, wanted: &dyn Fn(&Action) -> bool) -> Vec<bool> {
        self.which(self.chains.iter().map(|rules| rules.iter().map(|rule| &rule.steps)), wanted)
    }

    fn which<'r, R: HasSteps + 'r>(
        &self,
        chains: impl Iterator<Item = impl IntoIterator<Item = R>>,
        wanted: &dyn Fn(&Action) -> bool,
    ) -> Vec<bool> {
        let mut callers: Vec<Vec<usize>> = Vec::new();
        let mut found = Vec::new();
        for (at, chain) in chains.enumerate() {
            callers.resize_with(callers.len().max(at + 1).max(self.names.len()), Vec::new);
            let mut has = false;
            for rule in chain {
                for step in rule.steps() {
                    has |= matches!(step, Step::If(condition) if counts(condition));
                    for action in actions(step) {
                        match action {
                            Action::Jump(name) | Action::Goto(name) => match self.chain(name) {
                                Some(to) => {
                                    if callers.len() <= to {
                                        callers.resize_with(to + 1, Vec::new);
                                    }
                                    callers[to].push(at);
                                }
                                None => has = true,
                            },
                            other => has |= wanted(other),
                        }
                        // The rest of the chain isn't run then, whatever the other one does.
                        has |= matches!(action, Action::Goto(_)) && wanted(action);
                    }
                }
            }
            found.push(has);
        }
        let mut todo: Vec<usize> = (0..found.len()).filter(|at| found[*at]).collect();
        while let Some(at) = todo.pop() {
            for caller in callers.get(at).into_iter().flatten() {
                if !std::mem::replace(&mut found[*caller], true) {
                    todo.push(*caller);
                }
            }
        }
        found
    }

    /// Whether a rule does something wanted, itself or by the chains it jumps to.
    pub fn matters(&self, steps: &[Step], chains: &[bool], wanted: &dyn Fn(&Action) -> bool) -> bool {
        steps.iter().any(|step| {
            matches!(step, Step::If(condition) if counts(condition))
                || actions(step).any(|action| match action {
                    Action::Jump(name) => self.chain(name).is_none_or(|chain| chains[chain]),
                    Action::Goto(name) => {
                        wanted(action) || self.chain(name).is_none_or(|chain| chains[chain])
                    }
                    other => wanted(other),
                })
        })
    }
}

trait HasSteps {
    fn steps(&self) -> &[Step];
}

impl HasSteps for &Rule {
    fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl HasSteps for &Vec<Step> {
    fn steps(&self) -> &[Step] {
        self
    }
}

/// Anything but going on.
fn changes_anything(action: &Action) -> bool {
    !matches!(action, Action::Continue | Action::WriteConnection | Action::Jump(_))
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

/// Whether the rule counts connections, which matters even where nothing follows from the count.
fn counts(condition: &Condition) -> bool {
    match condition {
        Condition::CountsConnections(_) => true,
        Condition::All(all) | Condition::Any(all) => all.iter().any(counts),
        Condition::Not(condition) => counts(condition),
        _ => false,
    }
}

/// Neighbours that do the same for different addresses become one rule.
fn joined<'r>(rules: impl Iterator<Item = (usize, &'r Rule)>) -> Vec<Walked> {
    let mut done: Vec<Walked> = Vec::new();
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
                    None => done.push(Walked { rule: at, steps: rule.steps.clone() }),
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

    fn end(self) -> Walked {
        let Self { rule, field, mut shape, intervals } = self;
        let hole = shape.iter_mut().find_map(|step| match step {
            Step::If(condition) => address(condition).filter(|(of, set)| *of == field && set.is_empty()),
            _ => None,
        });
        if let Some((_, set)) = hole {
            *set = Ranges::of(intervals);
        }
        Walked { rule, steps: shape }
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
        let steps =
            vec![Step::If(Condition::In(Field::Address(End::Source), set)), Step::Do(action)];
        Rule { steps, text: format!("ban {address}"), delete: None }
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
        let firsts: Vec<usize> = joined.iter().map(|rule| rule.rule).collect();
        assert_eq!(firsts, [0, 2, 3, 4, 5], "a chain run twice may not do the same twice");
        let both = Condition::In(Field::Address(End::Source), Ranges::of([(1, 1), (5, 5)]));
        assert_eq!(joined[0].steps[0], Step::If(both));
    }
}
