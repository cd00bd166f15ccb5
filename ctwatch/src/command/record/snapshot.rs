//! What a recording has besides its ticks: a table read entry by entry, and the machine. Read beside the watch.
//! A table that can't be read is no reason to stop: the others still count.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant as Clock;

use anyhow::{Context as _, Result};

use crate::conntrack::census;
use crate::kernel::roots::Roots;
use crate::listing::Listing;
use crate::machine::{self, Host};
use crate::model::{NetnsId, WallMono};
use crate::netns::{self, Netns};
use crate::record::rows::{MachineSnapshot, SnapshotReason, StoredListing};

/// Arrivals are read from the timeouts that began anew within so many seconds.
const LOOK_S: u32 = 15;

/// What was found.
pub(super) struct Snapshot {
    pub listing: Result<StoredListing>,
    /// None where only the table is not as it was.
    pub facts: Option<MachineSnapshot>,
}

/// SnapshotQueue, one at a time.
pub(super) struct SnapshotQueue {
    roots: Roots,
    take_snapshot: fn(&Host, NetnsId, SnapshotReason) -> Snapshot,
    sender: Sender<Snapshot>,
    receiver: Receiver<Snapshot>,
    /// The one that goes on, and those that wait for it.
    queue: VecDeque<(NetnsId, SnapshotReason)>,
    /// Whether the first of them goes on: no thread may be to be had for it yet.
    is_begun: bool,
}

impl SnapshotQueue {
    pub fn new(roots: &Roots) -> Self {
        let (sender, receiver) = channel();
        Self {
            roots: roots.clone(),
            take_snapshot,
            sender,
            receiver,
            queue: VecDeque::new(),
            is_begun: false,
        }
    }

    /// SnapshotQueue at this netns, unless that goes on or waits: what it finds is as good. SnapshotQueue at others come first.
    pub fn start(&mut self, id: NetnsId, reason: SnapshotReason) -> Result<()> {
        // One that goes on for a table alone doesn't look at the machine.
        let is_enough = |has: SnapshotReason| has == reason || has != SnapshotReason::Changed;
        let mut same = self.queue.iter_mut().enumerate().filter(|(_, (other, _))| *other == id);
        match same.next_back() {
            Some((_, (_, has))) if is_enough(*has) || reason == SnapshotReason::Changed => return Ok(()),
            Some((1.., (_, has))) => {
                *has = reason;
                return Ok(());
            }
            Some((0, _)) | None => {}
        }
        self.queue.push_back((id, reason));
        if self.queue.len() == 1 { self.begin() } else { Ok(()) }
    }

    fn begin(&mut self) -> Result<()> {
        self.is_begun = false;
        let Some(&(id, reason)) = self.queue.front() else { return Ok(()) };
        let (host, sender) = (Host { roots: self.roots.clone(), ..Host::default() }, self.sender.clone());
        let take_snapshot = self.take_snapshot;
        std::thread::Builder::new()
            .name("snapshot".to_owned())
            .stack_size(1 << 20)
            .spawn(move || drop(sender.send(take_snapshot(&host, id, reason))))
            .context("starting a thread that reads the table, tried again later")?;
        self.is_begun = true;
        Ok(())
    }

    /// Whether one goes on or waits.
    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    /// What was found meanwhile. What couldn't be begun is tried again.
    pub fn taken(&mut self) -> Option<Snapshot> {
        let found = self.receiver.try_recv().ok();
        if found.is_some() {
            self.queue.pop_front();
            let _ = self.begin();
        } else if !self.is_begun {
            let _ = self.begin();
        }
        found
    }
}

fn take_snapshot(host: &Host, id: NetnsId, reason: SnapshotReason) -> Snapshot {
    let at = WallMono::now();
    let netns =
        netns::discover().and_then(|mut namespaces| namespaces.remove(&id).context("the netns is gone"));
    let listing = netns.and_then(|netns| netns::run_inside(&netns, || list(&netns, reason)));
    let facts = || {
        let json = serde_json::to_string(&machine::read(host)).unwrap_or_default();
        MachineSnapshot { at, reason, json }
    };
    Snapshot { listing, facts: (reason != SnapshotReason::Changed).then(facts) }
}

/// Reads the table of the netns this thread is in.
fn list(netns: &Netns, reason: SnapshotReason) -> Result<StoredListing> {
    let (at, began) = (WallMono::now(), Clock::now());
    let mut counted = Listing::new(census::read_timeouts(), LOOK_S);
    let listing = census::list_with_directions(|entry, direction| {
        counted.add(entry, direction);
    })?;
    Ok(StoredListing {
        netns: netns.id,
        reason,
        at,
        took_us: began.elapsed().as_micros() as i64,
        entries: listing.entries,
        duplicates: listing.duplicates,
        interrupted: listing.interrupted || listing.resized,
        census: counted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_snapshot_of_another_netns_waits_for_its_turn() {
        let mut snapshots = SnapshotQueue::new(&Roots::default());
        snapshots.take_snapshot = |_, id, reason| Snapshot {
            listing: Err(anyhow::anyhow!("{}", id.inode())),
            facts: Some(MachineSnapshot { at: WallMono::now(), reason, json: String::new() }),
        };
        let (one, other) = (NetnsId::from_packed(1), NetnsId::from_packed(2));
        snapshots.start(one, SnapshotReason::Start).unwrap();
        for id in [one, other, other] {
            snapshots.start(id, SnapshotReason::Trigger).unwrap();
        }
        let until = Clock::now() + Duration::from_secs(20);
        let mut found = Vec::new();
        while !snapshots.queue.is_empty() && Clock::now() < until {
            found.extend(
                snapshots
                    .taken()
                    .map(|one| (one.listing.unwrap_err().to_string(), one.facts.unwrap().reason)),
            );
            std::thread::yield_now();
        }
        assert_eq!(
            found,
            [("1".to_owned(), SnapshotReason::Start), ("2".to_owned(), SnapshotReason::Trigger)]
        );
        snapshots.start(one, SnapshotReason::Trigger).unwrap();
        assert_eq!(snapshots.queue.len(), 1, "once it is done it is taken again");
        // What waits for a table alone may as well look at the machine; what goes on can't any more.
        for (id, reason) in [
            (other, SnapshotReason::Changed),
            (other, SnapshotReason::Trigger),
            (other, SnapshotReason::Changed),
            (one, SnapshotReason::Changed),
        ] {
            snapshots.start(id, reason).unwrap();
        }
        assert_eq!(snapshots.queue, [(one, SnapshotReason::Trigger), (other, SnapshotReason::Trigger)]);
        snapshots.queue = VecDeque::from([(one, SnapshotReason::Changed)]);
        snapshots.start(one, SnapshotReason::Trigger).unwrap();
        assert_eq!(snapshots.queue.len(), 2);
    }
}
