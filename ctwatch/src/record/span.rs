//! `--from` and `--to`: moments as people write them, and the span of a recording they denote.
//! A tick belongs to the span in which it ends, so that adjacent spans add up.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{DateTime, Time};
use jiff::fmt::temporal::Pieces;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// A moment as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// With Z: 2026-03-14T12:00:00Z
    At(Timestamp),
    /// With an offset from UTC: 2026-03-14T12:00:00+01:00
    AtOffset(Timestamp, Offset),
    /// By the local clock: 2026-03-14 12:00. In the hour that comes twice the first one that is in the recording.
    Local(DateTime),
    /// The first such time in the recording by the local clock, or the first after `--from`: 12:00
    Clock(Time),
    /// The same with what clocks are called then, as reports print it: 2026-11-01 01:00:05 EST
    LocalIn(DateTime, Abbreviation),
    /// 01:00:05 EST
    ClockIn(Time, Abbreviation),
    /// +10m: this long after the recording begins.
    AfterStart(SignedDuration),
    /// -10m: this long before it ends.
    BeforeEnd(SignedDuration),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = "give 2026-03-14T12:00:00Z or 2026-03-14T12:00:00+01:00, a local time like '2026-03-14 12:00' or 12:00 (in \
                    the hour that comes twice also '01:00 EST'), +10m from the start of the recording, or -10m from its end";
        let duration = |text: &str| {
            let duration = text.parse::<SignedDuration>().ok().filter(|duration| !duration.is_negative());
            duration.ok_or_else(|| format!("`{text}` is not a duration like 90s or 10m; {good}"))
        };
        if let Some(text) = text.strip_prefix('+') {
            return duration(text).map(Self::AfterStart);
        }
        if let Some(text) = text.strip_prefix('-') {
            return duration(text).map(Self::BeforeEnd);
        }
        let date = |text: &str| text.parse().ok().filter(|_| text.contains('-'));
        let time = |text: &str| text.parse().ok().filter(|_| text.contains(':'));
        let date_or_time = || date(text).map(Self::Local).or_else(|| time(text).map(Self::Clock));
        let named = || {
            let (text, name) = text.rsplit_once(' ')?;
            let name = Abbreviation::of(name)?;
            let local = date(text).map(|local| Self::LocalIn(local, name));
            local.or_else(|| time(text).map(|time| Self::ClockIn(time, name)))
        };
        let at = text.parse().ok().map(|time| {
            let offset = Pieces::parse(text).ok().and_then(|pieces| pieces.to_numeric_offset());
            match offset.filter(|offset| *offset != Offset::UTC) {
                Some(offset) => Self::AtOffset(time, offset),
                None => Self::At(time),
            }
        });
        at.or_else(date_or_time).or_else(named).ok_or_else(|| good.to_owned())
    }
}

/// What clocks are called at some time in some zone: EST, CEST, +03.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abbreviation([u8; 6]);

impl Abbreviation {
    fn of(text: &str) -> Option<Self> {
        let is_one = (2..=6).contains(&text.len())
            && text.starts_with(|first: char| first.is_ascii_alphabetic() || "+-".contains(first))
            && text.bytes().skip(1).all(|byte| byte.is_ascii_alphanumeric());
        let mut name = [0; 6];
        name.get_mut(..text.len()).filter(|_| is_one)?.copy_from_slice(text.to_ascii_uppercase().as_bytes());
        Some(Self(name))
    }

    const UTC: Self = Self(*b"UTC\0\0\0");

    /// The zone that is meant: this one, or UTC.
    fn zone(self, zone: &TimeZone) -> TimeZone {
        if self == Self::UTC { TimeZone::UTC } else { zone.clone() }
    }

    fn is_of(self, time: Timestamp, zone: &TimeZone) -> bool {
        Self::of(zone.to_offset_info(time).abbreviation()) == Some(self)
    }
}

impl fmt::Display for Abbreviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take_while(|byte| **byte != 0).try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

/// How far a time of day is looked for: a day may lack it.
const DAYS: usize = 3;

