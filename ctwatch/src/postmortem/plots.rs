//! The panels of the HTML report: fill, losses, occupancy and arrivals, one above the other over one time axis.
//! Shapes are SVG that stretches with the page; words stand beside them as HTML, so that they stay readable on a phone.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

use super::clock::Clock;
use super::model::{Change, Host};
use super::series::{Point, PortOrNone};
use crate::foreign::Foreign;
use crate::text::{percent, thousands};

/// Services with a colour of their own; report.html says which.
const COLOURS: usize = 6;
/// Width and height of a panel in its own units: it is stretched to the page.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;
/// Labels of the time axis, at most.
const TIMES: i64 = 7;
/// Marks closer than this part of the width share a label.
const CLUSTER: f64 = 0.1;
/// Changes that are named below the panels.
const NAMED: usize = 6;
/// A pause of this length is shown as one, seconds.
const PAUSE_S: f64 = 0.5;

/// All panels of a host.
#[derive(Debug)]
pub(super) struct Figure {
    pub legend: Vec<Key>,
    /// Numbers of changes of settings, at their times.
    pub marks: Vec<Label>,
    pub panels: Vec<Panel>,
    pub axis: Vec<Label>,
    pub zone: String,
    /// What the marks stand for.
    pub changes: Vec<String>,
    pub has_gaps: bool,
}

/// A colour, and the service it stands for.
#[derive(Debug)]
pub(super) struct Key {
    pub class: &'static str,
    pub name: String,
}

/// Words at a time, as a percentage of the width.
#[derive(Debug, PartialEq)]
pub(super) struct Label {
    pub left: String,
    pub text: String,
    /// So far right that it ends there.
    pub is_end: bool,
}

#[derive(Debug)]
pub(super) struct Panel {
    pub title: &'static str,
    /// What the scale says at its top and its middle.
    pub top: String,
    pub middle: String,
    pub svg: String,
    /// The labels of the marks stand above it.
    pub has_marks: bool,
    /// The time axis stands below it.
    pub has_axis: bool,
}

type ByPort = fn(&Point) -> &BTreeMap<PortOrNone, i64>;

