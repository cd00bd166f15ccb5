//! A census: every entry of a netns's table, read once over ctnetlink and summed up while it streams by.
//! Read-only, and never on the thread that watches: a large table takes seconds.

pub mod hidden;
pub mod parse;
mod recent;
pub(crate) mod tally;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::addresses;
pub use crate::kernel::netlink::Refusal;
use crate::kernel::netlink::{self, Next};
use crate::model::{
    CensusKey, Direction, EntryFields, Locals, PortDetail, TableEntry, TimeoutKind, Timeouts,
};
use parse::{Message, Messages};
use recent::Recent;
use tally::Tally;

/// NFNL_SUBSYS_CTNETLINK << 8
const CT_SUBSYSTEM: u16 = 1 << 8;
/// IPCTNL_MSG_CT_GET
const CT_GET: u16 = CT_SUBSYSTEM | 1;

/// What one dump held.
#[derive(Clone, Debug, Default)]
pub struct Count {
    /// Entries by protocol and port.
    pub keys: Vec<CensusKey>,
    /// States and remaining timeouts of the larger keys, and of the rest of each protocol.
    pub details: Vec<PortDetail>,
    /// All entries.
    pub entries: u64,
    /// Entries that the dump listed twice, counted once.
    pub duplicates: u64,
    /// The kernel said that the dump may be inconsistent.
    pub interrupted: bool,
    /// How long it took.
    pub took: Duration,
}

/// Counts the entries of the netns this thread is in.
pub fn count_entries() -> Result<Count> {
    let started = Instant::now();
    let mut tally = Tally::new();
    let interrupted = dump_here(CT_GET, EntryFields::default(), |entry| tally.add(entry), || Next::Go)?;
    let (entries, duplicates) = (tally.entries, tally.duplicates);
    let (keys, details) = tally.finish();
    Ok(Count { keys, details, entries, duplicates, interrupted, took: started.elapsed() })
}

/// Whether the table of the netns this thread is in may be listed: begins, and ends after the first entries.
pub fn try_to_list() -> Result<()> {
    dump_here(CT_GET, EntryFields::default(), |_| {}, || Next::Stop).map(drop)
}

/// How the listing of a table went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Entries, without those listed twice.
    pub entries: u64,
    /// Entries that the dump listed twice, handed over once.
    pub duplicates: u64,
    /// The kernel said that the dump may be inconsistent.
    pub interrupted: bool,
    /// The number of buckets changed meanwhile.
    pub resized: bool,
}

/// Hands over every entry of the netns this thread is in, once. When the table is resized meanwhile it ends there if
/// `end_at_resize`, since a dump that goes on lists a part of the table again, or leaves one out: it keeps its bucket's
/// number, and nf_conntrack_hash_resize (nf_conntrack_core.c, 5.10 to 7.3) moves every entry to another one.
pub fn list_entries(
    wanted: EntryFields,
    end_at_resize: bool,
    mut each: impl FnMut(&TableEntry),
) -> Result<Listing> {
    let buckets = Buckets::open();
    let before = buckets.read();
    let mut recent = Recent::new();
    let mut listing = Listing::default();
    listing.interrupted = dump_here(
        CT_GET,
        wanted,
        |entry| {
            if recent.repeats(entry) {
                listing.duplicates += 1;
            } else {
                listing.entries += 1;
                each(entry);
            }
        },
        || {
            listing.resized |= buckets.read() != before;
            if listing.resized && end_at_resize { Next::Stop } else { Next::Go }
        },
    )?;
    Ok(listing)
}

/// The same with the direction of each entry, by the addresses of the netns this thread is in.
pub fn list_with_directions(mut each: impl FnMut(&TableEntry, Direction)) -> Result<Listing> {
    let locals = Locals::new(&addresses::local_addresses()?);
    list_entries(EntryFields { addresses: true, marks: false }, false, |entry| {
        each(entry, locals.direction(entry));
    })
}

/// net.netfilter.nf_conntrack_buckets, kept open: it is looked at once per datagram.
struct Buckets(Option<File>);

impl Buckets {
    fn open() -> Self {
        Self(File::open("/proc/sys/net/netfilter/nf_conntrack_buckets").ok())
    }

