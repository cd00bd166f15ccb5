//! Whether the kernel counted losses that no program saw, or losses that are only on their way at this moment.
//! Pure. A difference that stays the same at every look was missed; in a storm some loss is nearly always on its way.

use crate::contract::Unexplained;

/// So many looks in a row find the same difference. Two do by chance, on a host whose CPUs are taken away from it.
pub const LOOKS: u32 = 5;

/// What earlier looks found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Missed {
    last: Unexplained,
    looks: u32,
}

impl Missed {
    /// Takes one look; true if what is unexplained was missed for good.
    pub fn look(&mut self, unexplained: Unexplained) -> bool {
        if unexplained.is_zero() || unexplained != self.last {
            self.looks = 0;
        }
        self.last = unexplained;
        self.looks += u32::from(!unexplained.is_zero());
        if self.looks < LOOKS {
            return false;
        }
        self.looks = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(drop: i64) -> Unexplained {
        Unexplained { drop, ..Unexplained::default() }
    }

    #[test]
    fn what_stays_the_same_was_missed() {
        let mut missed = Missed::default();
        let verdicts: Vec<bool> = (0..6).map(|_| missed.look(drops(3))).collect();
        assert_eq!(verdicts, [false, false, false, false, true, false]);
    }

    #[test]
    fn losses_on_their_way_are_left_alone() {
        let mut missed = Missed::default();
        for drop in [1, 1, 1, 0, 1, 1, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0] {
            assert!(!missed.look(drops(drop)));
        }
    }
}
