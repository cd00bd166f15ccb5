//! What a production host's table looks like when it is full: thousands of flows, most of them assured, a few not.
//! It may only make entries and lower the limit inside a VM; drops are the traffic's business.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};

use crate::ctnetlink::{Entry, Maker, TcpState};
use crate::sysctl::{self, Setting};

/// The limit scenarios lower nf_conntrack_max to.
pub const LIMIT: u64 = 4000;

/// Entries made so far in this process, so that topping a table up makes new ones.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Of which entries a table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Assured and in no state gc may take: nothing can be evicted.
    Assured,
    /// Mostly assured, one in ten one-way UDP: early_drop sometimes finds a victim.
    Realistic,
    /// One-way UDP only: early_drop mostly finds a victim.
    OneWay,
}

/// A limit lowered to [`LIMIT`], put back when dropped.
pub fn lower_limit() -> Result<Setting> {
    Setting::set(sysctl::MAX, LIMIT)
}

/// Fills the calling thread's netns up to the limit, and returns how many entries it holds then. To be called again
/// just before traffic: meanwhile gc takes flows that aren't assured out of a full table.
pub fn fill(mix: Mix) -> Result<u64> {
    fill_to(mix, sysctl::read(sysctl::MAX)?)
}

/// Fills the calling thread's netns up to `wanted` entries.
pub fn fill_to(mix: Mix, wanted: u64) -> Result<u64> {
    let mut maker = Maker::open()?;
    for _ in 0..8 {
        let count = sysctl::read(sysctl::COUNT)?;
        if count >= wanted {
            return Ok(count);
        }
        let missing = (wanted - count) as u32;
        let first = NEXT.fetch_add(missing, Ordering::Relaxed);
        maker.create((first..first + missing).map(|index| entry(mix, index)))?;
    }
    let count = sysctl::read(sysctl::COUNT)?;
    ensure!(count >= wanted, "the table holds {count} of {wanted} entries after 8 rounds of filling");
    Ok(count)
}

fn entry(mix: Mix, index: u32) -> Entry {
    let one_way = |index: u32| Entry::nth(index, 7000 + (index % 8) as u16, None, false);
    match mix {
        Mix::OneWay => one_way(index),
        Mix::Assured => assured(index),
        Mix::Realistic if index % 10 == 9 => one_way(index),
        Mix::Realistic if index % 10 == 8 => Entry::nth(index, 6379, Some(TcpState::TimeWait), true),
        Mix::Realistic => assured(index),
    }
}

fn assured(index: u32) -> Entry {
    match index % 4 {
        0 => Entry::nth(index, 443, Some(TcpState::Established), true),
        1 => Entry::nth(index, 80, Some(TcpState::Established), true),
        2 => Entry::nth(index, 53, None, true),
        _ => Entry::nth(index, 6379, Some(TcpState::Established), true),
    }
}