impl Moment {
    /// The time it denotes in a recording from `start` to `end`; of times by the clock the first one from `after` on.
    ///
    /// # Errors
    /// There is no such time on this clock.
    fn within(
        self,
        after: Timestamp,
        start: Timestamp,
        end: Timestamp,
        zone: &TimeZone,
    ) -> Result<Timestamp, String> {
        let moved =
            |from: Timestamp, by: SignedDuration| from.checked_add(by).map_err(|error| error.to_string());
        match self {
            Self::At(time) | Self::AtOffset(time, _) => Ok(time),
            Self::LocalIn(local, name) => {
                let zone = &name.zone(zone);
                let found = instants(local, zone)?.into_iter().find(|time| name.is_of(*time, zone));
                found.ok_or_else(|| never(local.to_string().as_str(), name))
            }
            Self::ClockIn(time, name) => {
                let zone = &name.zone(zone);
                let mut day = after.to_zoned(zone.clone()).date();
                for _ in 0..DAYS {
                    let times = instants(day.to_datetime(time), zone)?;
                    let found = times.into_iter().find(|time| *time >= after && name.is_of(*time, zone));
                    if let Some(found) = found {
                        return Ok(found);
                    }
                    day = day.tomorrow().map_err(|error| error.to_string())?;
                }
                Err(never(&time.to_string(), name))
            }
            Self::Local(local) => {
                let times = instants(local, zone)?;
                let found = times.iter().find(|time| **time >= after).or(times.first());
                found.copied().ok_or_else(|| skipped(local, zone))
            }
            Self::Clock(time) => {
                let mut day = after.to_zoned(zone.clone()).date();
                let first = day.to_datetime(time);
                for _ in 0..DAYS {
                    let times = instants(day.to_datetime(time), zone)?;
                    if let Some(found) = times.into_iter().find(|time| *time >= after) {
                        return Ok(found);
                    }
                    day = day.tomorrow().map_err(|error| error.to_string())?;
                }
                Err(skipped(first, zone))
            }
            Self::AfterStart(by) => moved(start, by),
            Self::BeforeEnd(by) => moved(end, -by),
        }
    }

    /// A time in the form the user wrote it: in UTC, with the same offset, or by the local clock, which then has a name.
    fn like(self, time: Timestamp, zone: &TimeZone) -> String {
        match self {
            Self::At(_) => format!("{time:.0}"),
            Self::AtOffset(_, offset) => {
                offset.to_datetime(time).strftime("%Y-%m-%dT%H:%M:%S").to_string() + &iso(offset)
            }
            _ if *zone == TimeZone::UTC => format!("{time:.0}"),
            _ => time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string(),
        }
    }
}

/// Clocks are never called that when they show this.
fn never(time: &str, name: Abbreviation) -> String {
    format!(
        "there is no {time} {name} here then (TZ decides what clocks are called); give it with an offset, as \
         2026-03-14T12:00:00+01:00"
    )
}

/// "+05:30"
fn iso(offset: Offset) -> String {
    let minutes = offset.seconds() / 60;
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
}

/// When clocks in this zone show this: once, twice, or never.
fn instants(local: DateTime, zone: &TimeZone) -> Result<Vec<Timestamp>, String> {
    let offsets = match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => vec![offset],
        AmbiguousOffset::Fold { before, after } => vec![before, after],
        AmbiguousOffset::Gap { .. } => Vec::new(),
    };
    let times = offsets.into_iter().map(|offset| offset.to_timestamp(local));
    times.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Why there is no such time: clocks were put forward over it.
fn skipped(local: DateTime, zone: &TimeZone) -> String {
    let AmbiguousOffset::Gap { before, after } = zone.to_ambiguous_timestamp(local).offset() else {
        return format!("{} is in no recording", local.strftime("%Y-%m-%d %H:%M:%S"));
    };
    let forward = SignedDuration::from_secs((after.seconds() - before.seconds()).into());
    let minutes = forward.as_mins();
    format!(
        "there was no {} on {}, as clocks were put forward by {minutes} min then",
        local.strftime("%H:%M:%S"),
        local.strftime("%Y-%m-%d")
    )
}

/// A span of time. A tick is in it if its end is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// After this; `None`: from the beginning.
    pub from: Option<Timestamp>,
    /// Until this, which is in it; `None`: to the end.
    pub to: Option<Timestamp>,
}

impl Span {
    /// The span these moments denote in a recording with these bounds, if any of the recording is in it.
    ///
    /// # Errors
    /// The message says which moment is wrong, and what the recording covers.
    pub fn of(
        from: Option<Moment>,
        to: Option<Moment>,
        bounds: (Timestamp, Timestamp),
        zone: &TimeZone,
    ) -> Result<Self, String> {
        let span = Self::anywhere(from, to, bounds, zone)?;
        let (start, end) = bounds;
        // A clock that was set back has the end before the start, and says nothing of what is between them.
        let is_straight = start <= end;
        if is_straight && span.from.is_some_and(|from| from >= end && from != start) {
            return Err(format!("--from: nothing was recorded after that; {}", there_is(from, bounds, zone)));
        }
        if is_straight && span.to.is_some_and(|to| to <= start && to != end) {
            return Err(format!("--to: nothing was recorded before that; {}", there_is(to, bounds, zone)));
        }
        Ok(span)
    }

