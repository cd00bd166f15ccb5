//! What a recording has besides its ticks: a table read entry by entry, and the machine. Read beside the watch.
//! A table that can't be read is no reason to stop: the others still count.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant as Clock;

use anyhow::{Context as _, Result};

use crate::advise::census::Census;
use crate::command::advise::in_force;
use crate::conntrack::netns::{self, Place};
use crate::conntrack::{addresses, census};
use crate::event::{NetnsId, Wanted};
use crate::kernel::roots::Roots;
use crate::machine::{self, Host};
use crate::record::rows::{Facts, Instant, Listing, Occasion};
use crate::state::table::Locals;

/// Arrivals are read from the timeouts that began anew within so many seconds.
const LOOK_S: u32 = 15;

/// What was found.
pub(super) struct Found {
    pub listing: Result<Listing>,
    pub facts: Facts,
}

/// Looks, one at a time.
pub(super) struct Looks {
    roots: Roots,
    sender: Sender<Found>,
    receiver: Receiver<Found>,
    running: usize,
}

impl Looks {
    pub fn new(roots: &Roots) -> Self {
        let (sender, receiver) = channel();
        Self { roots: roots.clone(), sender, receiver, running: 0 }
    }

    /// Starts one at this netns, unless one goes on: what that finds is as good.
    pub fn start(&mut self, id: NetnsId, occasion: Occasion) -> Result<()> {
        if self.running > 0 {
            return Ok(());
        }
        let (host, sender) = (Host { roots: self.roots.clone(), ..Host::default() }, self.sender.clone());
        std::thread::Builder::new()
            .name("look".to_owned())
            .stack_size(1 << 20)
            .spawn(move || drop(sender.send(look(&host, id, occasion))))
            .context("starting a thread that reads the table")?;
        self.running += 1;
        Ok(())
    }

    /// What was found meanwhile.
    pub fn found(&mut self) -> Option<Found> {
        let found = self.receiver.try_recv().ok();
        self.running -= usize::from(found.is_some());
        found
    }
}

fn look(host: &Host, id: NetnsId, occasion: Occasion) -> Found {
    let at = Instant::now();
    let place = netns::discover().and_then(|mut places| places.remove(&id).context("the netns is gone"));
    let listing = place.and_then(|place| netns::inside(&place, || list(&place, occasion)));
    let json = serde_json::to_string(&machine::read(host)).unwrap_or_default();
    Found { listing, facts: Facts { at, occasion, json } }
}

/// Reads the table of the netns this thread is in.
fn list(place: &Place, occasion: Occasion) -> Result<Listing> {
    let (at, began) = (Instant::now(), Clock::now());
    let locals = Locals::new(&addresses::here()?);
    let mut counted = Census::new(in_force(&Roots::default()), LOOK_S);
    let listing = census::list_here(Wanted { addresses: true, marks: false }, false, |entry| {
        counted.add(entry, locals.direction(entry));
    })?;
    Ok(Listing {
        netns: place.id,
        occasion,
        at,
        took_us: began.elapsed().as_micros() as i64,
        entries: listing.entries,
        duplicates: listing.duplicates,
        interrupted: listing.interrupted || listing.resized,
        census: counted,
    })
}
