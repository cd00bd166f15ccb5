//! What shapes the reports: which losses make rows, and how they are grouped.
//! Plain data; decided once before watching starts.

use super::by::By;
use super::filter::Filter;
use crate::model::Backend;

/// Everything that shapes the reports.
#[derive(Clone, Debug)]
pub struct StateConfig {
    /// What one row stands for.
    pub by: By,
    /// Which losses make rows and events.
    pub filter: Filter,
    /// Rows a report shows; the others are summed up.
    pub top: usize,
    /// Report each loss.
    pub drop_events: bool,
    /// Report each insert.
    pub insert_events: bool,
    /// Inserts and deletes are counted.
    pub count_flows: bool,
    /// Where the losses come from.
    pub backend: Backend,
}

impl StateConfig {
    /// Totals of all losses by port, without events: what a recording is made from.
    #[must_use]
    pub fn totals(backend: Backend, count_flows: bool) -> Self {
        Self {
            by: By::Port,
            filter: Filter::default(),
            top: 1,
            drop_events: false,
            insert_events: false,
            count_flows,
            backend,
        }
    }

    /// Whether rows are made of events: counters have no addresses and no owners.
    pub(super) fn rows_are_events(&self) -> bool {
        matches!(self.by, By::Flow | By::Src | By::Dst)
            || self.by.needs_owners()
            || self.filter.needs_addresses()
    }

    /// Whether anything is made of single events.
    #[must_use]
    pub fn wants_events(&self) -> bool {
        self.rows_are_events() || self.drop_events || self.insert_events
    }
}
