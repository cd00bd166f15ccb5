//! Which losses of a tick are kept: a few of each cause, each loss with equal odds (Vitter's algorithm R).
//! Memory is bounded however many come; a rare cause isn't drowned by a common one.

use ctwatch_common::cause::CAUSES;

use crate::model::Loss;

/// Kept of each cause and tick,
pub const COARSE: usize = 4;
/// and around an incident.
pub const DETAILED: usize = 64;

/// The losses of one tick.
#[derive(Debug)]
pub struct Sampler {
    kept: Vec<Vec<Loss>>,
    seen: [u64; CAUSES],
    limit: usize,
    random: u64,
}

impl Sampler {
    /// Keeps so many of each cause.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { kept: vec![Vec::new(); CAUSES], seen: [0; CAUSES], limit, random: 0x9E37_79B9_7F4A_7C15 }
    }

    /// A loss.
    pub fn add(&mut self, loss: &Loss) {
        let cause = loss.cause as usize;
        self.seen[cause] += 1;
        let kept = &mut self.kept[cause];
        if kept.len() < self.limit {
            kept.push(loss.clone());
            return;
        }
        // xorshift64: the losses don't know it, and nothing else is asked of it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let place = usize::try_from(self.random % self.seen[cause]).unwrap_or(usize::MAX);
        if let Some(kept) = kept.get_mut(place) {
            *kept = loss.clone();
        }
    }

    /// What came since the last call: how many, and which were kept, with whether they are detail.
    pub fn take(&mut self) -> (u64, Vec<(Loss, bool)>) {
        let seen = std::mem::take(&mut self.seen).iter().sum();
        let mut kept = Vec::new();
        for of_cause in &mut self.kept {
            let detail = |(place, loss)| (loss, place >= COARSE);
            kept.extend(of_cause.drain(..).enumerate().map(detail));
        }
        kept.sort_by_key(|(loss, _)| loss.packet.at_ns);
        (seen, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Packet;
    use ctwatch_common::Cause;
    use jiff::Timestamp;

    fn loss(at_ns: u64, cause: Cause) -> Loss {
        Loss::new(Timestamp::UNIX_EPOCH, cause, Packet { at_ns, ..Packet::default() })
    }

    #[test]
    fn every_loss_has_the_same_odds_and_a_rare_cause_is_kept() {
        let mut sampler = Sampler::new(64);
        for at in 0..100_000 {
            sampler.add(&loss(at, Cause::TableFull));
        }
        sampler.add(&loss(5, Cause::Clash));
        let (seen, kept) = sampler.take();
        assert_eq!((seen, kept.len()), (100_001, 65));
        assert_eq!(kept.iter().filter(|(_, detail)| !detail).count(), COARSE + 1);
        let early = kept.iter().filter(|(loss, _)| loss.packet.at_ns < 50_000).count();
        assert!((16..=50).contains(&early), "{early} of 65 are from the first half");
        assert_eq!(sampler.take().0, 0);
    }
}
