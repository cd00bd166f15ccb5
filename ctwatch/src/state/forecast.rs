//! When a table will be full: arrivals with their trend, deaths by remaining timeouts and by how long entries last.
//! Pure and bounded: the largest keys have models of their own, all others share one. Nothing may depend on the order in
//! which keys come: the same ticks give the same forecast.

use std::collections::BTreeMap;

use super::flow_model::{Model, Prior, Projection};
use super::step::{FlowKey, Step};
use crate::model::{Census, PortDetail, Protocol, Timeouts};

/// How far to look, seconds.
const HORIZON: f64 = 86_400.0;
/// Steps of a second up to here; then each is longer than the last.
const FINE_STEPS: f64 = 60.0;
const GROWTH: f64 = 1.05;

/// Puts first those that can get a model, in order: once one of them finds no room, no smaller one does.
fn largest_first(steps: &mut [Step]) -> &[Step] {
    let first = steps.len().min(Forecast::MODELS);
    if first < steps.len() {
        steps.select_nth_unstable_by(first, Step::rank);
    }
    steps[..first].sort_unstable_by(Step::rank);
    &steps[..first]
}

/// The forecast of one netns.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    /// Seconds since the first tick.
    now: f64,
    models: BTreeMap<FlowKey, Model>,
    /// One for the other keys of each protocol.
    rest: BTreeMap<Protocol, Model>,
    details: Vec<PortDetail>,
    timeouts: Timeouts,
}

impl Forecast {
    /// Keys with a model of their own.
    pub const MODELS: usize = 64;

    /// What a census said of keys, which is kept.
    pub const fn details(&self) -> usize {
        self.details.len()
    }

    /// What is known of remaining timeouts is renewed; how arrivals went so far stays.
    pub fn take_census(&mut self, census: &Census, entries_of: impl Fn(FlowKey) -> f64) {
        self.details.clone_from(&census.details);
        self.timeouts = census.timeouts;
        for (key, model) in &mut self.models {
            model.begin(self.now, entries_of(*key), Prior::new(*key, &self.details, &self.timeouts));
        }
        for (proto, model) in &mut self.rest {
            let entries = model.entries();
            model.begin(self.now, entries, Prior::of_protocol(*proto, &self.details, &self.timeouts));
        }
    }

    /// One tick of all keys.
    pub fn tick(&mut self, interval_s: f64, steps: impl Iterator<Item = Step>) {
        self.now += interval_s;
        let now = self.now;
        let mut others = Vec::new();
        for step in steps {
            match self.models.get_mut(&step.key) {
                Some(model) => model.tick(now, interval_s, &step),
                None => others.push(step),
            }
        }
        for step in largest_first(&mut others) {
            let is_busy = step.entries > 0.0 || step.inserts > 0.0;
            if !is_busy || !self.make_room(step.entries) {
                break;
            }
            let mut model = Model::default();
            let prior = Prior::new(step.key, &self.details, &self.timeouts);
            model.begin(now - interval_s, step.before(), prior);
            model.tick(now, interval_s, step);
            self.models.insert(step.key, model);
        }
        let mut rest: BTreeMap<Protocol, Step> = BTreeMap::new();
        for step in others.iter().filter(|step| !self.models.contains_key(&step.key)) {
            let rest = rest.entry(Protocol((step.key >> 16) as u8)).or_insert(Step::NONE);
            rest.entries += step.entries;
            rest.inserts += step.inserts;
            rest.deletes += step.deletes;
        }
        // Keys that are over are in no step, but time goes on for those like them.
        for proto in self.rest.keys() {
            rest.entry(*proto).or_insert(Step::NONE);
        }
        for (proto, step) in rest {
            let model = self.rest.entry(proto).or_insert_with(|| {
                let mut model = Model::default();
                let prior = Prior::of_protocol(proto, &self.details, &self.timeouts);
                model.begin(now - interval_s, step.before(), prior);
                model
            });
            model.tick(now, interval_s, &step);
        }
    }

    /// Room for one more model, taken from a much smaller one if need be.
    fn make_room(&mut self, entries: f64) -> bool {
        if self.models.len() < Self::MODELS {
            return true;
        }
        let smallest = self.models.iter().min_by(|(_, a), (_, b)| a.entries().total_cmp(&b.entries()));
        match smallest.map(|(key, model)| (*key, model.entries())) {
            Some((key, least)) if least * 2.0 + 16.0 < entries => self.models.remove(&key).is_some(),
            _ => false,
        }
    }

    /// Whether this key has a model of its own.
    pub fn has_model(&self, key: FlowKey) -> bool {
        self.models.contains_key(&key)
    }

    /// How long entries of this key last, if that was measured.
    pub fn lifetime(&self, key: FlowKey) -> Option<f64> {
        self.models.get(&key)?.lifetime()
    }

    /// Seconds until `count` entries have become `max`; none if they never will at the present trend.
    pub fn full_in_s(&self, count: u32, max: u32) -> Option<f64> {
        if max == 0 {
            return None;
        }
        let room = f64::from(max) - f64::from(count);
        if room <= 0.0 {
            return Some(0.0);
        }
        let models: Vec<_> = self
            .models
            .values()
            .chain(self.rest.values())
            .filter_map(|model| model.project(self.now))
            .collect();
        if models.iter().all(|model| model.arrivals(HORIZON) == 0.0) {
            return None;
        }
        // Noise must not fill a table that levels off, nor may doubt put off when one is full that fills anyway.
        let is_in_doubt = models.iter().any(|model| model.at_least().is_some());
        if is_in_doubt {
            let at_least = models.iter().map(|model| model.at_least().unwrap_or_else(|| model.clone()));
            exceeds(&at_least.collect::<Vec<_>>(), room)?;
        }
        exceeds(&models, room)
    }
}

/// Seconds until all have grown by so much; none if they don't within the horizon.
fn exceeds(models: &[Projection<'_>], room: f64) -> Option<f64> {
    let grown = |at: f64| models.iter().map(|model| model.growth(at)).sum::<f64>();
    let (mut last, mut at, mut step) = ((0.0, 0.0), 0.0, 1.0);
    while at < HORIZON {
        at += step;
        if at >= FINE_STEPS {
            step *= GROWTH;
        }
        let now = grown(at);
        if now >= room {
            let (last_at, last_grown) = last;
            return Some(last_at + (at - last_at) * (room - last_grown) / (now - last_grown));
        }
        last = (at, now);
    }
    None
}

#[cfg(test)]
mod tests;
