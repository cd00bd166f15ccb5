//! One loss or one new entry as a record of its own, with all that is known of it.
//! Part of the contract: fields are added, never renamed.

use std::net::IpAddr;

use ctwatch_common::Cause;
use jiff::Timestamp;
use serde::Serialize;

use super::Certainty;
use super::serialize::{cause, is_false, micros};
use crate::foreign::Foreign;
use crate::model::{NetnsId, ProcessId, Protocol, Role};

/// A single packet, with `--events`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "shown and forgotten: there is one at a time")]
pub enum Event {
    /// A loss.
    Drop(DropEvent),
    /// A new entry.
    Insert(InsertEvent),
}

/// One loss.
#[derive(Clone, Debug, Serialize)]
pub struct DropEvent {
    /// When the kernel saw it.
    #[serde(serialize_with = "micros")]
    pub time: Timestamp,
    /// Why.
    #[serde(serialize_with = "cause")]
    pub cause: Cause,
    /// Whether the cause is known or inferred.
    pub certainty: Certainty,
    /// Who and where.
    #[serde(flatten)]
    pub packet: Packet,
    /// Whose view the tuple is: that of the packet before NAT, as conntrack sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
    /// Whether the entry's flow is subject to NAT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
    /// The entry's original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<Tuple>,
    /// The entry's reply direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Tuple>,
    /// What more is known of the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
    /// The new flow that the entry was evicted for; null if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed_out_by: Option<Option<Flow>>,
    /// Netfilter hook, null if unknown.
    pub hook: Option<&'static str>,
    /// The device it came in by, null if unknown.
    #[serde(rename = "in")]
    pub input: Option<Foreign>,
    /// The device it was to go out of, null if unknown.
    #[serde(rename = "out")]
    pub output: Option<Foreign>,
    /// Entries in the table.
    pub count: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// `count / max`, rounded down; null if unknown or without limit.
    pub fill: Option<f64>,
    /// Whether `count` was read at that instant or at the last sample.
    pub fill_source: Option<FillSource>,
    /// Whose packet it was, where that is certain.
    pub process: Option<Process>,
    /// Path of that process's cgroup, null if unknown.
    pub cgroup: Option<Foreign>,
    /// Its container or systemd unit; where the process is unknown, what lives in the netns. Null if unknown.
    pub container: Option<Foreign>,
    /// Length of the packet, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
}

/// One new entry.
#[derive(Clone, Debug, Serialize)]
pub struct InsertEvent {
    /// When the kernel saw it.
    #[serde(serialize_with = "micros")]
    pub time: Timestamp,
    /// Who and where.
    #[serde(flatten)]
    pub packet: Packet,
}

/// What an event says about its packet; what is unknown is left out.
#[derive(Clone, Debug, Serialize)]
pub struct Packet {
    /// The netns.
    pub netns: NetnsId,
    /// The protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Protocol>,
    /// Source address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// ICMP id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// It travelled over the loopback device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loopback: Option<bool>,
    /// Conntrack zone of the entry's original direction, of one that was to be made, too; 0 is the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_original: Option<u16>,
    /// That of its reply direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_reply: Option<u16>,
    /// Its tuple was missed.
    #[serde(skip_serializing_if = "is_false")]
    pub unattributed: bool,
}

/// Whose view of a packet a tuple is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// As the packet came: conntrack runs before NAT.
    PreNat,
}

/// One direction of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Source port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
}

/// A tuple of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// The protocol.
    pub proto: Protocol,
    /// Where from and where to.
    #[serde(flatten)]
    pub tuple: Tuple,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// ICMP id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
}

/// An entry that was lost, or not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// It had seen traffic both ways that makes it worth keeping (IPS_ASSURED).
    pub assured: bool,
    /// A reply had been seen (IPS_SEEN_REPLY).
    pub seen_reply: bool,
    /// State of the TCP connection, as `conntrack -L` spells it; null for other protocols.
    pub tcp_state: Option<&'static str>,
    /// Seconds until it would have timed out; null if unknown, or if it never got into the table.
    pub timeout_left_s: Option<f64>,
    /// How old it was. The kernel doesn't tell without time stamps: null.
    pub age_s: Option<f64>,
}

/// When a fill was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FillSource {
    /// At the instant of the event.
    Event,
    /// At the last sample.
    Sample,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its id in the host's pid namespace.
    pub pid: u32,
    /// Its name.
    pub name: Foreign,
    /// What it had to do with the packet.
    pub role: Role,
}

impl From<&ProcessId> for Process {
    fn from(process: &ProcessId) -> Self {
        Self { pid: process.pid, name: process.name.into(), role: process.role }
    }
}
