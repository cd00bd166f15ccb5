//! Forecasts of simulated traffic, against what the simulation then does.

use proptest::prelude::*;

use super::*;
use crate::model::TimeoutKind;
use crate::state::trend::{FEW, SIGNIFICANT};

const UDP: FlowKey = 17 << 16 | 53;
const TCP: FlowKey = 6 << 16 | 6379;

/// Entries that arrive at a rate and die after a lifetime.
struct Simulation {
    forecast: Forecast,
    key: FlowKey,
    born: Vec<f64>,
    dead: usize,
    now: f64,
    noise: u64,
    max: f64,
    /// Expired entries go all at once, every so many seconds.
    bursts: f64,
    /// This part of the entries never dies.
    stays: f64,
}

impl Simulation {
    fn new(key: FlowKey, max: f64, seed: u64, timeouts: Timeouts) -> Self {
        let mut forecast = Forecast::default();
        forecast.take_census(&Census { timeouts, ..Census::default() }, |_| 0.0);
        Self {
            forecast,
            key,
            born: Vec::new(),
            dead: 0,
            now: 0.0,
            noise: seed | 1,
            max,
            bursts: 0.0,
            stays: 0.0,
        }
    }

    /// -1 to 1
    fn random(&mut self) -> f64 {
        self.noise =
            self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.noise >> 33) as f64 / (1_u64 << 30) as f64 - 1.0
    }

    /// About normal.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.random() / 2.0).sum()
    }

    fn entries(&self) -> f64 {
        (self.born.len() - self.dead) as f64
    }

    /// A tick of about a second; returns the forecast.
    fn tick(&mut self, rate: impl Fn(f64) -> f64, lifetime: f64) -> Option<f64> {
        let interval = 1.0 + 0.05 * self.random();
        let mean = rate(self.now + interval / 2.0) * interval;
        let arrivals = (mean + mean.sqrt() * self.normal()).round().max(0.0);
        for index in 0..arrivals as usize {
            self.born.push(self.now + interval * index as f64 / arrivals);
        }
        self.now += interval;
        let swept = if self.bursts > 0.0 { self.now - self.now % self.bursts } else { self.now };
        let expired = self.born.partition_point(|born| *born < swept - lifetime);
        let died = (expired as f64 * (1.0 - self.stays)) as usize;
        let deletes = (died - self.dead) as f64;
        self.dead = died;
        let step = Step { key: self.key, entries: self.entries(), inserts: arrivals, deletes };
        self.forecast.tick(interval, [step].into_iter());
        self.forecast.full_in_s(self.entries() as u32, self.max as u32)
    }
}

fn timeouts() -> Timeouts {
    Timeouts::from([
        (TimeoutKind::SynSent, 120),
        (TimeoutKind::Established, 432_000),
        (TimeoutKind::TimeWait, 120),
        (TimeoutKind::Udp, 30),
        (TimeoutKind::UdpStream, 120),
        (TimeoutKind::Icmp, 30),
        (TimeoutKind::Icmpv6, 30),
        (TimeoutKind::Generic, 600),
    ])
}

#[track_caller]
fn is_near(forecast: Option<f64>, truth: f64, at: f64) {
    is_within(0.2, forecast, truth, at);
}

#[track_caller]
fn is_within(part: f64, forecast: Option<f64>, truth: f64, at: f64) {
    let Some(forecast) = forecast else { panic!("no forecast at {at:.0} s; full in {truth:.0} s") };
    // Seconds of slack: near the end a tick is more than that.
    let slack = part * truth + 1.5;
    assert!((forecast - truth).abs() <= slack, "at {at:.0} s: {forecast:.1} instead of {truth:.1}");
}

/// Standard errors by which a measured slope may be off. Of the looks at one simulation few are independent, since they share
/// most of their points; one in 150,000 is further off, to either side.
const FAR_OFF: f64 = 4.5;

/// Arrivals that rise in a line.
struct Rise {
    /// Arrivals per second now, and how much that grows per second.
    rate: f64,
    slope: f64,
    /// Seconds for which they were seen.
    seen: f64,
    /// Room in the table.
    left: f64,
}

impl Rise {
    /// When it is full if the slope was this all the time: how many came so far is known.
    fn full_in(&self, slope: f64) -> f64 {
        let half = self.seen.min(RATES) / 2.0;
        let rate = self.rate - self.slope * half + slope * half;
        if slope <= 0.0 {
            self.left / rate
        } else {
            ((rate * rate + 2.0 * slope * self.left).sqrt() - rate) / slope
        }
    }

