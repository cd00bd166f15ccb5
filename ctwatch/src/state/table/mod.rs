//! Who fills a table: entries stream in from a dump, rows by any one or two keys come out.
//! Pure, and of bounded size: what it holds depends on how many rows there can be, never on how many entries.

mod cells;
mod key;
mod rows;
mod spread;

pub use key::{Dimension, Keys};
pub use rows::{ScanContext, TableResult, combine};

use std::net::IpAddr;

use super::filter::{Filter, Verdict};
use super::key::Facts;
use crate::model::{Direction, EntryFields, Locals, NetnsId, TableEntry};
use cells::{Cells, Counted, Sum};
use key::Wide;

/// Distinct rows counted exactly when their keys are small: all ports of two protocols. From then on Space-Saving.
const NARROW: usize = 1 << 17;
/// The same for keys with addresses.
const WIDE: usize = 1 << 15;

/// What shapes a census.
#[derive(Clone, Debug)]
pub struct BreakdownConfig {
    /// What one row stands for.
    pub by: Keys,
    /// Which entries make rows; its causes and netns mean nothing here.
    pub filter: Filter,
    /// Rows a report shows; the others are summed up.
    pub top: usize,
}

impl BreakdownConfig {
    /// Which attributes of an entry are needed.
    #[must_use]
    pub fn wanted(&self) -> EntryFields {
        let has = |dimension| self.by.has(dimension);
        let filtered = self.filter.needs_addresses() || self.filter.loopback.is_some();
        EntryFields {
            addresses: filtered || has(Dimension::Src) || has(Dimension::Dst) || has(Dimension::Direction),
            marks: has(Dimension::Zone) || has(Dimension::Mark),
        }
    }

    /// Whether the netns's own addresses are needed.
    #[must_use]
    pub fn needs_locals(&self) -> bool {
        self.by.has(Dimension::Direction) || self.filter.loopback.is_some()
    }

    /// Addresses need more words.
    fn is_wide(&self) -> bool {
        self.by.has(Dimension::Src) || self.by.has(Dimension::Dst)
    }
}

/// The rows of one netns's table while its entries come by.
pub struct Breakdown<'a> {
    settings: &'a BreakdownConfig,
    netns: NetnsId,
    locals: Locals,
    filters: bool,
    now_ns: u64,
    cells: AnyCells,
    matched: Sum,
    /// Of all entries, whatever the filters say: those that early_drop leaves alone.
    unevictable: u64,
}

enum AnyCells {
    Narrow(Cells<u64>),
    Wide(Cells<Wide>),
}

impl<'a> Breakdown<'a> {
    /// Nothing counted yet. `now_ns` is the time by which ages are told, nanoseconds since 1970.
    #[must_use]
    pub fn new(settings: &'a BreakdownConfig, netns: NetnsId, locals: Locals, now_ns: u64) -> Self {
        let cells = if settings.is_wide() {
            AnyCells::Wide(Cells::new(WIDE))
        } else {
            AnyCells::Narrow(Cells::new(NARROW))
        };
        let filters = !settings.filter.is_by_cause_only();
        Self { settings, netns, locals, filters, now_ns, cells, matched: Sum::default(), unevictable: 0 }
    }

    /// Counts an entry.
    #[inline]
    pub fn add(&mut self, entry: &TableEntry) {
        self.unevictable += u64::from(entry.unevictable);
        let direction =
            if self.settings.needs_locals() { self.locals.direction(entry) } else { Direction::Forwarded };
        if self.filters && !self.passes(entry, direction) {
            return;
        }
        self.matched.add(entry);
        let age = (entry.started_ns != 0).then(|| {
            (self.now_ns.saturating_sub(entry.started_ns) / 1_000_000_000).min(u32::MAX.into()) as u32
        });
        let narrow = self.settings.by.narrow(entry, direction);
        match &mut self.cells {
            AnyCells::Narrow(cells) => cells.add(narrow, entry, age),
            AnyCells::Wide(cells) => cells.add(self.settings.by.wide(entry, narrow), entry, age),
        }
    }

    fn passes(&self, entry: &TableEntry, direction: Direction) -> bool {
        let facts = Facts {
            netns: self.netns,
            proto: Some(entry.proto),
            port: Some(entry.port),
            loopback: Some(direction == Direction::Loopback),
            zone: None,
        };
        let addresses = (IpAddr::from(entry.src), IpAddr::from(entry.dst));
        self.settings.filter.judge(&facts, Some(addresses)) == Verdict::Pass
    }

    /// The largest rows, the sum of all that matched, and if not every key could be counted, how many entries one that has
    /// no row can have at most.
    fn finish(self) -> (Vec<Counted<Wide>>, Sum, Option<u64>) {
        let top = self.settings.top;
        let (rows, others) = match self.cells {
            AnyCells::Wide(cells) => cells.finish(top),
            AnyCells::Narrow(cells) => {
                let (rows, others) = cells.finish(top);
                (rows.into_iter().map(|row| row.with_key(Wide::narrow(row.key))).collect(), others)
            }
        };
        (rows, self.matched, others)
    }
}

#[cfg(test)]
mod tests;
