//! Straight lines through noisy points: a rate with its trend, if the trend is more than noise.
//! Pure arithmetic.

use std::collections::VecDeque;

/// A slope within so many standard errors is noise.
const NOISE: f64 = 2.0;
/// From so many on it is certain; more if there are few points.
pub(super) const SIGNIFICANT: f64 = 4.0;
/// A trend is looked for in every tick, in several periods, for each key: of so many looks, one or another is far off
/// by chance. From here on, and then until it is lost in noise, a rise decides whether a table fills at all.
const SURE: f64 = 5.0;
/// A fall must stand out by so many times more: taken from noise, it would hide that a table fills.
const DOUBT_IN_A_FALL: f64 = 1.5;
pub(super) const FEW: f64 = 12.0;
/// The periods a trend is read from, in points, longest first.
const PERIODS: [usize; 4] = [120, 60, 30, 15];
/// Fewer points tell no trend.
const FEWEST: usize = 5;

/// A line, by its value now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub at_now: f64,
    /// Per second.
    pub slope: f64,
}

/// A line through points.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    pub line: Line,
    /// Standard error of the slope.
    error: f64,
    /// Standard deviation of the points around the line.
    spread: f64,
    /// Seconds from the first point to the last.
    period: f64,
}

/// How a rate goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trend {
    /// Its slope counts in part if it may be noise.
    pub line: Line,
    /// Seconds it was seen in, less if the slope may be noise.
    pub period: f64,
    /// The rate if that slope is noise.
    pub mean: f64,
    /// The slope in standard errors; less if there are few points.
    strength: f64,
}

impl Trend {
    const fn level(rate: f64) -> Self {
        Self { line: Line { at_now: rate, slope: 0.0 }, period: 0.0, mean: rate, strength: 0.0 }
    }

    /// Whether it is a rise beyond doubt; one that was stays so until it is lost in noise.
    pub fn is_sure_rise(&self, was: bool) -> bool {
        self.line.slope > 0.0 && (was || self.strength >= SURE)
    }
}

/// The least-squares line; none through less than two points.
pub(super) fn fit(points: &[(f64, f64)], now: f64) -> Option<Fit> {
    let n = points.len() as f64;
    if points.len() < 2 {
        return None;
    }
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / n;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / n;
    let xx: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if xx <= 0.0 {
        return None;
    }
    let slope = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / xx;
    let line = Line { at_now: mean_y + slope * (now - mean_x), slope };
    let left: f64 = points.iter().map(|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2)).sum();
    let spread = (left / (n - 2.0).max(1.0)).sqrt();
    let period = points[points.len() - 1].0 - points[0].0;
    Some(Fit { line, error: spread / xx.sqrt(), spread, period })
}

/// The rate now, from the longest period that a straight line describes, with its slope if that is no noise.
pub(super) fn settled_fit(rates: &VecDeque<(f64, f64)>, now: f64) -> Trend {
    let all: Vec<(f64, f64)> = rates.iter().copied().collect();
    let mut best = None;
    for period in PERIODS {
        let points = &all[all.len().saturating_sub(period)..];
        let Some(fit) = fit(points, now) else { break };
        best = Some((fit, points));
        if points.len() < FEWEST || describes(&fit, points, now) {
            break;
        }
    }
    let Some((fit, points)) = best else {
        return Trend::level(all.last().map_or(0.0, |(_, rate)| *rate));
    };
    let n = points.len() as f64;
    let mean = points.iter().map(|(_, rate)| rate).sum::<f64>() / n;
    if points.len() < FEWEST {
        return Trend::level(mean);
    }
    // Arrivals of independent flows scatter at least this much, even if these few happen not to.
    let error = fit.error * (mean.sqrt() / fit.spread.max(1e-9)).max(1.0);
    let doubt = if fit.line.slope < 0.0 { DOUBT_IN_A_FALL } else { 1.0 };
    let few = 1.0 + FEW / n;
    let (noise, certain) = (NOISE * doubt, SIGNIFICANT * doubt * few);
    let strength = fit.line.slope.abs() / error.max(1e-12);
    // Between noise and certainty the slope counts in part: a forecast that jumps is of no use.
    let part = ((strength - noise) / (certain - noise)).clamp(0.0, 1.0).powi(2);
    let slope = fit.line.slope * part;
    let middle = points.iter().map(|(at, _)| at).sum::<f64>() / n;
    Trend {
        line: Line { at_now: (mean + slope * (now - middle)).max(0.0), slope },
        period: fit.period * part,
        mean,
        strength: strength / few,
    }
}

/// Whether each third of the points lies around the line: a change of course leaves them on one side.
fn describes(fit: &Fit, points: &[(f64, f64)], now: f64) -> bool {
    let third = points.len() / 3;
    points.chunks(third.max(1)).filter(|chunk| chunk.len() >= third).all(|chunk| {
        let off = chunk.iter().map(|(x, y)| y - (fit.line.at_now + fit.line.slope * (x - now))).sum::<f64>();
        let n = chunk.len() as f64;
        (off / n).abs() <= 3.0 * fit.spread / n.sqrt() + 1e-9
    })
}
