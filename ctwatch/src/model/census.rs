//! A census as it enters `state`: what one netns's table held, tied to what the flow counters said meanwhile.
//! Plain data of bounded size, live or replayed.

use super::{NetnsId, Protocol, Timeouts};

/// Entries of one protocol and service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CensusKey {
    /// IP protocol number.
    pub proto: Protocol,
    /// Service port; for ICMP `type << 8 | code`.
    pub port: u16,
    /// Entries.
    pub entries: u32,
    /// Those that saw traffic both ways (IPS_ASSURED).
    pub assured: u32,
    /// Those in TCP's TIME_WAIT.
    pub time_wait: u32,
}

/// Entries that a listing leaves out though the kernel counts them, by port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HiddenEntries {
    /// Removed from the table and still referenced; `None` if the kernel doesn't tell.
    pub dying: Option<Vec<CensusKey>>,
    /// Not in the table yet, as their first packet is under way; `None` if the kernel doesn't tell.
    pub unconfirmed: Option<Vec<CensusKey>>,
    /// These are all of both sorts.
    pub complete: bool,
}

/// Entries by state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// By enum tcp_conntrack; other protocols are all at 0.
    pub tcp: [u32; 16],
    /// Assured entries, whatever the protocol.
    pub assured: u32,
}

impl StateCounts {
    /// TCP_CONNTRACK_ESTABLISHED, include/uapi/linux/netfilter/nf_conntrack_tcp.h
    pub const ESTABLISHED: u8 = 3;
    /// TCP_CONNTRACK_TIME_WAIT
    pub const TIME_WAIT: u8 = 7;

    /// All entries.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.tcp.iter().sum()
    }
}

/// A second each up to here.
const FINE: u32 = 64;
/// Then so many buckets for each doubling.
const PER_DOUBLING: u32 = 4;
/// Up to 2^20 s, twelve days.
const BUCKETS: usize = (FINE + 14 * PER_DOUBLING) as usize;

/// Entries by the seconds until they expire: fine for seconds, coarse for hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutHistogram([u32; BUCKETS]);

impl Default for TimeoutHistogram {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl TimeoutHistogram {
    /// Counts an entry that expires in so many seconds.
    pub fn add(&mut self, left: u32) {
        self.0[bucket(left)] += 1;
    }

    /// Adds another distribution's entries.
    pub fn add_all(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    /// Entries counted.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }

    /// Buckets with entries: from and to how many seconds, and how many.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, f64, u32)> {
        let filled = self.0.iter().enumerate().filter(|(_, entries)| **entries > 0);
        filled.map(|(index, entries)| (f64::from(lower(index)), f64::from(lower(index + 1)), *entries))
    }

    /// Buckets with entries by their numbers, for keeping them.
    pub fn sparse(&self) -> impl Iterator<Item = (usize, u32)> {
        let numbered = self.0.iter().copied().enumerate();
        numbered.filter(|(_, entries)| *entries > 0)
    }

    /// From what [`TimeoutHistogram::sparse`] gave; nothing if there is no bucket with such a number.
    #[must_use]
    pub fn from_sparse(buckets: &[(usize, u32)]) -> Option<Self> {
        let mut remaining = Self::default();
        for (index, entries) in buckets {
            *remaining.0.get_mut(*index)? = *entries;
        }
        Some(remaining)
    }

    /// The seconds within which this part of the entries expires.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = f64::from(self.total()) * part;
        let mut sum = 0.0;
        for (_, to, entries) in self.buckets() {
            sum += f64::from(entries);
            if sum >= wanted {
                return Some(to);
            }
        }
        None
    }
}

fn bucket(left: u32) -> usize {
    if left < FINE {
        return left as usize;
    }
    let doubling = left.ilog2() - FINE.ilog2();
    let quarter = (left >> (left.ilog2() - PER_DOUBLING.ilog2())) - PER_DOUBLING;
    ((FINE + doubling * PER_DOUBLING + quarter) as usize).min(BUCKETS - 1)
}

/// Where a bucket begins.
const fn lower(index: usize) -> u32 {
    let index = index as u32;
    if index < FINE {
        return index;
    }
    let (doubling, quarter) = ((index - FINE) / PER_DOUBLING, (index - FINE) % PER_DOUBLING);
    (FINE << doubling) / PER_DOUBLING * (PER_DOUBLING + quarter)
}

