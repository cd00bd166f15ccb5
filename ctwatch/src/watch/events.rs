//! Records out of the ring buffer become losses: with their time, their owner, and whom they pushed out.
//! What has to wait for an answer waits in a room of its own; nothing here looks at a counter.

use std::time::{Duration, Instant};

use super::Watch;
use super::jiffies::Jiffies;
use crate::model::{FromKernel, Insert, Loss, monotonic_ns};

/// How long the end of a run waits for listeners that are being looked for.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

/// What a probe saw happen to one packet.
#[derive(Clone, Copy, Debug)]
pub enum Observed<'a> {
    /// It was lost, or the entry of its flow was.
    Loss(&'a Loss),
    /// It was the first of a flow, and got an entry.
    Insert(&'a Insert),
}

impl Watch {
    /// Hands over at most `limit` events. Evictions come one call later, when the flow that pushed the entry out is known.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(Observed<'_>)) -> usize {
        self.measure_jiffies();
        self.release_answered(&mut |loss| each(Observed::Loss(loss)));
        let Self {
            probe: Some(probe), clock, evictions, pending_owners, owners, namespaces, jiffies, ..
        } = self
        else {
            return 0;
        };
        let jiffies_per_s = jiffies.as_ref().and_then(Jiffies::per_s);
        let now = Instant::now();
        let mut gone = Vec::new();
        let taken = probe.drain(limit, |said| match said {
            FromKernel::NetnsGone { netns, counters } => gone.push((netns, counters)),
            FromKernel::Pusher { at_ns, flow } => evictions.resolve(at_ns, flow),
            FromKernel::Insert(packet) => {
                each(Observed::Insert(&Insert { time: clock.wall(packet.at_ns), packet }));
            }
            FromKernel::Loss { cause, packet, entry, sender } => {
                let time = clock.wall(packet.at_ns);
                let mut loss = Loss { entry, sender, jiffies_per_s, ..Loss::new(time, cause, packet) };
                loss.owner = owners.as_mut().map(|owners| owners.of(&loss, namespaces));
                let open = owners.as_ref().is_some_and(|owners| owners.lookup_pending(&loss));
                let held = if open { pending_owners.hold(loss, now) } else { evictions.hold(loss) };
                if let Some(loss) = held {
                    each(Observed::Loss(&loss));
                }
            }
        });
        evictions.release(&mut |loss| each(Observed::Loss(loss)));
        for (netns, counters) in gone {
            self.retire(netns, counters);
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
    fn release_answered(&mut self, each: &mut impl FnMut(&Loss)) {
        let Self { owners: Some(owners), pending_owners, namespaces, .. } = self else { return };
        owners.begin();
        let answered = |loss: &mut Loss| {
            loss.owner = Some(owners.of(loss, namespaces));
            !owners.lookup_pending(loss)
        };
        pending_owners.release(Instant::now(), answered, each);
    }

    /// Hands over what was held back.
    pub fn flush_pending(&mut self, mut each: impl FnMut(&Loss)) {
        let until = Instant::now() + LAST_ANSWERS;
        while !self.pending_owners.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            self.release_answered(&mut each);
        }
        self.pending_owners.release(Instant::now(), |_| true, &mut each);
        self.evictions.release(&mut each);
        self.evictions.release(&mut each);
    }
}
