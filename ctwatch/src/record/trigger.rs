//! What counts as an incident: conditions on a tick, and how long an incident lasts. Pure.
//! A condition that comes and goes within the time kept afterwards is a single incident.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Serialize;

use crate::contract::{TableStatus, Tick};
use crate::foreign::Foreign;
use crate::model::NetnsId;
use crate::text::did_you_mean;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Fill of the fullest table.
    Fill,
    /// Packets and entries lost in a tick.
    Drops,
    /// Seconds until the first table is full.
    FullIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    const fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

/// "fill>=90%", "drops>0", "full_in<60s"
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    quantity: Quantity,
    comparison: Comparison,
    threshold: f64,
    text: String,
}

/// What was measured when a condition was checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The table concerned: the fullest one, or the first to be full.
    pub netns: NetnsId,
    /// What it is called.
    pub name: Option<Foreign>,
    /// Entries.
    pub count: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// Its fill.
    pub fill: Option<f64>,
    /// Seconds until it is full.
    pub full_in_s: Option<f64>,
    /// Packets lost in the tick, in all tables.
    pub packets_lost: u64,
    /// Entries evicted early in the tick, in all tables.
    pub entries_lost: u64,
}

const GOOD: &str = "give a condition like fill>=90%, drops>0 or full_in<60s";

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text: String = text.split_whitespace().collect::<String>().to_lowercase();
        let at = text.find(['<', '>']).ok_or(GOOD)?;
        let (name, rest) = text.split_at(at);
        let (comparison, value) = if let Some(value) = rest.strip_prefix(">=") {
            (Comparison::GreaterOrEqual, value)
        } else if let Some(value) = rest.strip_prefix("<=") {
            (Comparison::LessOrEqual, value)
        } else if let Some(value) = rest.strip_prefix('>') {
            (Comparison::Greater, value)
        } else {
            (Comparison::Less, rest.strip_prefix('<').ok_or(GOOD)?)
        };
        let number =
            |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
        let plain = name.replace('-', "_");
        let (quantity, threshold) = match plain.as_str() {
            "fill" => {
                let percent = value.strip_suffix('%').and_then(number).map(|percent| percent / 100.0);
                (Quantity::Fill, percent.or_else(|| number(value).filter(|part| *part <= 1.0)))
            }
            "drops" | "drop" | "losses" => (Quantity::Drops, number(value)),
            "full_in" => {
                let time = SignedDuration::from_str(value).ok().map(|time| time.as_secs_f64());
                (Quantity::FullIn, time.filter(|time| *time > 0.0))
            }
            _ => {
                let near = did_you_mean(&plain, ["fill", "drops", "full_in"]);
                return Err(format!("there is no condition on `{name}`; {GOOD}{near}"));
            }
        };
        let threshold = threshold.ok_or_else(|| {
            let near = match quantity {
                Quantity::Fill if number(value).is_some() => {
                    format!("; did you mean {name}{}{value}%?", comparison.sign())
                }
                Quantity::FullIn if number(value).is_some() => {
                    format!("; did you mean {name}{}{value}s?", comparison.sign())
                }
                _ => String::new(),
            };
            format!("`{value}` is not a valid threshold for {name}; {GOOD}{near}")
        })?;
        if comparison == Comparison::Less && threshold <= 0.0 {
            return Err(format!("`{text}` can't fire: nothing is less than zero; {GOOD}"));
        }
        Ok(Self { quantity, comparison, threshold, text })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    /// What was measured, if the condition holds in this tick. A condition on something unknown doesn't hold.
    #[must_use]
    pub fn holds(&self, tick: &Tick) -> Option<Measured> {
        let there = || tick.tables.iter().filter(|table| !table.gone);
        let packets: u64 = tick.tables.iter().map(|table| table.packets_lost).sum();
        let entries: u64 = tick.tables.iter().map(|table| table.entries_lost).sum();
        let by = |a: f64, b: f64| a.total_cmp(&b);
        let fullest = there().max_by(|a, b| by(a.fill.unwrap_or(-1.0), b.fill.unwrap_or(-1.0)));
        let (table, value) = match self.quantity {
            Quantity::Fill => {
                let table = fullest?;
                (table, table.fill?)
            }
            Quantity::Drops => (there().max_by_key(|table| table.packets_lost + table.entries_lost)?, {
                (packets + entries) as f64
            }),
            Quantity::FullIn => {
                let table = there()
                    .filter(|table| table.full_in_s.is_some())
                    .min_by(|a, b| by(a.full_in_s.unwrap_or(0.0), b.full_in_s.unwrap_or(0.0)))?;
                (table, table.full_in_s?)
            }
        };
        let holds = match self.comparison {
            Comparison::Less => value < self.threshold,
            Comparison::LessOrEqual => value <= self.threshold,
            Comparison::Greater => value > self.threshold,
            Comparison::GreaterOrEqual => value >= self.threshold,
        };
        holds.then(|| measured(table, packets, entries))
    }

    /// Whether it can only hold of a table that has a limit.
    #[must_use]
    pub fn needs_limit(&self) -> bool {
        self.quantity != Quantity::Drops
    }

    /// Whether it can only hold if flows are counted.
    #[must_use]
    pub fn needs_flows(&self) -> bool {
        self.quantity == Quantity::FullIn
    }
}