/// States and remaining timeouts of one service port, or of what is left of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDetail {
    /// IP protocol number.
    pub proto: Protocol,
    /// The service port; none for the sum of ports without a detail of their own.
    pub port: Option<u16>,
    /// By state.
    pub mix: StateCounts,
    /// Those whose timeout restarts with each packet: TCP's ESTABLISHED, elsewhere what is assured.
    pub refreshed: TimeoutHistogram,
    /// Those that only wait for their end.
    pub expiring: TimeoutHistogram,
}

impl PortDetail {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(proto: Protocol, port: Option<u16>) -> Self {
        Self {
            proto,
            port,
            mix: StateCounts::default(),
            refreshed: TimeoutHistogram::default(),
            expiring: TimeoutHistogram::default(),
        }
    }

    /// Counts an entry.
    pub fn add(&mut self, tcp_state: u8, assured: bool, left: u32) {
        self.mix.tcp[usize::from(tcp_state) % 16] += 1;
        self.mix.assured += u32::from(assured);
        let lasts = if self.is_tcp() { tcp_state == StateCounts::ESTABLISHED } else { assured };
        if lasts { self.refreshed.add(left) } else { self.expiring.add(left) }
    }

    /// Adds another one's entries.
    pub fn add_all(&mut self, other: &Self) {
        for (sum, more) in self.mix.tcp.iter_mut().zip(other.mix.tcp) {
            *sum += more;
        }
        self.mix.assured += other.mix.assured;
        self.refreshed.add_all(&other.refreshed);
        self.expiring.add_all(&other.expiring);
    }

    /// Whether states are TCP's.
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        matches!(self.proto, Protocol::TCP)
    }
}

/// What a key's inserts less deletes must be added to, to get its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowOffset {
    /// IP protocol number.
    pub proto: Protocol,
    /// Service port; for ICMP `type << 8 | code`.
    pub port: u16,
    /// Entries at the census less (inserts − deletes) counted until then.
    pub entries: i64,
}

/// One netns's table at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// The netns.
    pub netns: NetnsId,
    /// What it held.
    pub keys: Vec<CensusKey>,
    /// How that is distributed.
    pub details: Vec<PortDetail>,
    /// Keys counted by it or by the flow counters.
    pub bases: Vec<FlowOffset>,
    /// False if an earlier census gave exact bases that still hold: then only states and timeouts are news.
    pub replaces_offsets: bool,
    /// The timeouts in force there.
    pub timeouts: Timeouts,
    /// Nothing came or went meanwhile, nothing was listed twice, and the kernel counted as many.
    pub exact: bool,
}

/// What a sample says of flows besides their counters.
#[derive(Clone, Debug, Default)]
pub struct FlowSample {
    /// Censuses that ended since the last sample.
    pub censuses: Vec<Census>,
    /// Inserts and deletes that found no counter of their own (total).
    pub overflow: u64,
    /// conntrack was loaded again: its tables began empty, and earlier censuses no longer count.
    pub restarted: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_what_it_says(left in 0..1u32 << 20) {
            let index = bucket(left);
            prop_assert!(lower(index) <= left && left < lower(index + 1), "{left} is in bucket {index}");
        }
    }

    #[test]
    fn what_was_kept_sparsely_is_the_same_again() {
        let mut remaining = TimeoutHistogram::default();
        for left in [0, 63, 64, 432_000] {
            remaining.add(left);
        }
        let kept: Vec<_> = remaining.sparse().collect();
        assert_eq!(TimeoutHistogram::from_sparse(&kept), Some(remaining));
        assert_eq!(TimeoutHistogram::from_sparse(&[(BUCKETS, 1)]), None);
    }

    #[test]
    fn the_longest_timeout_has_a_bucket() {
        let mut remaining = TimeoutHistogram::default();
        for left in [0, 63, 64, 432_000, u32::MAX] {
            remaining.add(left);
        }
        assert_eq!(remaining.total(), 5);
        assert_eq!(remaining.quantile(0.2), Some(1.0));
    }
}