/// A panel that stacks services: its title, what it shows, whether that is a rate.
type Stack = (&'static str, ByPort, bool);

const LOSSES: [Stack; 2] = [
    ("Packets lost per second", |point| &point.lost, true),
    ("Entries evicted early per second", |point| &point.evicted, true),
];
const LOAD: [Stack; 2] = [
    ("Entries in the fullest table", |point| &point.entries, false),
    ("New entries per second", |point| &point.arrived, true),
];

/// Which colour each service has, in all panels of all hosts.
#[derive(Debug)]
pub(super) struct Palette {
    services: Vec<PortOrNone>,
}

impl Palette {
    /// The services that matter most have colours: those with the largest parts of all panels.
    pub fn of(hosts: &[Host]) -> Self {
        let mut parts: HashMap<PortOrNone, f64> = HashMap::new();
        for host in hosts {
            for (_, of, is_rate) in LOSSES.into_iter().chain(LOAD) {
                let mut sums: BTreeMap<PortOrNone, f64> = BTreeMap::new();
                for point in &host.timeline {
                    let weight = if is_rate { 1.0 } else { point.seconds };
                    for (port, count) in of(point) {
                        *sums.entry(*port).or_default() += (*count).max(0) as f64 * weight;
                    }
                }
                let total: f64 = sums.values().sum();
                for (port, sum) in sums.into_iter().filter(|_| total > 0.0) {
                    *parts.entry(port).or_default() += sum / total;
                }
            }
        }
        let mut services: Vec<_> =
            parts.into_iter().filter(|(port, part)| port.0.is_some() && *part > 0.0).collect();
        services.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Self { services: services.into_iter().take(COLOURS).map(|(port, _)| port).collect() }
    }

    /// Where a service is in a stack: the most important one is at its bottom.
    fn place(&self, port: PortOrNone) -> usize {
        match self.services.iter().position(|one| *one == port) {
            Some(place) => place,
            None if port.0.is_none() => COLOURS + 1,
            None => COLOURS,
        }
    }

    fn key(&self, place: usize) -> Key {
        const CLASSES: [&str; COLOURS + 2] = ["s1", "s2", "s3", "s4", "s5", "s6", "so", "su"];
        let name = match self.services.get(place).and_then(|port| port.0) {
            Some(port) => port.with_service(),
            None if place == COLOURS + 1 => "unknown service".to_owned(),
            None => "all other services".to_owned(),
        };
        Key { class: CLASSES[place], name }
    }
}

/// All panels of a host; none if there is no time to show.
pub(super) fn figure(host: &Host, palette: &Palette, clock: &Clock) -> Option<Figure> {
    let scale = Scale::of(&host.timeline)?;
    let marks: Vec<(usize, f64, &Change)> = host
        .changes
        .iter()
        .enumerate()
        .filter_map(|(index, change)| Some((index + 1, scale.part(change.at.time)?, change)))
        .collect();
    let gaps = scale.gaps();
    let mut frame = String::new();
    for (from, to) in &gaps {
        let _ =
            write!(frame, "<path class=\"gap\" d=\"M{} 0H{}V{HEIGHT}H{}Z\"/>", x(*from), x(*to), x(*from));
    }
    let _ = write!(
        frame,
        "<path class=\"grid\" d=\"M0 0H{WIDTH}M0 {}H{WIDTH}M0 {HEIGHT}H{WIDTH}\"/>",
        HEIGHT / 2.0
    );
    let over: String = marks
        .iter()
        .map(|(_, part, _)| format!("<path class=\"mark\" d=\"M{} 0V{HEIGHT}\"/>", x(*part)))
        .collect();
    let panel = |title, description: &str, (top, middle): (String, String), shapes: &str| Panel {
        title,
        top,
        middle,
        svg: format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"{title}: {description}\">{frame}{shapes}{over}</svg>"
        ),
        has_marks: false,
        has_axis: false,
    };
    let mut shown = [false; COLOURS + 2];
    let mut stacked = |(title, of, is_rate): Stack| {
        let rows = scale.rows(palette, of, is_rate);
        let most = rows.iter().map(|row| row.iter().sum::<f64>()).fold(0.0, f64::max);
        if most <= 0.0 {
            return None;
        }
        let top = nice_top(most);
        let shapes: String = (0..COLOURS + 2)
            .filter_map(|place| {
                let path = scale.path(&rows, place, top)?;
                shown[place] = true;
                let Key { class, name } = palette.key(place);
                Some(format!("<path class=\"{class}\" d=\"{path}\"><title>{name}</title></path>"))
            })
            .collect();
        let description = format!("{} at most", amount(most));
        Some(panel(title, &description, (amount(top), amount(top / 2.0)), &shapes))
    };
    let mut upper: Vec<Panel> = LOSSES.into_iter().filter_map(&mut stacked).collect();
    let mut lower: Vec<Panel> = LOAD.into_iter().filter_map(&mut stacked).collect();
    let (shapes, most) = scale.fill();
    let most = most.map_or_else(
        || if host.story.unlimited.is_some() { "no limit" } else { "unknown" }.to_owned(),
        |most| format!("{} at most", percent(most)),
    );
    upper.insert(
        0,
        panel("Fill of the fullest table", &most, ("100 %".to_owned(), "50 %".to_owned()), &shapes),
    );
    for marked in upper.iter_mut().take(2) {
        marked.has_marks = !marks.is_empty();
    }
    for last in [upper.last_mut(), lower.last_mut()].into_iter().flatten() {
        last.has_axis = true;
    }
    Some(Figure {
        legend: (0..COLOURS + 2).filter(|place| shown[*place]).map(|place| palette.key(place)).collect(),
        marks: clustered(&marks.iter().map(|(number, part, _)| (*number, *part)).collect::<Vec<_>>()),
        panels: upper.into_iter().chain(lower).collect(),
        axis: scale.axis(clock),
        zone: clock.zone(scale.to),
        changes: named(&marks, clock),
        has_gaps: !gaps.is_empty(),
    })
}

/// The time axis that all panels share, and where each point is on it.
struct Scale<'a> {
    points: &'a [Point],
    from: Timestamp,
    to: Timestamp,
}

impl<'a> Scale<'a> {
    fn of(points: &'a [Point]) -> Option<Self> {
        let begins = points.iter().map(begin);
        let (from, to) = (begins.min()?, points.iter().map(|point| point.at.time).max()?);
        (points.len() >= 2 && from < to).then_some(Self { points, from, to })
    }

