//! The timeline of a span whose length nobody knows beforehand: points become coarser as it grows.
//! Pure; never more than [`MOST`] points, and sums stay right.

use std::collections::BTreeMap;

use ctwatch_common::Cause;
use ctwatch_common::cause::Unit;
use serde::Serialize;

use super::at::At;
use crate::contract::rounded;
use crate::model::ServicePort;

/// Points of a timeline.
const MOST: usize = 480;

/// Part of the timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    /// Its end.
    #[serde(rename = "time")]
    pub at: At,
    /// Time that its ticks account for.
    #[serde(serialize_with = "rounded")]
    pub seconds: f64,
    /// The highest fill of any table; null if none has a limit.
    pub fill: Option<f64>,
    /// Packets lost by port.
    pub lost: BTreeMap<PortOrNone, i64>,
    /// Entries evicted early by port.
    pub evicted: BTreeMap<PortOrNone, i64>,
    /// New entries by port.
    pub arrived: BTreeMap<PortOrNone, i64>,
    /// Entries at its end by port, of the fullest table.
    pub entries: BTreeMap<PortOrNone, i64>,
}

/// A port, or none where the tuple was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PortOrNone(pub Option<ServicePort>);

impl Serialize for PortOrNone {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(port) => serializer.collect_str(&port),
            None => serializer.serialize_str("unknown"),
        }
    }
}

impl Point {
    pub fn new(at: At) -> Self {
        let (lost, evicted, arrived, entries) = Default::default();
        Self { at, seconds: 0.0, fill: None, lost, evicted, arrived, entries }
    }

    /// Where losses of this cause are counted.
    pub fn losses_of(&mut self, cause: Cause) -> &mut BTreeMap<PortOrNone, i64> {
        match cause.unit() {
            Unit::Packets => &mut self.lost,
            Unit::Entries => &mut self.evicted,
        }
    }

    fn append(&mut self, later: Self) {
        self.at = later.at;
        self.seconds += later.seconds;
        self.fill = match (self.fill, later.fill) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
        let sums = [
            (&mut self.lost, later.lost),
            (&mut self.evicted, later.evicted),
            (&mut self.arrived, later.arrived),
        ];
        for (sums, more) in sums {
            for (port, count) in more {
                *sums.entry(port).or_default() += count;
            }
        }
        self.entries = later.entries;
    }
}

/// A timeline while it grows.
#[derive(Debug, Default)]
pub(super) struct Series {
    points: Vec<Point>,
    /// Ticks in each point, and in the last one.
    width: u32,
    in_last: u32,
}

impl Series {
    /// Whether the next tick is the last one of its point, so that its entries will be shown.
    pub fn closes(&self) -> bool {
        self.width <= 1 || self.in_last + 1 >= self.width
    }

    pub fn add(&mut self, point: Point) {
        self.width = self.width.max(1);
        match self.points.last_mut().filter(|_| self.in_last < self.width) {
            Some(last) => {
                let entries = std::mem::take(&mut last.entries);
                last.append(point);
                if last.entries.is_empty() {
                    last.entries = entries;
                }
                self.in_last += 1;
            }
            None => {
                if self.points.len() == MOST {
                    self.thin();
                }
                self.points.push(point);
                self.in_last = 1;
            }
        }
    }

    fn thin(&mut self) {
        let mut thinned = Vec::with_capacity(MOST);
        for pair in std::mem::take(&mut self.points).chunks_mut(2) {
            let mut first = pair[0].clone();
            if let Some(second) = pair.get_mut(1) {
                first.append(std::mem::replace(second, Point::new(first.at)));
            }
            thinned.push(first);
        }
        self.points = thinned;
        self.width *= 2;
    }

    pub fn points(self) -> Vec<Point> {
        self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn however_many_ticks_the_sums_stay_and_points_are_few(ticks in 1..5_000i64) {
            let port = PortOrNone(Some(ServicePort { proto: crate::model::Protocol::TCP, port: 80 }));
            let mut series = Series::default();
            for tick in 0..ticks {
                let mut point = Point::new(At { time: Timestamp::from_second(tick).unwrap(), place_us: tick });
                point.seconds = 1.0;
                point.fill = Some(tick as f64);
                point.lost.insert(port, tick);
                point.entries.insert(port, tick);
                series.add(point);
            }
            let points = series.points();
            prop_assert!(points.len() <= MOST);
            prop_assert_eq!(points.iter().map(|point| point.lost[&port]).sum::<i64>(), (0..ticks).sum::<i64>());
            prop_assert_eq!(points.iter().map(|point| point.seconds).sum::<f64>(), ticks as f64);
            prop_assert_eq!(points.last().unwrap().fill, Some((ticks - 1) as f64));
            prop_assert!(points.windows(2).all(|pair| pair[0].at.place_us < pair[1].at.place_us));
        }
    }
}
