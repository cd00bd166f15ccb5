//! Records out of the ring buffer become losses: with their time, their owner, and whom they pushed out.
//! What has to wait for an answer waits in a room of its own; nothing here looks at a counter.

use std::time::{Duration, Instant};

use ctwatch_common::event::{KIND_NETNS_GONE, KIND_PUSHER, Record};

use super::Watch;
use super::jiffies::Jiffies;
use crate::model::{Loss, monotonic_ns};

/// How long the end of a run waits for listeners that are being looked for.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

impl Watch {
    /// Hands over at most `limit` events. Evictions come one call later, when the flow that pushed the entry out is known.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&Loss)) -> usize {
        self.measure_jiffies();
        self.release_unanswered(&mut each);
        let Self { probe: Some(probe), clock, pairing, unanswered, owners, places, jiffies, .. } = self
        else {
            return 0;
        };
        let jiffies_per_s = jiffies.as_ref().and_then(Jiffies::per_s);
        let now = Instant::now();
        let mut gone = Vec::new();
        let taken = probe.drain(limit, |record| {
            let Record { loss: event, entry, owner } = record;
            match event.kind {
                KIND_NETNS_GONE => gone.push(event),
                KIND_PUSHER => pairing.push(&event),
                _ => {
                    let time = clock.wall(event.at);
                    let mut loss = Loss { entry, owner, jiffies_per_s, ..Loss::new(time, event) };
                    loss.who = owners.as_mut().map(|owners| owners.of(&loss, places));
                    let open = owners.as_ref().is_some_and(|owners| owners.lookup_pending(&loss));
                    let held = if open { unanswered.hold(loss, now) } else { pairing.hold(loss) };
                    if let Some(loss) = held {
                        each(&loss);
                    }
                }
            }
        });
        pairing.release(&mut each);
        for event in gone {
            self.bury(&event);
        }
        taken
    }

    /// Finds out how long a jiffy is, which takes two looks.
    fn measure_jiffies(&mut self) {
        let Self { probe: Some(probe), jiffies: Some(jiffies), .. } = self else { return };
        if jiffies.per_s().is_none()
            && let Ok(now) = probe.jiffies()
        {
            jiffies.reading(now, monotonic_ns());
        }
    }

    /// Hands over the losses whose listener is known by now.
    fn release_unanswered(&mut self, each: &mut impl FnMut(&Loss)) {
        let Self { owners: Some(owners), unanswered, places, .. } = self else { return };
        owners.begin();
        let answered = |loss: &mut Loss| {
            loss.who = Some(owners.of(loss, places));
            !owners.lookup_pending(loss)
        };
        unanswered.release(Instant::now(), answered, each);
    }

    /// Hands over what was held back.
    pub fn flush_pending(&mut self, mut each: impl FnMut(&Loss)) {
        let until = Instant::now() + LAST_ANSWERS;
        while !self.unanswered.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            self.release_unanswered(&mut each);
        }
        self.unanswered.release(Instant::now(), |_| true, &mut each);
        self.pairing.release(&mut each);
        self.pairing.release(&mut each);
    }
}
