//! The plots of the HTML report as SVG: fill and losses over time, arrivals, occupancy.
//! Colours are placeholders that the page's style sheet replaces, so that light and dark have their own.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, anyhow};
use jiff::tz::TimeZone;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::document::Clock;
use super::model::Host;
use super::series::{Point, PortOrNone};

/// Ports with a colour of their own.
const SHOWN: usize = 5;
/// One for each of them, then that of all others; report.html says what they look like.
const COLOURS: [RGBColor; SHOWN + 1] = [
    RGBColor(1, 1, 1),
    RGBColor(2, 2, 2),
    RGBColor(3, 3, 3),
    RGBColor(4, 4, 4),
    RGBColor(5, 5, 5),
    RGBColor(6, 6, 6),
];
const LINE: RGBColor = RGBColor(7, 7, 7);
const AXIS: RGBColor = RGBColor(8, 8, 8);
const GRID: RGBColor = RGBColor(9, 9, 9);
const SIZE: (u32, u32) = (880, 200);

/// A plot, and what its colours stand for.
#[derive(Debug)]
pub(super) struct Plot {
    pub title: &'static str,
    pub svg: String,
    pub legend: Vec<String>,
}

/// What is stacked.
type ByPort = fn(&Point) -> &BTreeMap<PortOrNone, i64>;

/// All plots of a host.
pub(super) fn of(host: &Host, zone: &TimeZone) -> Result<Vec<Plot>> {
    let points = &host.timeline;
    if points.len() < 2 {
        return Ok(Vec::new());
    }
    let clock = Clock::new(zone, host);
    let axis = Axis::new(points, &clock);
    let mut plots =
        vec![Plot { title: "Fill of the fullest table, %", svg: axis.fill(points)?, legend: Vec::new() }];
    let per_s = |count: i64, point: &Point| count as f64 / point.seconds.max(1e-3);
    let stacks: [(&'static str, ByPort, bool); 3] = [
        ("Packets lost per second, by service port", |point| &point.lost, true),
        ("New entries per second, by service port", |point| &point.arrived, true),
        ("Entries of the fullest table, by service port", |point| &point.entries, false),
    ];
    for (title, of, is_rate) in stacks {
        let (ports, rows) =
            stacked(points, of, |count, point| if is_rate { per_s(count, point) } else { count as f64 });
        if rows.iter().flatten().any(|value| *value > 0.0) {
            plots.push(Plot { title, svg: axis.stack(title, &rows)?, legend: ports });
        }
    }
    Ok(plots)
}

/// The ports that matter most with all others in one, and their values at each point.
fn stacked(
    points: &[Point],
    of: impl Fn(&Point) -> &BTreeMap<PortOrNone, i64>,
    value: impl Fn(i64, &Point) -> f64,
) -> (Vec<String>, Vec<Vec<f64>>) {
    let mut sums: HashMap<PortOrNone, i64> = HashMap::new();
    for (port, count) in points.iter().flat_map(&of) {
        *sums.entry(*port).or_default() += count;
    }
    let mut ports: Vec<(PortOrNone, i64)> = sums.into_iter().filter(|(_, sum)| *sum > 0).collect();
    ports.sort_unstable_by_key(|(port, sum)| (std::cmp::Reverse(*sum), *port));
    let has_others = ports.len() > SHOWN;
    let shown: Vec<PortOrNone> = ports.into_iter().take(SHOWN).map(|(port, _)| port).collect();
    let rows = points
        .iter()
        .map(|point| {
            let counts = of(point);
            let mut row: Vec<f64> = shown
                .iter()
                .map(|port| value(counts.get(port).copied().unwrap_or(0).max(0), point))
                .collect();
            if has_others {
                let others = counts.iter().filter(|(port, _)| !shown.contains(port)).map(|(_, count)| count);
                row.push(value(others.sum::<i64>().max(0), point));
            }
            row
        })
        .collect();
    let name = |port: &PortOrNone| port.0.map_or_else(|| "port unknown".to_owned(), |port| port.to_string());
    let mut names: Vec<String> = shown.iter().map(name).collect();
    if has_others {
        names.push("all others".to_owned());
    }
    (names, rows)
}

/// The time axis that all plots share.
struct Axis<'a> {
    points: &'a [Point],
    clock: &'a Clock,
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

impl<'a> Axis<'a> {
    fn new(points: &'a [Point], clock: &'a Clock) -> Self {
        Self { points, clock }
    }

    fn seconds(&self, point: &Point) -> f64 {
        point.time.duration_since(self.points[0].time).as_secs_f64()
    }

    /// From the beginning of the first point to the end of the last one.
    fn span(&self) -> (f64, f64) {
        let last = self.points.last().map_or(0.0, |point| self.seconds(point));
        (-self.points[0].seconds, last.max(1.0))
    }

    fn fill(&self, points: &[Point]) -> Result<String> {
        self.draw("Fill of the fullest table in percent, over time", 100.0, |chart| {
            let fill = points.iter().filter_map(|point| Some((self.seconds(point), point.fill? * 100.0)));
            chart.draw_series(AreaSeries::new(fill.clone(), 0.0, LINE.mix(0.2)))?;
            chart.draw_series(LineSeries::new(fill, LINE.stroke_width(2)))?;
            Ok(())
        })
    }

    fn stack(&self, title: &str, rows: &[Vec<f64>]) -> Result<String> {
        let most = rows.iter().map(|row| row.iter().sum::<f64>()).fold(0.0, f64::max);
        self.draw(title, most * 1.05, |chart| {
            let mut from = self.span().0;
            for (point, row) in self.points.iter().zip(rows) {
                let (to, mut low) = (self.seconds(point), 0.0);
                for (value, colour) in row.iter().zip(COLOURS).filter(|(value, _)| **value > 0.0) {
                    let bar = Rectangle::new([(from, low), (to, low + value)], colour.filled());
                    chart.draw_series([bar])?;
                    low += value;
                }
                from = to;
            }
            Ok(())
        })
    }

    fn draw(
        &self,
        title: &str,
        top: f64,
        series: impl FnOnce(&mut Chart<'_, '_>) -> Result<(), Trouble>,
    ) -> Result<String> {
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        self.draw_on(&root, top, series).map_err(|error| anyhow!("drawing \"{title}\": {error}"))?;
        drop(root);
        // It is as wide as the page, and says what it is to those who can't see it.
        let (width, height) = SIZE;
        let head = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\" ");
        Ok(svg.replacen("<svg ", &head, 1))
    }

    fn draw_on(
        &self,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
        top: f64,
        series: impl FnOnce(&mut Chart<'_, '_>) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let (from, to) = self.span();
        let mut chart = ChartBuilder::on(root)
            .margin(6)
            .margin_right(24)
            .x_label_area_size(26)
            .y_label_area_size(64)
            .build_cartesian_2d(from..to, 0.0..top.max(1e-3))?;
        let font = ("sans-serif", 12).into_font().color(&AXIS);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(&|seconds| self.label(*seconds))
            .y_label_formatter(&|value| amount(*value))
            .label_style(font)
            .axis_style(AXIS)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .draw()?;
        series(&mut chart)?;
        root.present()
    }

    fn label(&self, seconds: f64) -> String {
        self.clock.time(self.points[0].time + jiff::SignedDuration::from_secs_f64(seconds))
    }
}

type Trouble = DrawingAreaErrorKind<std::io::Error>;

fn amount(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1}M", value / 1e6),
        value if value >= 1e4 => format!("{:.0}k", value / 1e3),
        value if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}
