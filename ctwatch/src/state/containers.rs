//! Containers as small numbers, so that a name fits a row's key. As many as there is room for; those that no row has any more
//! make room for others. On the path of every event: no allocation for a name that is known.

use std::collections::{HashMap, HashSet};

use crate::foreign::Foreign;

/// Names kept; a host has hundreds, and a name has up to a kilobyte.
pub(super) const LIMIT: usize = 1 << 12;

/// The names met so far.
#[derive(Debug, Default)]
pub(super) struct Containers {
    names: Vec<Option<Foreign>>,
    numbers: HashMap<Foreign, u32>,
    /// Numbers that were given back.
    free: Vec<u32>,
}

impl Containers {
    /// The number of a name, from 1 on; `None` if there is no room for another one.
    pub fn number(&mut self, name: &Foreign) -> Option<u32> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        if self.numbers.len() >= LIMIT {
            return None;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.names.push(None);
                u32::try_from(self.names.len()).ok()?
            }
        };
        *self.names.get_mut(place(number)?)? = Some(name.clone());
        self.numbers.insert(name.clone(), number);
        Some(number)
    }

    /// The name with this number.
    pub fn name(&self, number: u32) -> Option<&Foreign> {
        self.names.get(place(number)?)?.as_ref()
    }

    /// There is little room left.
    pub fn is_crowded(&self) -> bool {
        self.numbers.len() > LIMIT / 4 * 3
    }

    /// Forgets all but these numbers.
    pub fn retain(&mut self, used: impl Iterator<Item = u32>) {
        let used: HashSet<u32> = used.collect();
        let Self { names, numbers, free } = self;
        numbers.retain(|_, number| {
            let stays = used.contains(number);
            if !stays && let Some(name) = place(*number).and_then(|place| names.get_mut(place)) {
                *name = None;
                free.push(*number);
            }
            stays
        });
    }
}

fn place(number: u32) -> Option<usize> {
    usize::try_from(number).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number_and_numbers_run_out() {
        let mut containers = Containers::default();
        assert_eq!(containers.number(&"docker:1".into()), Some(1));
        assert_eq!(containers.number(&"docker:2".into()), Some(2));
        assert_eq!(containers.number(&"docker:1".into()), Some(1));
        assert_eq!(
            (containers.name(2), containers.name(0), containers.name(3)),
            (Some(&"docker:2".into()), None, None)
        );
        for number in 0..=LIMIT {
            containers.number(&format!("unit:{number}").into());
        }
        assert_eq!(containers.names.len(), LIMIT);
        assert_eq!(containers.number(&"one too many".into()), None);
        assert_eq!(containers.number(&"docker:1".into()), Some(1));
        // Names that no row has make room.
        assert!(containers.is_crowded());
        containers.retain([1, 7].into_iter());
        assert_eq!(
            (containers.name(1), containers.name(2), containers.numbers.len()),
            (Some(&"docker:1".into()), None, 2)
        );
        let number = containers.number(&"one too many".into()).expect("there is room");
        assert_eq!(containers.name(number), Some(&"one too many".into()));
        assert_eq!((containers.names.len(), containers.number(&"docker:1".into())), (LIMIT, Some(1)));
    }
}
