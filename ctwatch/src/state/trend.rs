//! Straight lines through noisy points: a rate with its trend, if the trend is more than noise.
//! Pure arithmetic.

use std::collections::VecDeque;

/// A slope within so many standard errors is noise.
const NOISE: f64 = 2.0;
/// From so many on it is certain; more if there are few points.
const SIGNIFICANT: f64 = 4.0;
/// A fall must stand out by so many times more: taken from noise, it would hide that a table fills.
const DOUBT_IN_A_FALL: f64 = 1.5;
const FEW: f64 = 12.0;
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
    /// Seconds from the first point to the last, less if the slope may be noise.
    pub period: f64,
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
pub(super) fn settled_fit(rates: &VecDeque<(f64, f64)>, now: f64) -> Fit {
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
        let rate = all.last().map_or(0.0, |(_, rate)| *rate);
        return Fit { line: Line { at_now: rate, slope: 0.0 }, error: 0.0, spread: 0.0, period: 0.0 };
    };
    let mean = points.iter().map(|(_, rate)| rate).sum::<f64>() / points.len() as f64;
    // Arrivals of independent flows scatter at least this much, even if these few happen not to.
    let error = fit.error * (mean.sqrt() / fit.spread.max(1e-9)).max(1.0);
    let doubt = if fit.line.slope < 0.0 { DOUBT_IN_A_FALL } else { 1.0 };
    let (noise, certain) = (NOISE * doubt, SIGNIFICANT * doubt * (1.0 + FEW / points.len() as f64));
    let strength = fit.line.slope.abs() / error.max(1e-12);
    // Between noise and certainty the slope counts in part: a forecast that jumps is of no use.
    let part = if points.len() < FEWEST {
        0.0
    } else {
        ((strength - noise) / (certain - noise)).clamp(0.0, 1.0).powi(2)
    };
    let slope = fit.line.slope * part;
    let middle = points.iter().map(|(at, _)| at).sum::<f64>() / points.len() as f64;
    Fit {
        line: Line { at_now: (mean + slope * (now - middle)).max(0.0), slope },
        period: fit.period * part,
        ..fit
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
