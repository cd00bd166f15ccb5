//! Entries summed up by protocol and service port as they stream by.
//! Its size depends on how many ports there are, never on how many entries.

use std::collections::HashMap;

use super::recent::Recent;
use crate::model::{CensusKey, PortDetail, Protocol, StateCounts, TableEntry};

/// Keys that get a detail of their own; the others share one.
const DETAILED: usize = 256;
/// From so many entries on a key is worth it.
const WORTH_A_DETAIL: u32 = 16;
/// No index yet.
const NONE: u32 = 0;

/// What was counted so far.
pub(crate) struct Tally {
    /// Per protocol: the place of each port in `keys`, plus 1. Untouched pages cost nothing.
    index: Vec<Vec<u32>>,
    keys: Vec<Counted>,
    details: Vec<PortDetail>,
    rest: HashMap<Protocol, PortDetail>,
    recent: Recent,
    pub entries: u64,
    pub duplicates: u64,
}

struct Counted {
    key: CensusKey,
    /// Place in `details`, plus 1.
    detail: u32,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            index: vec![Vec::new(); 1 << 8],
            keys: Vec::new(),
            details: Vec::new(),
            rest: HashMap::new(),
            recent: Recent::new(),
            entries: 0,
            duplicates: 0,
        }
    }

    pub fn add(&mut self, entry: &TableEntry) {
        if self.recent.repeats(entry) {
            self.duplicates += 1;
            return;
        }
        self.entries += 1;
        let ports = &mut self.index[usize::from(entry.proto.0)];
        if ports.is_empty() {
            *ports = vec![NONE; 1 << 16];
        }
        let place = &mut ports[usize::from(entry.port)];
        if *place == NONE {
            let key =
                CensusKey { proto: entry.proto, port: entry.port, entries: 0, assured: 0, time_wait: 0 };
            self.keys.push(Counted { key, detail: NONE });
            *place = self.keys.len() as u32;
        }
        let counted = &mut self.keys[*place as usize - 1];
        counted.key.entries += 1;
        counted.key.assured += u32::from(entry.assured);
        counted.key.time_wait += u32::from(entry.tcp_state == StateCounts::TIME_WAIT);
        if counted.detail == NONE && counted.key.entries >= WORTH_A_DETAIL && self.details.len() < DETAILED {
            self.details.push(PortDetail::new(entry.proto, Some(entry.port)));
            counted.detail = self.details.len() as u32;
        }
        let detail = match counted.detail {
            NONE => self.rest.entry(entry.proto).or_insert_with(|| PortDetail::new(entry.proto, None)),
            place => &mut self.details[place as usize - 1],
        };
        detail.add(entry.tcp_state, entry.assured, entry.left);
    }

    /// Keys, and details: those of single ports first, then what is left of each protocol.
    pub fn finish(self) -> (Vec<CensusKey>, Vec<PortDetail>) {
        let mut details = self.details;
        details.extend(self.rest.into_values());
        (self.keys.into_iter().map(|counted| counted.key).collect(), details)
    }
}
