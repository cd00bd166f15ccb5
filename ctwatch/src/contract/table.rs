//! The fill of a table and who fills it, as part of ticks and of the last record.
//! Part of the contract: fields are added, never renamed.

use serde::Serialize;

use super::Unexplained;
use super::serialize::is_false;
use crate::foreign::Foreign;
use crate::model::{NetnsId, Protocol};

/// The table of one netns.
#[derive(Clone, Debug, Serialize)]
pub struct TableStatus {
    /// Its inode number.
    pub netns: NetnsId,
    /// "host" (the initial netns), a name from /run/netns, that of its container, "this netns", or null.
    pub name: Option<Foreign>,
    /// The container, pod or unit that lives in it, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Foreign>,
    /// Entries.
    pub count: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// `count / max`, rounded down; null if there is no limit.
    pub fill: Option<f64>,
    /// Entries inserted per second.
    pub new_per_s: Option<f64>,
    /// Entries deleted per second.
    pub gone_per_s: Option<f64>,
    /// Seconds until full at the present trend.
    pub full_in_s: Option<f64>,
    /// Who fills it, most entries first; left out if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occupants: Option<Vec<Occupant>>,
    /// Whether the occupants' entries are exact; left out if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occupancy_exact: Option<bool>,
    /// Packets lost in this interval, unfiltered.
    pub packets_lost: u64,
    /// Entries removed before their time in this interval, unfiltered.
    pub entries_lost: u64,
    /// The netns has vanished; this is its last line.
    #[serde(skip_serializing_if = "is_false")]
    pub gone: bool,
    /// Its counters can't be read: it is only known by what it lost.
    #[serde(skip_serializing_if = "is_false")]
    pub not_readable: bool,
    /// Left out when all is explained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<Unexplained>,
}

impl TableStatus {
    /// From this fill on a table matters even if it loses nothing.
    pub const FILLING: f64 = 0.5;
}

/// Tables that are in no list, summed up: those that lost least in this interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TablesLeftOut {
    /// How many.
    pub netns: u64,
    /// Packets they lost in this interval, unfiltered.
    pub packets_lost: u64,
    /// Their entries that were removed before their time in this interval, unfiltered.
    pub entries_lost: u64,
}

impl TablesLeftOut {
    /// Sums them up.
    #[must_use]
    pub fn sum<'a>(tables: impl IntoIterator<Item = &'a TableStatus>) -> Self {
        tables.into_iter().fold(Self::default(), |sum, table| Self {
            netns: sum.netns + 1,
            packets_lost: sum.packets_lost + table.packets_lost,
            entries_lost: sum.entries_lost + table.entries_lost,
        })
    }
}

/// Who occupies one table at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Occupied {
    /// See [`TableStatus::netns`].
    pub netns: NetnsId,
    /// See [`TableStatus::name`].
    pub name: Option<Foreign>,
    /// See [`TableStatus::occupants`].
    pub occupants: Vec<Occupant>,
    /// See [`TableStatus::occupancy_exact`].
    pub occupancy_exact: bool,
}

/// Entries of one service port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Occupant {
    /// The protocol.
    pub proto: Protocol,
    /// The service port: the destination port of the original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The well-known name of the service; null if the port has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Option<&'static str>>,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Its entries.
    pub entries: u64,
    /// Their part of all entries, rounded down.
    pub share: f64,
    /// Entries that come, per second, over about ten seconds.
    pub new_per_s: f64,
    /// How long they last, if that was measured.
    pub mean_lifetime_s: Option<f64>,
    /// The part of them in TIME_WAIT when last looked at; null if unknown or not TCP.
    pub time_wait_share: Option<f64>,
}

/// `count / max`, rounded down so that only a full table shows as full.
#[must_use]
pub fn fill(count: u32, max: u32) -> Option<f64> {
    (max != 0).then(|| (f64::from(count) / f64::from(max) * 10_000.0).floor() / 10_000.0)
}