    /// The span these moments denote in a recording with these bounds, whether or not any of the recording is in it.
    ///
    /// # Errors
    /// The message says which moment is wrong, and what the recording covers.
    pub fn anywhere(
        from: Option<Moment>,
        to: Option<Moment>,
        bounds: (Timestamp, Timestamp),
        zone: &TimeZone,
    ) -> Result<Self, String> {
        let (start, end) = bounds;
        let time = |name: &str, moment: Option<Moment>, after: Timestamp| {
            let time = moment.map(|moment| moment.within(after, start, end, zone)).transpose();
            time.map_err(|error| format!("{name}: {error}; {}", there_is(moment, bounds, zone)))
        };
        let begin = time("--from", from, start)?;
        let span = Self { from: begin, to: time("--to", to, begin.unwrap_or(start))? };
        if let (Some((from, asked)), Some((to, also_asked))) = (span.from.zip(from), span.to.zip(to))
            && from >= to
        {
            return Err(format!(
                "--from {} is not before --to {}; {}",
                asked.like(from, zone),
                also_asked.like(to, zone),
                there_is(Some(asked), bounds, zone)
            ));
        }
        Ok(span)
    }

    /// Whether this time is in it.
    #[must_use]
    pub fn contains(&self, time: Timestamp) -> bool {
        self.is_after_from(time) && !self.is_after(time)
    }

    /// Whether it has begun by this time.
    #[must_use]
    pub fn is_after_from(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| time > from)
    }

    /// Whether it has ended by this time.
    #[must_use]
    pub fn is_after(&self, time: Timestamp) -> bool {
        self.to.is_some_and(|to| time > to)
    }
}

