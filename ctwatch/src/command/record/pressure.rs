//! Which tables to list while they are in trouble: each that loses something or is half full, on whatever backend.
//! Pure. A listing costs time and space, so while trouble lasts they come more and more seldom.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::contract::{TableStatus, Tick};
use crate::model::NetnsId;

/// Between the first two listings of a table in trouble; twice as long before each that follows.
const PAUSE: Duration = Duration::from_secs(300);
/// The longest it becomes.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// Tables in trouble at once that are listed: a file keeps about twice as many listings of them.
const MOST: usize = 64;
/// Trouble is over when it has not been seen for so long.
const CALM: Duration = Duration::from_secs(600);

/// The trouble of one table.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    listed: Instant,
    seen: Instant,
    pause: Duration,
    /// It has lost something since it was listed for being full only.
    loses: bool,
}

/// All tables in trouble.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    tables: HashMap<NetnsId, Trouble>,
}

impl Pressure {
    /// The tables that are to be listed now.
    pub fn due(&mut self, tick: &Tick, now: Instant) -> Vec<NetnsId> {
        self.tables.retain(|_, trouble| now - trouble.seen < CALM);
        let there = tick.tables.iter().filter(|table| !table.gone && !table.not_readable);
        let in_trouble = there.filter_map(|table| {
            let loses = table.packets_lost + table.entries_lost > 0;
            let is_filling = table.fill.is_some_and(|fill| fill >= TableStatus::FILLING);
            (loses || is_filling).then_some((table.netns, loses))
        });
        in_trouble.filter(|(netns, loses)| self.is_due(*netns, *loses, now)).map(|(netns, _)| netns).collect()
    }

    fn is_due(&mut self, netns: NetnsId, loses: bool, now: Instant) -> bool {
        let has_room = self.tables.len() < MOST;
        let Some(trouble) = self.tables.get_mut(&netns) else {
            if !has_room {
                return false;
            }
            self.tables.insert(netns, Trouble { listed: now, seen: now, pause: PAUSE, loses });
            return true;
        };
        trouble.seen = now;
        let begins_to_lose = loses && !trouble.loses;
        trouble.loses |= loses;
        if !begins_to_lose && now - trouble.listed < trouble.pause {
            return false;
        }
        if !begins_to_lose {
            trouble.pause = (trouble.pause * 2).min(LONGEST);
        }
        trouble.listed = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{table_status, tick_of_tables};

    fn tick(tables: &[(u32, Option<f64>, u64)]) -> Tick {
        let table = |(id, fill, packets_lost): &(u32, Option<f64>, u64)| TableStatus {
            count: Some(1),
            max: Some(2),
            fill: *fill,
            packets_lost: *packets_lost,
            ..table_status(NetnsId::from_packed(*id))
        };
        tick_of_tables(tables.iter().map(table).collect())
    }

    /// The seconds in which table 1 was due, out of so many.
    fn due(seconds: u64, status: impl Fn(u64) -> (Option<f64>, u64)) -> Vec<u64> {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let is_due = |second: &u64| {
            let (fill, lost) = status(*second);
            !pressure.due(&tick(&[(1, fill, lost)]), start + Duration::from_secs(*second)).is_empty()
        };
        (0..seconds).filter(is_due).collect()
    }

    #[test]
    fn each_table_that_loses_or_is_half_full_is_due_and_no_other() {
        let mut pressure = Pressure::default();
        let tables = [(1, Some(0.49), 0), (2, Some(0.5), 0), (3, None, 1), (4, None, 0), (5, Some(0.1), 7)];
        let now = Instant::now();
        let numbers = |due: Vec<NetnsId>| due.iter().map(|id| id.inode()).collect::<Vec<_>>();
        assert_eq!(numbers(pressure.due(&tick(&tables), now)), [2, 3, 5]);
        assert_eq!(numbers(pressure.due(&tick(&tables), now + Duration::from_secs(1))), [0; 0]);
    }

    #[test]
    fn of_thousands_some_are_listed() {
        let tables: Vec<_> = (1..5_000).map(|id| (id, Some(1.0), 1)).collect();
        assert_eq!(Pressure::default().due(&tick(&tables), Instant::now()).len(), MOST);
    }

    #[test]
    fn what_lasts_is_listed_more_and_more_seldom() {
        let lasting = due(86_400, |_| (Some(0.9), 0));
        assert_eq!(&lasting[..5], [0, 300, 900, 2_100, 4_500]);
        assert!(lasting.len() < 12, "{lasting:?}");
        let calm_between =
            due(3_000, |second| if (100..1_000).contains(&second) { (Some(0.1), 0) } else { (Some(0.9), 0) });
        assert_eq!(&calm_between[..2], [0, 1_000], "another trouble begins anew");
    }

    #[test]
    fn the_first_loss_is_a_reason_of_its_own() {
        assert_eq!(due(100, |second| (Some(0.9), u64::from(second >= 50))), [0, 50]);
        assert_eq!(due(100, |second| (Some(0.9), second % 2)), [0, 1]);
    }
}