    /// The earliest and the latest forecast that noise explains. Arrivals of independent flows scatter by the square root of
    /// their number, and a line through n of them, a second apart, has a slope with the standard error √(12 rate / n³). A slope
    /// of less than so many of its errors may be noise itself: then it counts in part, or not at all.
    fn foreseen(&self) -> (f64, f64) {
        let n = self.seen.min(RATES);
        let error = (12.0 * self.rate / n.powi(3)).sqrt();
        let (least, most) = (self.slope - FAR_OFF * error, self.slope + FAR_OFF * error);
        let is_certain = least >= SIGNIFICANT * (1.0 + FEW / n) * error;
        (self.full_in(most), self.full_in(if is_certain { least } else { 0.0 }))
    }
}

/// Points that a trend is read from at most.
const RATES: f64 = 120.0;

/// A fill by ever more arrivals is foreseen within a fifth of the time, or within what noise explains. It explains more than a
/// fifth only of the slowest rises of the fewest arrivals, and in the first 45 s.
#[track_caller]
fn rises(rate: f64, doubles_in: f64, fills_in: f64, seed: u64) {
    let slope = rate / doubles_in;
    let max = rate * fills_in + slope * fills_in * fills_in / 2.0;
    let mut simulation = Simulation::new(TCP, max, seed, timeouts());
    while simulation.entries() < simulation.max {
        let forecast = simulation.tick(|at| rate + slope * at, f64::INFINITY);
        let (seen, left) = (simulation.now, simulation.max - simulation.entries());
        if seen > 30.0 && left > 0.0 {
            let now = Rise { rate: rate + slope * seen, slope, seen, left };
            let truth = now.full_in(slope);
            let (earliest, latest) = now.foreseen();
            let (earliest, latest) = (earliest.min(0.8 * truth) - 1.5, latest.max(1.2 * truth) + 1.5);
            assert!(seen < 45.0 || latest <= 1.2 * truth + 1.5, "noise explains {latest} at {seen:.0} s");
            let Some(forecast) = forecast else { panic!("no forecast at {seen:.0} s; full in {truth:.0} s") };
            assert!(
                (earliest..=latest).contains(&forecast),
                "at {seen:.0} s: {forecast:.1} instead of {truth:.1}, and noise explains {earliest:.1} to {latest:.1}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_steady_fill_is_foreseen(rate in 50.0..3_000.0f64, fills_in in 60.0..400.0f64, seed: u64) {
        let mut simulation = Simulation::new(TCP, rate * fills_in, seed, timeouts());
        while simulation.entries() < simulation.max {
            let forecast = simulation.tick(|_| rate, f64::INFINITY);
            if simulation.now > 10.0 && simulation.entries() < simulation.max {
                is_near(forecast, (simulation.max - simulation.entries()) / rate, simulation.now);
            }
        }
        prop_assert_eq!(simulation.tick(|_| rate, f64::INFINITY), Some(0.0));
    }

    #[test]
    fn a_rising_fill_is_foreseen(
        rate in 300.0..3_000.0f64, doubles_in in 20.0..100.0f64, fills_in in 60.0..300.0f64, seed: u64,
    ) {
        rises(rate, doubles_in, fills_in, seed);
    }

    #[test]
    fn what_levels_off_below_the_maximum_is_no_fill(
        rate in 50.0..2_000.0f64, level in 0.2..0.85f64, seed: u64,
    ) {
        levels_off(rate, level, 150, seed);
    }

    #[test]
    fn the_longer_it_is_watched_the_less_noise_is_a_rise(level in 0.72..0.85f64, seed: u64) {
        levels_off(50.0, level, 900, seed);
    }

    #[test]
    fn a_rise_that_fills_what_would_have_levelled_off_is_foreseen(
        rate in 500.0..2_000.0f64, level in 0.4..0.8f64, doubles_in in 60.0..300.0f64, seed: u64,
    ) {
        let mut simulation = Simulation::new(UDP, rate * 30.0 / level, seed, timeouts());
        let (mut foreseen, mut ticks) = (0.0, 0.0);
        while simulation.entries() < simulation.max {
            let rising = |at: f64| rate * (1.0 + ((at - 150.0) / doubles_in).max(0.0));
            let forecast = simulation.tick(rising, 30.0);
            if simulation.now > 150.0 {
                ticks += 1.0;
                foreseen += f64::from(u8::from(forecast.is_some()));
            }
        }
        // Mostly it is four fifths of the time.
        prop_assert!(foreseen > ticks / 3.0, "only {} of {} ticks", foreseen, ticks);
    }

    #[test]
    fn a_lifetime_that_timeouts_did_not_tell_is_learnt(rate in 100.0..1_000.0f64, seed: u64) {
        // Timeouts say five days, but these are closed after 40 s.
        let mut simulation = Simulation::new(TCP, rate * 60.0, seed, timeouts());
        for _ in 0..100 {
            let forecast = simulation.tick(|_| rate, 40.0);
            if simulation.now > 60.0 {
                prop_assert_eq!(forecast, None, "at {:.0} s", simulation.now);
            }
        }
    }

    #[test]
    fn a_collector_that_comes_in_bursts_hides_no_levelling_off(
        rate in 100.0..1_000.0f64, bursts in 2.0..20.0f64, seed: u64,
    ) {
        let mut simulation = Simulation::new(UDP, rate * 30.0 / 0.5, seed, timeouts());
        simulation.bursts = bursts;
        for _ in 0..240 {
            let forecast = simulation.tick(|_| rate, 30.0);
            if simulation.now > 90.0 {
                prop_assert_eq!(forecast, None, "at {:.0} s", simulation.now);
            }
        }
    }

    #[test]
    fn what_stays_of_a_mixture_fills_the_table(rate in 200.0..1_000.0f64, seed: u64) {
        fills_with_what_stays(rate, seed);
    }

    #[test]
    fn entries_that_outlive_their_timeout_fill_the_table_after_all(rate in 100.0..1_000.0f64, seed: u64) {
        let mut simulation = Simulation::new(UDP, rate * 200.0, seed, timeouts());
        while simulation.now < 190.0 {
            let forecast = simulation.tick(|_| rate, f64::INFINITY);
            if simulation.now > 90.0 {
                is_near(forecast, (simulation.max - simulation.entries()) / rate, simulation.now);
            }
        }
    }
}

#[track_caller]
fn levels_off(rate: f64, level: f64, ticks: u32, seed: u64) {
    let mut simulation = Simulation::new(UDP, rate * 30.0 / level, seed, timeouts());
    for _ in 0..ticks {
        let forecast = simulation.tick(|_| rate, 30.0);
        if simulation.now > 10.0 {
            assert_eq!(forecast, None, "at {:.0} s", simulation.now);
        }
    }
    let lifetime = simulation.forecast.lifetime(UDP).expect("measured");
    assert!((lifetime - 30.0).abs() < 2.0, "{lifetime}");
}

#[track_caller]
fn fills_with_what_stays(rate: f64, seed: u64) {
    // Of two entries one dies after 20 s, the other stays.
    let mut simulation = Simulation::new(TCP, rate * 200.0, seed, timeouts());
    simulation.stays = 0.5;
    while simulation.entries() < simulation.max {
        let forecast = simulation.tick(|_| rate, 20.0);
        if simulation.now > 60.0 && simulation.entries() < simulation.max {
            // What is left of two numbers is as uncertain as both.
            let truth = (simulation.max - simulation.entries()) / (rate / 2.0);
            is_within(0.4, forecast, truth, simulation.now);
        }
    }
}

#[test]
fn a_rise_that_noise_hides_is_foreseen_a_little_late() {
    // At 31 s the 31 rates give a slope of 1.89 instead of 3.12: 3.1 standard errors too little, and 5.1 from none, where four
    // fifths of it count. 254.7 s are foreseen instead of 197.2.
    rises(300.0, 96.003, 228.208, 724_622_374_469_968_936);
}

#[test]
fn a_rise_by_chance_is_no_fill() {
    // Slopes of 3.6 standard errors and more, in 60 to 120 points.
    levels_off(50.0, 0.821_112_776_285_536_4, 150, 14_335_108_330_445_239_144);
    levels_off(50.0, 0.814_810_698_835_195_7, 150, 4_173_575_699_644_552_232);
    // More than 4.5, after five minutes.
    levels_off(50.0, 0.72, 900, 12_409_074_801_060_514_774);
    let mut simulation = Simulation::new(UDP, 100.0 * 30.0 / 0.5, 11_951_934_466_316_797_610, timeouts());
    simulation.bursts = 2.0;
    for _ in 0..240 {
        let forecast = simulation.tick(|_| 100.0, 30.0);
        assert!(simulation.now < 90.0 || forecast.is_none(), "{forecast:?} at {:.0} s", simulation.now);
    }
}

#[test]
fn lifetimes_that_wander_put_off_no_fill() {
    // The lag was off its line by a second, which is 200 entries, four seconds before the table was full.
    fills_with_what_stays(200.0, 11_483_637_960_840_223_236);
}

#[test]
fn without_arrivals_or_without_a_limit_nothing_fills() {
    let mut simulation = Simulation::new(TCP, 1_000.0, 1, timeouts());
    assert_eq!(simulation.tick(|_| 0.0, 1.0), None);
    for _ in 0..3 {
        simulation.tick(|_| 10.0, 100.0);
    }
    assert!(simulation.tick(|_| 10.0, 100.0).is_some());
    assert_eq!(simulation.forecast.full_in_s(10, 0), None);
    assert_eq!(simulation.forecast.full_in_s(10, 10), Some(0.0));
}

#[test]
fn entries_present_at_the_census_make_room_as_they_expire() {
    // 6,000 in TIME_WAIT leave at 50/s, 45/s come: it never fills, although a hundred more would.
    let mut detail = PortDetail::new(Protocol::TCP, Some(6379));
    for entry in 0..6_000 {
        detail.add(7, true, entry % 120);
    }
    let census = Census { details: vec![detail], timeouts: timeouts(), ..Census::default() };
    let mut forecast = Forecast::default();
    forecast.tick(1.0, [Step { key: TCP, entries: 6_000.0, inserts: 0.0, deletes: 0.0 }].into_iter());
    forecast.take_census(&census, |_| 6_000.0);
    let mut entries = 6_000.0;
    for _ in 0..240 {
        entries -= 5.0 * f64::from(entries > 5_400.0);
        let deletes = 45.0 + 5.0 * f64::from(entries > 5_400.0);
        forecast.tick(1.0, [Step { key: TCP, entries, inserts: 45.0, deletes }].into_iter());
        assert_eq!(forecast.full_in_s(entries as u32, 6_100), None);
    }
}

#[test]
fn models_are_bounded_and_what_has_none_still_counts() {
    let mut forecast = Forecast::default();
    forecast.take_census(&Census { timeouts: timeouts(), ..Census::default() }, |_| 0.0);
    for tick in 1..=20 {
        let entries = f64::from(tick) * 10.0;
        forecast.tick(
            1.0,
            (0..1_000).map(|port| Step { key: 6 << 16 | port, entries, inserts: 10.0, deletes: 0.0 }),
        );
    }
    assert!(forecast.models.len() <= Forecast::MODELS);
    let full = forecast.full_in_s(200_000, 400_000).expect("10,000/s fill it");
    assert!((full - 20.0).abs() < 2.0, "{full}");
}

#[test]
fn the_order_of_keys_decides_nothing() {
    let forecast = |turned: u32| {
        let mut forecast = Forecast::default();
        forecast.take_census(&Census { timeouts: timeouts(), ..Census::default() }, |_| 0.0);
        let mut now = 0;
        (1..=90)
            .map(move |tick| {
                // Ports of all sizes and of equal ones; some come late and push smaller ones out.
                let steps = (0..200_u32).map(|port| {
                    let rate = f64::from(port % 7 * 3 + u32::from(port > 150 && tick > 30) * 40);
                    let age = f64::from(if port > 150 { 0.max(tick - 30) } else { tick });
                    let deletes = if tick > 20 { rate * 0.7 } else { 0.0 };
                    Step { key: 6 << 16 | port, entries: rate * age, inserts: rate, deletes: deletes.floor() }
                });
                let mut steps: Vec<_> = steps.collect();
                now += steps.iter().map(|step| step.entries as u32).max().unwrap_or(0);
                steps.rotate_left(turned as usize);
                if turned % 2 == 1 {
                    steps.reverse();
                }
                forecast.tick(1.0, steps.into_iter());
                let models: Vec<FlowKey> = forecast.models.keys().copied().collect();
                (models, forecast.full_in_s(now, now + 500_000).map(f64::to_bits))
            })
            .collect::<Vec<_>>()
    };
    let once = forecast(0);
    assert!(once.iter().filter(|(_, full)| full.is_some()).count() > 30, "too few forecasts");
    assert_ne!(once[20].0, once[80].0, "no model was pushed out");
    for turned in [1, 64, 77, 198] {
        assert_eq!(forecast(turned), once);
    }
}
