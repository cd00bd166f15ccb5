//! All runs of a recording on one line of time. CLOCK_MONOTONIC places what happened: a wall clock that is set (by hand, by NTP
//! after a bad RTC) moves nothing on it. Only how long a host was off between two boots is taken from the wall clock, and never
//! less than nothing. A host that sleeps stands still on it, as CLOCK_MONOTONIC does.

use rusqlite::{Connection, OptionalExtension as _};

use super::fault::ReadError;
use super::query::each;
use crate::foreign::Foreign;

/// Where each run is, by its number.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Ordered by run: what is added to its CLOCK_MONOTONIC.
    offsets: Vec<(i64, i64)>,
}

/// When a run began and when its last tick ended, microseconds.
struct Placed {
    run: i64,
    boot_id: Option<Foreign>,
    began: Clocks,
    ended: Clocks,
}

#[derive(Clone, Copy)]
struct Clocks {
    wall_us: i64,
    mono_us: i64,
}

impl Timeline {
    /// Of all runs up to this one.
    pub(super) fn read(connection: &Connection, last: i64) -> Result<Self, ReadError> {
        // Ticks are numbered through all runs.
        let sql = "SELECT id, boot_id, started_us, started_mono_us, first_tick, \
             (SELECT n.first_tick FROM run n WHERE n.id > r.id ORDER BY n.id LIMIT 1) AS next_tick FROM run r WHERE id <= ?1 ORDER BY id";
        let runs = each(connection, sql, [last], |row| {
            let began = Clocks { wall_us: row.get("started_us")?, mono_us: row.get("started_mono_us")? };
            let ticks: (i64, Option<i64>) = (row.get("first_tick")?, row.get("next_tick")?);
            Ok((Placed { run: row.get("id")?, boot_id: row.get("boot_id")?, began, ended: began }, ticks))
        })?;
        let sql = "SELECT wall_us, mono_us FROM tick WHERE id >= ?1 AND id < ?2 AND +run = ?3 ORDER BY id DESC LIMIT 1";
        let mut statement = connection.prepare_cached(sql)?;
        let mut placed = Vec::with_capacity(runs.len());
        for (mut one, (first, next)) in runs {
            let ticks = [first, next.unwrap_or(i64::MAX), one.run];
            let clocks = |row: &rusqlite::Row<'_>| {
                Ok(Clocks { wall_us: row.get("wall_us")?, mono_us: row.get("mono_us")? })
            };
            if let Some(ended) = statement.query_row(ticks, clocks).optional()? {
                one.ended = ended;
            }
            placed.push(one);
        }
        Ok(Self::of(&placed))
    }

    fn of(runs: &[Placed]) -> Self {
        let mut offsets: Vec<(i64, i64)> = Vec::with_capacity(runs.len());
        let mut before: Option<(&Placed, i64)> = None;
        for one in runs {
            let offset = before.map_or(0, |(before, offset)| {
                let is_same_boot = before.boot_id.is_some() && before.boot_id == one.boot_id;
                let off_us = if is_same_boot {
                    one.began.mono_us.saturating_sub(before.ended.mono_us)
                } else {
                    one.began.wall_us.saturating_sub(before.ended.wall_us)
                };
                let ended = offset.saturating_add(before.ended.mono_us.max(before.began.mono_us));
                ended.saturating_add(off_us.max(0)).saturating_sub(one.began.mono_us)
            });
            offsets.push((one.run, offset));
            before = Some((one, offset));
        }
        Self { offsets }
    }

    /// What is added to CLOCK_MONOTONIC of this run.
    pub(super) fn offset_us(&self, run: i64) -> Option<i64> {
        let index = self.offsets.binary_search_by_key(&run, |(run, _)| *run).ok()?;
        Some(self.offsets[index].1)
    }

    /// Where a moment of a run is, microseconds. The numbers of two moments tell which came first, and how far apart they are.
    #[must_use]
    pub fn place_us(&self, run: i64, mono_us: i64) -> i64 {
        self.offset_us(run).unwrap_or(0).saturating_add(mono_us)
    }
}

/// Seconds from one place on a timeline to another.
#[must_use]
pub fn seconds(from_us: i64, to_us: i64) -> f64 {
    to_us.saturating_sub(from_us) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY_US: i64 = 86_400_000_000;

    fn run(number: i64, boot: &str, began: (i64, i64), ended: (i64, i64)) -> Placed {
        let clocks = |(wall_us, mono_us)| Clocks { wall_us, mono_us };
        let boot_id = (!boot.is_empty()).then(|| boot.into());
        Placed { run: number, boot_id, began: clocks(began), ended: clocks(ended) }
    }

    #[test]
    fn within_a_boot_the_wall_clock_says_nothing() {
        let set = Timeline::of(&[
            run(3, "a", (100 * DAY_US, 5), (500 * DAY_US, 1_005)),
            run(4, "a", (90 * DAY_US, 1_025), (90 * DAY_US, 2_000)),
        ]);
        assert_eq!(set.place_us(4, 1_500) - set.place_us(3, 1_000), 500);
    }

    #[test]
    fn between_boots_it_says_how_long_the_host_was_off_and_never_less_than_nothing() {
        for (wall_us, off_us) in [(1_000 + 70, 70), (1_000 - 400 * DAY_US, 0)] {
            for (boot, next) in [("a", "b"), ("", "")] {
                let two = Timeline::of(&[
                    run(1, boot, (1, 900), (1_000, 1_900)),
                    run(2, next, (wall_us, 30), (wall_us, 40)),
                ]);
                assert_eq!(two.place_us(2, 30) - two.place_us(1, 1_900), off_us);
            }
        }
    }

    proptest! {
        #[test]
        fn runs_come_one_after_the_other_whatever_a_file_says(
            runs in proptest::collection::vec((any::<[i64; 4]>(), 0..3u8), 1..20),
        ) {
            // Any numbers: damage must not end the program.
            let placed: Vec<Placed> = (1..).zip(&runs).map(|(number, ([a, b, c, d], boot))| {
                run(number, ["", "a", "b"][usize::from(*boot)], (*a, *b), (*c, *d))
            }).collect();
            Timeline::of(&placed);
            // Numbers that a kernel can show, and then each run begins where the one before it ended or later.
            let small = |number: i64| number.rem_euclid(1 << 50);
            let placed: Vec<Placed> = placed.into_iter().map(|one| {
                let began = Clocks { wall_us: small(one.began.wall_us), mono_us: small(one.began.mono_us) };
                let mono_us = began.mono_us + small(one.ended.mono_us) % DAY_US;
                Placed { began, ended: Clocks { wall_us: small(one.ended.wall_us), mono_us }, ..one }
            }).collect();
            let line = Timeline::of(&placed);
            for pair in placed.windows(2) {
                let ended = line.place_us(pair[0].run, pair[0].ended.mono_us);
                prop_assert!(line.place_us(pair[1].run, pair[1].began.mono_us) >= ended);
            }
        }
    }
}