    /// As text, since all that matters is whether it changes; nothing if it can't be read.
    fn read(&self) -> [u8; 16] {
        let mut text = [0; 16];
        if let Some(file) = &self.0 {
            let _ = file.read_at(&mut text, 0);
        }
        text
    }
}

/// Hands over every entry of a dump; returns whether the kernel called it inconsistent. `after` each datagram it may end.
fn dump_here(
    kind: u16,
    wanted: EntryFields,
    mut each: impl FnMut(&TableEntry),
    mut after: impl FnMut() -> Next,
) -> Result<bool> {
    let mut interrupted = false;
    netlink::dump_here(kind, libc::AF_UNSPEC as u8, &[], |datagram| {
        let mut messages = Messages::new(datagram, wanted);
        let mut done = false;
        for message in messages.by_ref() {
            match message {
                Message::Entry(entry) => each(&entry),
                Message::Done(0) => {
                    done = true;
                    break;
                }
                Message::Done(code) | Message::Error(code) if code != 0 => return Err(Refusal(code).into()),
                Message::Overrun => bail!("the kernel lost parts of the dump"),
                _ => {}
            }
        }
        interrupted |= messages.interrupted;
        let next = after();
        Ok(if done { Next::Stop } else { next })
    })
    .with_context(|| match kind {
        CT_GET => "dumping the conntrack table (IPCTNL_MSG_CT_GET)".to_owned(),
        other => format!("dumping a list of ctnetlink's (message {})", other & 0xFF),
    })?;
    Ok(interrupted)
}

/// The timeouts in force in the netns this thread is in; what can't be read is unknown.
#[must_use]
pub fn read_timeouts() -> Timeouts {
    TimeoutKind::ALL.into_iter().filter_map(|kind| Some((kind, number(kind.sysctl())?))).collect()
}

/// Of these protocols and sysctls behind `nf_conntrack_`, those that this thread's netns has, and their values.
pub fn read_first<T>(sysctls: &[(u8, &'static str, T)]) -> impl Iterator<Item = (u8, u32)> {
    sysctls.iter().filter_map(|(proto, sysctl, _)| Some((*proto, number(sysctl)?)))
}

/// Entries in the table of the netns this thread is in, as the kernel counts them.
#[must_use]
pub fn entries_here() -> Option<u32> {
    number("count")
}

/// nf_conntrack_max, as it holds in the netns this thread is in.
#[must_use]
pub fn max_here() -> Option<u32> {
    number("max")
}

fn number(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_share_an_id_by_chance_are_two() {
        let mut tally = Tally::new();
        for port in [80, 81] {
            let bytes = parse::tests::tcp(7, port, 3, 60, 0xE);
            let Some(Message::Entry(entry)) = Messages::new(&bytes, EntryFields::default()).next() else {
                panic!("no entry")
            };
            tally.add(&entry);
        }
        assert_eq!((tally.entries, tally.duplicates), (2, 0));
    }

    #[test]
    fn a_tally_counts_by_port_and_an_entry_listed_twice_once() {
        let mut tally = Tally::new();
        let bytes: Vec<u8> = (0..100_u32)
            .flat_map(|id| parse::tests::tcp(id + 1, if id < 97 { 6379 } else { 443 }, 7, 60, 0xE))
            .chain(parse::tests::tcp(100, 443, 7, 60, 0xE))
            .collect();
        for message in Messages::new(&bytes, EntryFields::default()) {
            let Message::Entry(entry) = message else { panic!("{message:?}") };
            tally.add(&entry);
        }
        assert_eq!((tally.entries, tally.duplicates), (100, 1));
        let (keys, details) = tally.finish();
        let of = |port| keys.iter().find(|key| key.port == port).expect("counted");
        assert_eq!((of(6379).entries, of(6379).time_wait, of(443).entries), (97, 97, 3));
        let summed: u32 = details.iter().map(|detail| detail.mix.total()).sum();
        assert_eq!(summed, 100);
        assert_eq!(details.iter().filter(|detail| detail.port.is_some()).count(), 1);
    }
}
