//! What a census reports, as views and scripts see it: docs/schema/table.json.
//! Fields are added, never renamed or given another meaning within one schema number.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::{is_false, millis, rounded};
use crate::foreign::Foreign;
use crate::model::{Direction, NetnsId, Protocol};

/// Who fills which table.
#[derive(Clone, Debug, Serialize)]
pub struct TableReport {
    /// [`crate::contract::SCHEMA`]
    pub schema: u32,
    /// Version of ctwatch.
    pub version: String,
    /// When the census ended.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// How long it took, all tables together.
    #[serde(serialize_with = "rounded")]
    pub took_s: f64,
    /// What one row stands for, besides its netns.
    pub by: Vec<&'static str>,
    /// The tables that were listed.
    pub tables: Vec<TableBreakdown>,
    /// Who fills them, most entries first.
    pub rows: Vec<Row>,
    /// Namespaces whose table could not be listed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// Only the own netns was looked at, for want of the right to enter others.
    #[serde(skip_serializing_if = "is_false")]
    pub own_netns_only: bool,
}

/// The table of one netns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableBreakdown {
    /// Its inode number.
    pub netns: NetnsId,
    /// "host", a name from /run/netns, that of its container, or null.
    pub name: Option<Foreign>,
    /// The container, pod or unit that lives in it, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Foreign>,
    /// Entries, as the kernel counted them after the listing.
    pub count: Option<u32>,
    /// The same before it.
    pub count_before: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// `count / max`, rounded down; null if there is no limit.
    pub fill: Option<f64>,
    /// Entries that were listed, each once.
    pub listed: u64,
    /// Those of them that early_drop leaves alone, assured or offloaded ones: a full table makes room of the others only.
    pub unevictable: u64,
    /// Those of them that the filters let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<u64>,
    /// Entries that the kernel listed twice.
    pub duplicates: u64,
    /// Listings given up because the table was resized meanwhile.
    #[serde(skip_serializing_if = "is_zero")]
    pub restarts: u32,
    /// It was resized so often that this listing is of several sizes: entries may be missing or count twice.
    #[serde(skip_serializing_if = "is_false")]
    pub resized: bool,
    /// How far `listed` is from what the kernel counted before and after (from the nearer of the two; 0 in between):
    /// positive if fewer were listed.
    pub unlisted: i64,
    /// What such a difference can come from; left out if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// Which entries the listing leaves out, if the kernel counts more than were listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Hidden>,
    /// Whether conntrack tracks here, if the table is empty; null if the kernel doesn't tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracks: Option<Option<bool>>,
    /// How long the listing took.
    #[serde(serialize_with = "rounded")]
    pub took_s: f64,
}

/// Entries that the kernel counts and no listing of the table shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hidden {
    /// Removed from the table and still referenced; null if the kernel doesn't list them.
    pub dying: Option<u64>,
    /// Whose first packet is under way; null if the kernel doesn't list them.
    pub unconfirmed: Option<u64>,
    /// `dying` and `unconfirmed` are all there are. If not, there may be more of them.
    pub complete: bool,
    /// What then remains of [`TableBreakdown::unlisted`].
    pub others: u64,
    /// Whose they are, most entries first; so many at most as there may be rows.
    pub services: Vec<HiddenService>,
}

/// Entries of one sort and service that no listing shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HiddenService {
    /// [`Reason::Dying`] or [`Reason::Unconfirmed`].
    pub sort: Reason,
    /// The protocol.
    pub proto: Protocol,
    /// The service port.
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
}

/// Why the kernel's count and a listing can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Entries whose first packet is still under way: counted by __nf_conntrack_alloc, listed once confirmed.
    Unconfirmed,
    /// Entries taken out of the table whose memory is still in use: counted until nf_conntrack_free.
    Dying,
    /// Entries past their timeout: counted until they are reaped, never listed.
    Expired,
    /// Entries that lost a clash and live on by their reply alone.
    ReplyOnly,
    /// Entries that came and went during the listing.
    Churn,
    /// The table was resized during the listing.
    Resize,
    /// The kernel said that the dump may be inconsistent.
    Interrupted,
}

/// Entries of one key in one table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// The netns.
    pub netns: NetnsId,
    /// What the netns is called (rows by netns); null if it has no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Option<Foreign>>,
    /// What lives in the netns (rows by container); null if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Option<Foreign>>,
    /// The protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Protocol>,
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
    /// State as `conntrack -L` spells it; UNREPLIED, REPLIED or ASSURED for protocols without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    /// Where the flows go, seen from the netns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Source address of the original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Destination address of the original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Conntrack zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<u16>,
    /// Conntrack mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// The sum of keys that have no row here.
    #[serde(skip_serializing_if = "is_false")]
    pub rest: bool,
    /// Its entries, those that are certain if counts are not exact.
    pub entries: u64,
    /// So many more may be its; left out if `entries` is exact.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub error: u64,
    /// They are at least so many; left out if `entries` is exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries_min: Option<u64>,
    /// And at most so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries_max: Option<u64>,
    /// Rest row, if counts are not exact: none of its keys has more entries than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub each_at_most: Option<u64>,
    /// Their part of the listed entries of this table, rounded down.
    pub share: f64,
    /// The same part of nf_conntrack_max; null if there is no limit.
    pub share_of_max: Option<f64>,
    /// The assured part of them; null if unknown.
    pub assured_share: Option<f64>,
    /// The part of them in TIME_WAIT; null if unknown or not TCP.
    pub time_wait_share: Option<f64>,
    /// Half of them expire within so many seconds if nothing refreshes them; null if unknown.
    pub timeout_left_median_s: Option<f64>,
    /// Nine tenths do.
    pub timeout_left_p90_s: Option<f64>,
    /// Half of them are younger; null unless net.netfilter.nf_conntrack_timestamp was on when they were made.
    pub age_median_s: Option<f64>,
}

/// A netns whose table could not be listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its inode number.
    pub netns: NetnsId,
    /// What it is called.
    pub name: Option<Foreign>,
    /// Why.
    pub reason: Foreign,
}

// serde passes fields by reference.
fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_zero_u64(value: &u64) -> bool {
    *value == 0
}