fn measured(table: &TableStatus, packets_lost: u64, entries_lost: u64) -> Measured {
    let TableStatus { netns, name, count, max, fill, full_in_s, .. } = table;
    Measured {
        netns: *netns,
        name: name.clone(),
        count: *count,
        max: *max,
        fill: *fill,
        full_in_s: *full_in_s,
        packets_lost,
        entries_lost,
    }
}

/// A condition being watched.
#[derive(Clone, Debug)]
pub struct Trigger {
    condition: Condition,
    after: Duration,
    /// When it last held, if that is within the time kept afterwards.
    open: Option<f64>,
}

/// What a tick means for a trigger.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// Nothing new.
    Nothing,
    /// An incident begins.
    Fired(Measured),
    /// The incident continues: its condition holds.
    Holds,
    /// The incident is over, and so is the time kept afterwards.
    Over,
}

impl Trigger {
    /// A trigger that has not fired.
    #[must_use]
    pub fn new(condition: Condition, after: Duration) -> Self {
        Self { condition, after, open: None }
    }

    /// Its condition.
    #[must_use]
    pub const fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Checks a tick that ended at this time, in seconds of any monotonic clock.
    pub fn check(&mut self, tick: &Tick, at: f64) -> Turn {
        match (self.condition.holds(tick), self.open) {
            (Some(measured), None) => {
                self.open = Some(at);
                Turn::Fired(measured)
            }
            (Some(_), Some(_)) => {
                self.open = Some(at);
                Turn::Holds
            }
            (None, Some(last)) if at - last >= self.after.as_secs_f64() => {
                self.open = None;
                Turn::Over
            }
            (None, _) => Turn::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{table_status, tick_of_tables};

    fn tick(fill: f64, lost: u64, full_in_s: Option<f64>) -> Tick {
        let table = TableStatus {
            name: Some("host".into()),
            count: Some(90),
            max: Some(100),
            fill: Some(fill),
            full_in_s,
            packets_lost: lost,
            ..table_status(NetnsId::from_packed(1))
        };
        let other = TableStatus {
            netns: NetnsId::from_packed(2),
            fill: None,
            full_in_s: None,
            packets_lost: 0,
            ..table.clone()
        };
        tick_of_tables(vec![other, table])
    }

    fn holds(condition: &str, tick: &Tick) -> bool {
        condition.parse::<Condition>().unwrap().holds(tick).is_some()
    }

    #[test]
    fn conditions_are_read_as_they_are_meant() {
        assert!(!holds("full_in<60s", &tick(0.1, 0, None)), "what is unknown doesn't hold");
        let tick = tick(0.9, 1, Some(59.9));
        for condition in
            ["fill>=90%", "fill >= 0.9", "fill>89.9%", "drops>0", "drops<=1", "full_in<60s", "full_in<1m"]
        {
            assert!(holds(condition, &tick), "{condition}");
        }
        for condition in ["fill>90%", "fill<90%", "drops>1", "full_in<59s", "full_in>1h"] {
            assert!(!holds(condition, &tick), "{condition}");
        }
    }

    #[test]
    fn what_is_no_condition_is_told_what_one_looks_like() {
        for bad in [
            "",
            "fill",
            "fill=90%",
            "fill>90",
            "fill>x",
            "load>1",
            "drops>-1",
            "full_in<60",
            "full_in<0s",
            "drops>",
            "drops<0",
            "fill<0%",
        ] {
            let error = bad.parse::<Condition>().unwrap_err();
            assert!(error.contains("fill>=90%"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_condition_is_taken_as_people_write_it_and_near_misses_are_told() {
        for (text, reads) in
            [("FILL >= 90 %", "fill>=90%"), ("Drop > 0", "drop>0"), ("full-in<1m", "full-in<1m")]
        {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), reads);
        }
        for (text, said) in [
            ("fil>90%", "did you mean `fill`?"),
            ("fill>=90", "did you mean fill>=90%?"),
            ("full_in<60", "did you mean full_in<60s?"),
            ("drops<0", "can't fire"),
        ] {
            let error = text.parse::<Condition>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn what_comes_and_goes_is_one_incident() {
        let mut trigger = Trigger::new("drops>0".parse().unwrap(), Duration::from_secs(3));
        let turns: Vec<Turn> = [0, 1, 0, 1, 0, 0, 0, 0, 1]
            .into_iter()
            .enumerate()
            .map(|(at, lost)| trigger.check(&tick(0.5, lost, None), at as f64))
            .collect();
        assert!(matches!(&turns[1], Turn::Fired(measured) if measured.packets_lost == 1), "{turns:?}");
        assert_eq!(turns[3], Turn::Holds);
        assert_eq!(turns[6], Turn::Over);
        assert!(matches!(turns[8], Turn::Fired(_)));
        assert_eq!(turns.iter().filter(|turn| **turn == Turn::Nothing).count(), 5);
    }
}
