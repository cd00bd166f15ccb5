//! One entry of a conntrack table, as a ctnetlink dump lists it.
//! Plain data of fixed size; what nobody asked for stays zero.

use super::{Address, Protocol};

/// What a census needs of one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableEntry {
    /// CTA_ID; 0 if it has none. A hash of 32 bits: two of a million entries often share one.
    pub id: u32,
    /// A hash of the original tuple, to tell those apart.
    pub tuple: u64,
    /// IP protocol number.
    pub proto: Protocol,
    /// Destination port of the original direction; for ICMP `type << 8 | code`; 0 where there is neither.
    pub port: u16,
    /// Both sides talk (IPS_ASSURED).
    pub assured: bool,
    /// The other side answered (IPS_SEEN_REPLY).
    pub seen_reply: bool,
    /// early_drop leaves it alone: it is assured, or offloaded to a flowtable (early_drop_list,
    /// net/netfilter/nf_conntrack_core.c, 5.10 to 7.3).
    pub unevictable: bool,
    /// enum tcp_conntrack; 0 for other protocols.
    pub tcp_state: u8,
    /// enum sctp_conntrack; 0 for other protocols.
    pub sctp_state: u8,
    /// Seconds until it expires.
    pub left: u32,
    /// When it was made, nanoseconds since 1970; 0 unless nf_conntrack_timestamp was on.
    pub started_ns: u64,
    /// Source of the original direction (only if [`EntryFields::addresses`]).
    pub src: Address,
    /// Destination of the original direction (only if [`EntryFields::addresses`]).
    pub dst: Address,
    /// Source port of the original direction (only if [`EntryFields::addresses`] and the protocol has ports).
    pub sport: u16,
    /// Source of the reply direction: the destination after NAT (only if [`EntryFields::addresses`]).
    pub reply_src: Address,
    /// The mark (only if [`EntryFields::marks`]).
    pub mark: u32,
    /// The zone, of whichever direction has one (only if [`EntryFields::marks`]).
    pub zone: u16,
}

/// What a dump is read for besides the attributes that every census needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryFields {
    /// The addresses of both directions.
    pub addresses: bool,
    /// Mark and zone.
    pub marks: bool,
}