    fn seconds(&self) -> f64 {
        self.to.duration_since(self.from).as_secs_f64()
    }

    /// Where a time is, from 0 to 1; none if it is not in here.
    fn part(&self, time: Timestamp) -> Option<f64> {
        (self.from <= time && time <= self.to)
            .then(|| time.duration_since(self.from).as_secs_f64() / self.seconds())
    }

    /// From where to where a point goes: never into the one before it.
    fn spans(&self) -> Vec<(f64, f64)> {
        let mut before = self.from;
        let span = |point: &Point| {
            let from = begin(point).max(before);
            let from = if from.duration_since(before).as_secs_f64() < PAUSE_S { before } else { from };
            before = before.max(point.at.time);
            let place = |time| self.part(time).unwrap_or(0.0);
            (place(from), place(point.at.time.max(from)))
        };
        self.points.iter().map(span).collect()
    }

    /// Times of which nothing is recorded.
    fn gaps(&self) -> Vec<(f64, f64)> {
        let spans = self.spans();
        let between = spans.windows(2).map(|pair| (pair[0].1, pair[1].0));
        between.filter(|(from, to)| to > from).collect()
    }

    /// Values by place in the stack, point by point.
    fn rows(&self, palette: &Palette, of: ByPort, is_rate: bool) -> Vec<[f64; COLOURS + 2]> {
        let row = |point: &Point| {
            let mut sums = [0_i64; COLOURS + 2];
            for (port, count) in of(point) {
                sums[palette.place(*port)] += count;
            }
            let seconds = if is_rate { point.seconds.max(1e-3) } else { 1.0 };
            sums.map(|sum| sum.max(0) as f64 / seconds)
        };
        self.points.iter().map(row).collect()
    }

    /// The outline of one service on top of those below it; none if it has nothing.
    fn path(&self, rows: &[[f64; COLOURS + 2]], place: usize, top: f64) -> Option<String> {
        let low = |row: &[f64; COLOURS + 2]| row[..place].iter().sum::<f64>() / top;
        let steps: Vec<_> = self
            .spans()
            .into_iter()
            .zip(rows)
            .map(|((from, to), row)| (from, to, low(row), low(row) + row[place] / top))
            .collect();
        let path = outline(&steps);
        (!path.is_empty()).then_some(path)
    }

    /// The fill as an area with an edge, and the highest one.
    fn fill(&self) -> (String, Option<f64>) {
        let spans = self.spans();
        let known =
            spans.iter().zip(self.points).filter_map(|((from, to), point)| Some((*from, *to, point.fill?)));
        let steps: Vec<_> = known.map(|(from, to, fill)| (from, to, 0.0, fill.clamp(0.0, 1.0))).collect();
        let mut edge = String::new();
        let mut at = None;
        for (from, to, _, fill) in &steps {
            let _ = if at == Some(*from) {
                write!(edge, "V{}H{}", y(*fill), x(*to))
            } else {
                write!(edge, "M{} {}H{}", x(*from), y(*fill), x(*to))
            };
            at = Some(*to);
        }
        let shapes =
            format!("<path class=\"fill\" d=\"{}\"/><path class=\"edge\" d=\"{edge}\"/>", outline(&steps));
        (shapes, self.points.iter().filter_map(|point| point.fill).reduce(f64::max))
    }

    /// Round times, few enough to stand beside one another.
    fn axis(&self, clock: &Clock) -> Vec<Label> {
        const STEPS: [i64; 22] = [
            1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400,
            172_800, 345_600, 604_800, 2_419_200,
        ];
        let seconds = self.seconds() as i64;
        let step = STEPS.into_iter().find(|step| seconds / step < TIMES).unwrap_or(seconds / TIMES + 1);
        // Round in the reader's zone, whose midnight is not UTC's.
        let offset = clock.offset_s(self.from);
        let first = (self.from.as_second() + offset).div_euclid(step) * step - offset;
        let times = (0..=TIMES + 1).filter_map(|index| Timestamp::from_second(first + index * step).ok());
        times
            .filter_map(|time| {
                let text = if step < 60 { clock.time(time) } else { clock.minute(time) };
                Some(label(self.part(time)?, text))
            })
            .collect()
    }
}

fn begin(point: &Point) -> Timestamp {
    let seconds = SignedDuration::try_from_secs_f64(point.seconds).unwrap_or_default();
    point.at.time.checked_sub(seconds).unwrap_or(point.at.time)
}

