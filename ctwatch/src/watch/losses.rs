//! Records out of the ring buffer become losses: with their time, their owner, and whom they pushed out.
//! What has to wait for an answer waits in a room of its own; nothing here looks at a counter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::eviction_matcher::EvictionMatcher;
use super::jiffies::Jiffies;
use super::pending_owners::PendingOwners;
use crate::kernel::roots::Roots;
use crate::model::{Clock, FromKernel, Insert, KernelCounters, Loss, NetnsId, monotonic_ns};
use crate::netns::Netns;
use crate::owner::OwnerResolver;
use crate::probe::Probe;
use crate::probe::plan::ProbeOptions;

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

/// Everything between the ring buffer and those who are told of losses.
#[derive(Debug)]
pub(super) struct LossPipeline {
    /// Renewed at every sample.
    pub clock: Clock,
    /// Only where single losses are shown.
    jiffies: Option<Jiffies>,
    /// Only where someone asks whose packets they were.
    owners: Option<OwnerResolver>,
    evictions: EvictionMatcher,
    pending_owners: PendingOwners,
}

impl LossPipeline {
    pub fn new(roots: &Roots, options: Option<ProbeOptions>) -> Self {
        Self {
            clock: Clock::now(),
            jiffies: options.filter(|options| options.event_details).map(|_| Jiffies::default()),
            owners: options.filter(|options| options.owners).map(|_| OwnerResolver::new(roots)),
            evictions: EvictionMatcher::default(),
            pending_owners: PendingOwners::default(),
        }
    }

    /// Hands over at most `limit` events and says how many there were. Evictions come a moment later, when the flow that
    /// pushed the entry out is known. `gone` gets the namespaces that were deleted.
    pub fn drain(
        &mut self,
        probe: Option<&mut Probe>,
        namespaces: &BTreeMap<NetnsId, Netns>,
        limit: usize,
        gone: &mut Vec<(NetnsId, KernelCounters)>,
        each: &mut impl FnMut(Observed<'_>),
    ) -> usize {
        self.release_answered(namespaces, &mut |loss| each(Observed::Loss(loss)));
        let now = Instant::now();
        let Some(probe) = probe else {
            self.evictions.release(now, &mut |loss| each(Observed::Loss(loss)));
            return 0;
        };
        self.measure_jiffies(probe);
        let Self { clock, jiffies, owners, evictions, pending_owners } = self;
        let jiffies_per_s = jiffies.as_ref().and_then(Jiffies::per_s);
        let taken = probe.drain(limit, |said| match said {
            FromKernel::NetnsGone { netns, counters } => gone.push((netns, counters)),
            FromKernel::Pusher { at_ns, flow } => evictions.resolve(at_ns, flow, now),
            FromKernel::Insert(packet) => {
                each(Observed::Insert(&Insert { time: clock.wall(packet.at_ns), packet }));
            }
            FromKernel::Loss { cause, packet, entry, sender } => {
                let time = clock.wall(packet.at_ns);
                let mut loss = Loss { entry, sender, jiffies_per_s, ..Loss::new(time, cause, packet) };
                loss.owner = owners.as_mut().map(|owners| owners.of(&loss, namespaces));
                let open = owners.as_ref().is_some_and(|owners| owners.lookup_pending(&loss));
                let held = if open { pending_owners.hold(loss, now) } else { evictions.hold(loss, now) };
                if let Some(loss) = held {
                    each(Observed::Loss(&loss));
                }
            }
        });
        evictions.release(now, &mut |loss| each(Observed::Loss(loss)));
        taken
    }

    /// Finds out how long a jiffy is, which takes two readings.
    fn measure_jiffies(&mut self, probe: &Probe) {
        let Some(jiffies) = &mut self.jiffies else { return };
        if jiffies.per_s().is_none()
            && let Ok(now) = probe.jiffies()
        {
            jiffies.reading(now, monotonic_ns());
        }
    }

    /// Hands over the losses whose listener is known by now.
    fn release_answered(&mut self, namespaces: &BTreeMap<NetnsId, Netns>, each: &mut impl FnMut(&Loss)) {
        let Self { owners: Some(owners), pending_owners, .. } = self else { return };
        owners.begin();
        let answered = |loss: &mut Loss| {
            loss.owner = Some(owners.of(loss, namespaces));
            !owners.lookup_pending(loss)
        };
        pending_owners.release(Instant::now(), answered, each);
    }

    /// Hands over what was held back.
    pub fn flush(&mut self, namespaces: &BTreeMap<NetnsId, Netns>, each: &mut impl FnMut(&Loss)) {
        let until = Instant::now() + LAST_ANSWERS;
        while !self.pending_owners.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            self.release_answered(namespaces, each);
        }
        self.pending_owners.release(Instant::now(), |_| true, each);
        self.evictions.flush(each);
    }

    /// Namespaces came, went, or got a name.
    pub fn namespaces_changed(&mut self) {
        if let Some(owners) = &mut self.owners {
            owners.namespaces_changed();
        }
    }
}
