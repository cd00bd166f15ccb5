//! `--from` and `--to`: moments as people write them, and the span of a recording they denote.
//! A tick belongs to the span in which it ends, so that adjacent spans add up.

use std::str::FromStr;

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A moment as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// With a zone: 2026-03-14T12:00:00Z
    At(Timestamp),
    /// By the local clock: 2026-03-14 12:00
    Local(DateTime),
    /// The first such time in the recording by the local clock: 12:00
    Clock(Time),
    /// +10m: this long after the recording begins.
    AfterStart(SignedDuration),
    /// -10m: this long before it ends.
    BeforeEnd(SignedDuration),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = "give 2026-03-14T12:00:00Z, a local time like '2026-03-14 12:00' or 12:00, +10m from the start of the \
                    recording, or -10m from its end";
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
        let date_or_time = || {
            let local = text.parse().ok().filter(|_| text.contains('-')).map(Self::Local);
            local.or_else(|| text.parse().ok().filter(|_| text.contains(':')).map(Self::Clock))
        };
        text.parse().ok().map(Self::At).or_else(date_or_time).ok_or_else(|| good.to_owned())
    }
}

impl Moment {
    /// The time it denotes in a recording from `start` to `end`.
    ///
    /// # Errors
    /// There is no such time on this clock.
    pub fn within(self, start: Timestamp, end: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
        let local = |local: DateTime| {
            local.to_zoned(zone.clone()).map(|zoned| zoned.timestamp()).map_err(|error| error.to_string())
        };
        let moved =
            |from: Timestamp, by: SignedDuration| from.checked_add(by).map_err(|error| error.to_string());
        match self {
            Self::At(time) => Ok(time),
            Self::Local(time) => local(time),
            Self::Clock(time) => {
                let day = start.to_zoned(zone.clone()).date();
                let first = local(day.to_datetime(time))?;
                if first >= start {
                    return Ok(first);
                }
                local(day.tomorrow().map_err(|error| error.to_string())?.to_datetime(time))
            }
            Self::AfterStart(by) => moved(start, by),
            Self::BeforeEnd(by) => moved(end, -by),
        }
    }
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
        let there_is = there_is(bounds);
        // A clock that was set back has the end before the start, and says nothing of what is between them.
        let is_straight = start <= end;
        if is_straight && span.from.is_some_and(|from| from >= end && from != start) {
            return Err(format!("--from: nothing was recorded after that; {there_is}"));
        }
        if is_straight && span.to.is_some_and(|to| to <= start && to != end) {
            return Err(format!("--to: nothing was recorded before that; {there_is}"));
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
        (start, end): (Timestamp, Timestamp),
        zone: &TimeZone,
    ) -> Result<Self, String> {
        let there_is = there_is((start, end));
        let time = |name: &str, moment: Option<Moment>| {
            let time = moment.map(|moment| moment.within(start, end, zone)).transpose();
            time.map_err(|error| format!("{name}: {error}; {there_is}"))
        };
        let span = Self { from: time("--from", from)?, to: time("--to", to)? };
        if let (Some(from), Some(to)) = (span.from, span.to)
            && from >= to
        {
            return Err(format!("--from {from:.0} is not before --to {to:.0}; {there_is}"));
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

fn there_is((start, end): (Timestamp, Timestamp)) -> String {
    format!("the recording covers {start:.0} to {end:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn within(text: &str) -> Timestamp {
        let (start, end) = (time("2026-03-14T22:00:00Z"), time("2026-03-15T04:00:00Z"));
        text.parse::<Moment>().unwrap().within(start, end, &TimeZone::fixed(jiff::tz::offset(1))).unwrap()
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