/// Steps from and to, low and high: around each run of them that touch one another and have a height.
fn outline(steps: &[(f64, f64, f64, f64)]) -> String {
    let mut path = String::new();
    let parts = steps.chunk_by(|(_, to, low, high), (from, _, next_low, next_high)| {
        to == from && (high > low) == (next_high > next_low)
    });
    for part in parts.filter(|part| part[0].3 > part[0].2) {
        let _ = write!(path, "M{} {}", x(part[0].0), y(part[0].2));
        for (_, to, _, high) in part {
            let _ = write!(path, "V{}H{}", y(*high), x(*to));
        }
        for (from, _, low, _) in part.iter().rev() {
            let _ = write!(path, "V{}H{}", y(*low), x(*from));
        }
        path.push('Z');
    }
    path
}

fn x(part: f64) -> f64 {
    (part * WIDTH * 10.0).round() / 10.0
}

fn y(part: f64) -> f64 {
    ((1.0 - part) * HEIGHT * 100.0).round() / 100.0
}

fn label(part: f64, text: String) -> Label {
    Label { left: format!("{:.2}", part * 100.0), text, is_end: part > 0.93 }
}

/// Marks that would stand on one another share a label: "2–4".
fn clustered(marks: &[(usize, f64)]) -> Vec<Label> {
    let mut marks = marks.to_vec();
    marks.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut clusters: Vec<(f64, usize, usize)> = Vec::new();
    for (number, part) in marks {
        match clusters.last_mut().filter(|(from, ..)| part - *from < CLUSTER) {
            Some((_, first, last)) => (*first, *last) = ((*first).min(number), (*last).max(number)),
            None => clusters.push((part, number, number)),
        }
    }
    let text = |first, last| if first == last { format!("#{first}") } else { format!("#{first}–{last}") };
    clusters.into_iter().map(|(part, first, last)| label(part, text(first, last))).collect()
}

fn named(marks: &[(usize, f64, &Change)], clock: &Clock) -> Vec<String> {
    let value =
        |value: &Option<Foreign>| value.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let one = |(number, _, change): &(usize, f64, &Change)| {
        let name = change.name.raw();
        let name = Foreign::from(name.strip_prefix("net.netfilter.").unwrap_or(name));
        let (before, after) = (value(&change.before), value(&change.value));
        format!("#{number} {}: {name} from {before} to {after}", clock.time(change.at.time))
    };
    let mut all: Vec<String> = marks.iter().take(NAMED).map(one).collect();
    if marks.len() > NAMED {
        all.push(format!("{} more: see Changes", marks.len() - NAMED));
    }
    all
}

/// The next number that is easy to halve.
fn nice_top(most: f64) -> f64 {
    let unit = 10_f64.powf(most.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * unit);
    steps.into_iter().find(|step| *step >= most * 0.999_999).unwrap_or(most)
}

fn amount(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.1}M", value / 1e6),
        value if value >= 1e4 => format!("{:.0}k", value / 1e3),
        value if value >= 10.0 || value.fract() == 0.0 => thousands(value.round() as u64),
        value if value >= 0.1 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_that_would_overlap_are_one() {
        let text =
            |marks: &[(usize, f64)]| clustered(marks).into_iter().map(|label| label.text).collect::<Vec<_>>();
        assert_eq!(text(&[(1, 0.0), (2, 0.05), (3, 0.2), (4, 0.9)]), ["#1–2", "#3", "#4"]);
        assert!(clustered(&[(1, 0.99)])[0].is_end);
    }

    proptest! {
        #[test]
        fn a_top_is_above_and_not_far(most in 1e-3..1e9_f64) {
            let top = nice_top(most);
            prop_assert!(top >= most * 0.999 && top <= most * 2.001, "{top} for {most}");
        }

        #[test]
        fn marks_never_share_a_place(parts in prop::collection::vec(0.0..1.0_f64, 0..40)) {
            let marks: Vec<_> = parts.into_iter().enumerate().collect();
            let labels = clustered(&marks);
            let left: Vec<f64> = labels.iter().map(|label| label.left.parse().unwrap()).collect();
            prop_assert!(left.windows(2).all(|pair| pair[1] - pair[0] >= CLUSTER * 100.0 - 0.02));
        }
    }
}
