//! How the postmortem writes times: only as much of them as tells the moments of its span apart.
//! In one zone, which is said where it isn't clear.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// How times are written.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    zone: TimeZone,
    with_date: bool,
    /// Clocks were put forward or back: what they show is ambiguous without the name of the offset.
    with_zone: bool,
}

impl Clock {
    /// With dates, if the span has more than one, and with the names of offsets likewise.
    pub fn of_span(zone: &TimeZone, span: Option<(Timestamp, Timestamp)>) -> Self {
        let date = |time: Timestamp| time.to_zoned(zone.clone()).date();
        let changes = |(from, to): (Timestamp, Timestamp)| {
            let mut changes = zone.following(from).take_while(|change| change.timestamp() <= to);
            changes.any(|change| change.offset() != zone.to_offset(from))
        };
        Self {
            zone: zone.clone(),
            with_date: span.is_some_and(|(from, to)| date(from) != date(to)),
            with_zone: span.is_some_and(changes),
        }
    }

    pub fn time(&self, time: Timestamp) -> String {
        self.shown(time, "%H:%M:%S", self.with_zone)
    }

    /// The minute, where seconds say too much.
    pub fn minute(&self, time: Timestamp) -> String {
        self.shown(time, "%H:%M", self.with_zone)
    }

    /// With the zone's name, however clear it is.
    pub fn time_and_zone(&self, time: Timestamp) -> String {
        self.shown(time, "%H:%M:%S", true)
    }

    /// The same of a minute.
    pub fn minute_and_zone(&self, time: Timestamp) -> String {
        self.shown(time, "%H:%M", true)
    }

    fn shown(&self, time: Timestamp, format: &str, with_zone: bool) -> String {
        let date = if self.with_date { "%Y-%m-%d " } else { "" };
        let zone = if with_zone { " %Z" } else { "" };
        time.to_zoned(self.zone.clone()).strftime(&format!("{date}{format}{zone}")).to_string()
    }

    /// What the zone is called then.
    pub fn zone(&self, time: Timestamp) -> String {
        time.to_zoned(self.zone.clone()).strftime("%Z").to_string()
    }

    /// How far its clocks are ahead of UTC then, seconds.
    pub fn offset_s(&self, time: Timestamp) -> i64 {
        self.zone.to_offset(time).seconds().into()
    }

    pub fn full(&self, time: Timestamp) -> String {
        time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
    }
}