/// What there is, in the zone of the question.
fn there_is(asked: Option<Moment>, (start, end): (Timestamp, Timestamp), zone: &TimeZone) -> String {
    let asked = asked.unwrap_or(Moment::AfterStart(SignedDuration::ZERO));
    format!("the recording covers {} to {}", asked.like(start, zone), asked.like(end, zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn within(text: &str) -> Timestamp {
        let (start, end) = (time("2026-03-14T22:00:00Z"), time("2026-03-15T04:00:00Z"));
        text.parse::<Moment>()
            .unwrap()
            .within(start, start, end, &TimeZone::fixed(jiff::tz::offset(1)))
            .unwrap()
    }

    /// New York, as a POSIX string has it.
    fn new_york() -> TimeZone {
        TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap()
    }

    /// From 01:59:50 EDT, ten seconds before clocks go back to 01:00:00 EST.
    const BACK: (&str, &str) = ("2026-11-01T05:59:50Z", "2026-11-01T06:00:15Z");
    /// From 01:59:50 EST, ten seconds before clocks go on to 03:00:00 EDT.
    const FORTH: (&str, &str) = ("2026-03-08T06:59:50Z", "2026-03-08T07:00:15Z");

    fn span((start, end): (&str, &str), from: &str, to: &str) -> Result<Span, String> {
        let moment = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Span::of(moment(from), moment(to), (time(start), time(end)), &new_york())
    }

    #[test]
    fn of_an_hour_that_comes_twice_the_first_that_was_recorded_is_meant() {
        let from = |text: &str| span(BACK, text, "").map(|span| span.from.unwrap().to_string());
        for (text, meant) in [
            ("01:59:58", "2026-11-01T05:59:58Z"),
            ("01:00:05", "2026-11-01T06:00:05Z"),
            ("01:00", "2026-11-01T06:00:00Z"),
            ("2026-11-01 01:00:05", "2026-11-01T06:00:05Z"),
            ("2026-11-01 01:59:55", "2026-11-01T05:59:55Z"),
        ] {
            assert_eq!(from(text).as_deref(), Ok(meant), "{text}");
        }
        // Where both were recorded the first is meant, and of an end the first after the beginning.
        let both = ("2026-11-01T05:00:00Z", "2026-11-01T07:00:00Z");
        let over = span(both, "01:50", "01:10").unwrap();
        assert_eq!(
            (over.from.unwrap(), over.to.unwrap()),
            (time("2026-11-01T05:50:00Z"), time("2026-11-01T06:10:00Z"))
        );
        let error = from("02:30").unwrap_err();
        assert!(error.contains("covers 2026-11-01 01:59:50 EDT to 2026-11-01 01:00:15 EST"), "{error}");
    }

    #[test]
    fn a_time_is_taken_as_a_report_prints_it() {
        let both = ("2026-11-01T05:00:00Z", "2026-11-01T07:00:00Z");
        let from = |text: &str| span(both, text, "").map(|span| span.from.unwrap().to_string());
        for (text, meant) in [
            ("01:30:05 EDT", "2026-11-01T05:30:05Z"),
            ("01:30:05 EST", "2026-11-01T06:30:05Z"),
            ("2026-11-01 01:30:05 EST", "2026-11-01T06:30:05Z"),
            ("2026-11-01 01:30 est", "2026-11-01T06:30:00Z"),
            ("06:30 UTC", "2026-11-01T06:30:00Z"),
            ("2026-11-01 06:30 UTC", "2026-11-01T06:30:00Z"),
        ] {
            assert_eq!(from(text).as_deref(), Ok(meant), "{text}");
        }
        for unknown in ["01:30 CEST", "2026-11-01 01:30 CEST", "2026-11-01 00:30 EST"] {
            let error = from(unknown).unwrap_err();
            assert!(error.contains("there is no") && error.contains("+01:00"), "{unknown}: {error}");
        }
    }

    #[test]
    fn an_hour_that_never_comes_is_told_and_not_moved() {
        for text in ["2026-03-08 02:30", "2026-03-08 02:00"] {
            let error = span(FORTH, text, "").unwrap_err();
            assert!(error.contains("on 2026-03-08, as clocks were put forward by 60 min"), "{error}");
        }
        let days = ("2026-03-08T06:00:00Z", "2026-03-10T06:00:00Z");
        assert_eq!(
            span(days, "02:30", "").unwrap().from,
            Some(time("2026-03-09T06:30:00Z")),
            "the next day has it"
        );
        let error = span(FORTH, "02:30", "").unwrap_err();
        assert!(error.contains("nothing was recorded after that"), "{error}");
        assert!(span(FORTH, "03:00:05", "").is_ok());
    }

    #[test]
    fn an_error_is_in_the_zone_of_the_question() {
        for (text, covers) in [
            ("2027-01-01T00:00:00Z", "2026-11-01T05:59:50Z to 2026-11-01T06:00:15Z"),
            ("2027-01-01T00:00:00+05:30", "2026-11-01T11:29:50+05:30 to 2026-11-01T11:30:15+05:30"),
            ("2027-01-01T00:00:00-03:30", "2026-11-01T02:29:50-03:30 to"),
            ("2027-01-01 00:00", "2026-11-01 01:59:50 EDT to 2026-11-01 01:00:15 EST"),
            ("+1h", "2026-11-01 01:59:50 EDT to"),
        ] {
            let error = span(BACK, text, "").unwrap_err();
            assert!(error.contains(&format!("covers {covers}")), "{text}: {error}");
        }
    }

    #[test]
    fn an_end_by_the_clock_is_the_first_after_the_beginning() {
        let days = ("2026-06-01T12:00:00Z", "2026-06-04T12:00:00Z");
        let found = span(days, "2026-06-03 12:00", "13:00").unwrap();
        assert_eq!(found.to, Some(time("2026-06-03T17:00:00Z")));
        assert_eq!(span(days, "", "13:00").unwrap().to, Some(time("2026-06-01T17:00:00Z")));
    }

    #[test]
    fn a_moment_is_written_in_many_ways() {
        assert_eq!(within("2026-03-14T23:30:00Z"), time("2026-03-14T23:30:00Z"));
        assert_eq!(within("2026-03-14T23:30:00+05:30"), time("2026-03-14T18:00:00Z"));
        for local in ["2026-03-15 00:30", "2026-03-15T00:30:00", "00:30", "00:30:00"] {
            assert_eq!(within(local), time("2026-03-14T23:30:00Z"), "{local}");
        }
        assert_eq!(within("23:30"), time("2026-03-14T22:30:00Z"), "before midnight: the first day's");
        assert_eq!(within("+90s"), time("2026-03-14T22:01:30Z"));
        assert_eq!(within("-1h30m"), time("2026-03-15T02:30:00Z"));
    }

    #[test]
    fn what_is_no_moment_says_what_one_looks_like() {
        for bad in ["", "+", "-", "noon", "+10", "+-5m", "25:00", "2026-02-30 10:00", "12"] {
            let error = bad.parse::<Moment>().expect_err(bad);
            assert!(error.contains("12:00") && error.contains("+10m"), "{error}");
        }
    }

    #[test]
    fn a_span_outside_of_the_recording_says_what_there_is() {
        let bounds = (time("2026-03-14T22:00:00Z"), time("2026-03-15T04:00:00Z"));
        let span = |from: &str, to: &str| {
            let moment = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
            Span::of(moment(from), moment(to), bounds, &TimeZone::UTC)
        };
        assert_eq!(span("", "").unwrap(), Span::default());
        assert!(span("+1h", "-1h").unwrap().contains(time("2026-03-15T00:00:00Z")));
        for (from, to) in [("+7h", ""), ("", "2026-03-14T00:00:00Z"), ("+2h", "+1h"), ("+1h", "+1h")] {
            let error = span(from, to).unwrap_err();
            assert!(error.contains("covers 2026-03-14T22:00:00Z to 2026-03-15T04:00:00Z"), "{error}");
        }
    }
}
