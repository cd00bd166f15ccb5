//! Containers as small numbers, so that a name fits a row's key. As many as there is room for; never forgotten.
//! On the path of every event: no allocation for a name that is known.

use std::collections::HashMap;

use crate::foreign::Foreign;

/// Names kept; a host has hundreds.
const LIMIT: usize = 1 << 14;

/// The names met so far.
#[derive(Debug, Default)]
pub(super) struct Containers {
    names: Vec<Foreign>,
    numbers: HashMap<Foreign, u32>,
}

impl Containers {
    /// The number of a name, from 1 on; `None` if there is no room for another one.
    pub fn number(&mut self, name: &Foreign) -> Option<u32> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        if self.names.len() >= LIMIT {
            return None;
        }
        self.names.push(name.clone());
        let number = u32::try_from(self.names.len()).ok()?;
        self.numbers.insert(name.clone(), number);
        Some(number)
    }

    /// The name with this number.
    pub fn name(&self, number: u32) -> Option<&Foreign> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.names.get(index)
    }
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
    }
}
