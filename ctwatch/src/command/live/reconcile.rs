//! Whether the kernel counted losses that no program saw, or losses that are only on their way at this moment.
//! Pure. A difference that stays the same at every observation was missed; in a storm some loss is nearly always on its way.

use crate::contract::Unexplained;

/// After so many equal observations in a row a difference counts as missed. Two are equal by chance on a host whose CPUs
/// are taken away from it.
pub(super) const STABLE_OBSERVATIONS: u32 = 5;

/// Tells losses that no program saw from losses in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reconciler {
    last: Unexplained,
    observations: u32,
}

impl Reconciler {
    /// Takes one observation; true if what is unexplained was missed for good.
    pub fn observe(&mut self, unexplained: Unexplained) -> bool {
        if unexplained.is_zero() || unexplained != self.last {
            self.observations = 0;
        }
        self.last = unexplained;
        self.observations += u32::from(!unexplained.is_zero());
        if self.observations < STABLE_OBSERVATIONS {
            return false;
        }
        self.observations = 0;
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
        let mut reconciler = Reconciler::default();
        let verdicts: Vec<bool> = (0..6).map(|_| reconciler.observe(drops(3))).collect();
        assert_eq!(verdicts, [false, false, false, false, true, false]);
    }

    #[test]
    fn losses_on_their_way_are_left_alone() {
        let mut reconciler = Reconciler::default();
        for drop in [1, 1, 1, 0, 1, 1, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0] {
            assert!(!reconciler.observe(drops(drop)));
        }
    }
}
