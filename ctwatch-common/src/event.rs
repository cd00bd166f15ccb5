//! What the ring buffer carries: records of one fixed layout.
//! All fields are plain integers or bytes, so any bit pattern is a valid record.

/// The packet's address family: `family` is 4 or 6.
pub const IPV4: u8 = 4;
/// See [`IPV4`].
pub const IPV6: u8 = 6;

/// Netfilter hook numbers (include/uapi/linux/netfilter.h), and our own for where packets reach conntrack without one.
pub mod hook {
    /// NF_INET_PRE_ROUTING
    pub const PRE_ROUTING: u8 = 0;
    /// NF_INET_LOCAL_IN
    pub const LOCAL_IN: u8 = 1;
    /// NF_INET_FORWARD
    pub const FORWARD: u8 = 2;
    /// NF_INET_LOCAL_OUT
    pub const LOCAL_OUT: u8 = 3;
    /// NF_INET_POST_ROUTING
    pub const POST_ROUTING: u8 = 4;
    /// Open vSwitch's action `ct`.
    pub const OPENVSWITCH: u8 = 16;
    /// tc's action `ct`, on a packet that came in.
    pub const TC_INGRESS: u8 = 17;
    /// tc's action `ct`, on a packet that goes out.
    pub const TC_EGRESS: u8 = 18;
    /// Bridge netfilter's own NF_BR_PRE_ROUTING, where a bridge tracks connections.
    pub const BRIDGE: u8 = 19;
    /// The hook is not known.
    pub const UNKNOWN: u8 = 255;
}

/// Bits of [`LossEvent::flags`].
pub mod flag {
    /// The packet travelled over the loopback device.
    pub const LOOPBACK: u8 = 1;
    /// `count` was read when the loss happened.
    pub const COUNT: u8 = 2;
    /// `max` was read when the loss happened.
    pub const MAX: u8 = 4;
    /// The device is the one the packet was leaving by (otherwise the one it arrived on).
    pub const OUT: u8 = 8;
    /// The tuple is known.
    pub const TUPLE: u8 = 16;
    /// There was an entry: the [`super::EntryPart`] of the record is filled in.
    pub const ENTRY: u8 = 32;
    /// The sending process is known: the [`super::OwnerPart`] of the record is filled in.
    pub const OWNER: u8 = 64;
}

/// One loss, or what else its `kind` says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossEvent {
    /// CLOCK_MONOTONIC, ns.
    pub at: u64,
    /// The id of the netns (see [`crate::netns::id`]); for an insert and for [`KIND_PUSHER`] its inode number.
    pub netns: u32,
    /// Entries in the netns's table at that moment (flag COUNT).
    pub count: u32,
    /// nf_conntrack_max at that moment (flag MAX).
    pub max: u32,
    /// Interface index of the device; 0 if unknown.
    pub ifindex: u32,
    /// A cause's number, [`crate::slot::KIND_FLOWS`] for an insert (`--events=insert`), [`KIND_PUSHER`] or
    /// [`KIND_NETNS_GONE`].
    pub kind: u8,
    /// IP protocol number.
    pub proto: u8,
    /// 4 or 6; 0 if unknown.
    pub family: u8,
    /// See [`hook`].
    pub hook: u8,
    /// See [`flag`].
    pub flags: u8,
    /// ICMP type and code.
    pub icmp: [u8; 2],
    /// Where the packet was freed: see [`crate::door::kind`].
    pub place: u8,
    /// Source port, or ICMP id, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// The packet's length in bytes.
    pub length: u32,
    /// Source address; IPv4 in the first four bytes.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Device name, NUL padded.
    pub device: [u8; 16],
}

const _: () = assert!(size_of::<LossEvent>() == 88);

impl LossEvent {
    /// All zero: nothing is known.
    pub const EMPTY: Self = Self {
        at: 0,
        netns: 0,
        count: 0,
        max: 0,
        ifindex: 0,
        kind: 0,
        proto: 0,
        family: 0,
        hook: 0,
        flags: 0,
        icmp: [0; 2],
        place: 0,
        sport: 0,
        dport: 0,
        length: 0,
        src: [0; 16],
        dst: [0; 16],
        device: [0; 16],
    };
}

/// The entry a loss is about: the victim of an eviction, or the entry that was not inserted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryPart {
    /// Reply direction: source address.
    pub reply_src: [u8; 16],
    /// Reply direction: destination address.
    pub reply_dst: [u8; 16],
    /// Reply direction: source port, host order.
    pub reply_sport: u16,
    /// Reply direction: destination port, host order.
    pub reply_dport: u16,
    /// nf_conn.status (enum ip_conntrack_status).
    pub status: u32,
    /// Jiffies until the entry would have timed out.
    pub left: i32,
    /// nf_conn.proto.tcp.state, or [`NO_TCP_STATE`].
    pub tcp_state: u8,
    /// nf_conn.zone.dir: in which directions `zone` holds (see [`zone`]), or [`zone::UNKNOWN`]. It may be known without
    /// [`flag::ENTRY`]: that of an entry that was wanted, or made.
    pub zone_directions: u8,
    /// nf_conn.zone.id
    pub zone: u16,
}

/// Directions of a zone: bits of struct nf_conntrack_zone's `dir` (include/net/netfilter/nf_conntrack_zones.h).
pub mod zone {
    /// Neither: the zone is not known.
    pub const UNKNOWN: u8 = 0;
    /// NF_CT_ZONE_DIR_ORIG
    pub const ORIGINAL: u8 = 1;
    /// NF_CT_ZONE_DIR_REPL
    pub const REPLY: u8 = 2;
    /// NF_CT_DEFAULT_ZONE_DIR
    pub const BOTH: u8 = 3;
}

/// Not a TCP entry, or its state could not be read.
pub const NO_TCP_STATE: u8 = u8::MAX;

impl EntryPart {
    /// No entry. Its TCP state is [`NO_TCP_STATE`], since 0 is a state.
    pub const EMPTY: Self = Self {
        reply_src: [0; 16],
        reply_dst: [0; 16],
        reply_sport: 0,
        reply_dport: 0,
        status: 0,
        left: 0,
        tcp_state: NO_TCP_STATE,
        zone_directions: zone::UNKNOWN,
        zone: 0,
    };
}

/// The process that sent a packet, where that is certain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerPart {
    /// The id of its cgroup (v2), 0 if unknown.
    pub cgroup: u64,
    /// Its thread group id in the host's pid namespace.
    pub pid: u32,
    /// Always 0.
    pub reserved: u32,
    /// Its name, NUL padded.
    pub name: [u8; 16],
}

impl OwnerPart {
    /// Not known.
    pub const EMPTY: Self = Self { cgroup: 0, pid: 0, reserved: 0, name: [0; 16] };
}

/// One record of the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was lost.
    pub loss: LossEvent,
    /// Flag [`flag::ENTRY`]: its entry.
    pub entry: EntryPart,
    /// Flag [`flag::OWNER`]: its sender.
    pub owner: OwnerPart,
}

impl Record {
    /// A record that says nothing.
    pub const EMPTY: Self = Self { loss: LossEvent::EMPTY, entry: EntryPart::EMPTY, owner: OwnerPart::EMPTY };
}

/// Size of a [`Record`], bytes.
pub const RECORD_SIZE: usize = size_of::<Record>();

const _: () = assert!(size_of::<EntryPart>() == 48);
const _: () = assert!(size_of::<OwnerPart>() == 32);
const _: () = assert!(RECORD_SIZE == 168);

/// [`LossEvent::kind`] of a record that names the new flow for which the victim with the same `at` was evicted.
pub const KIND_PUSHER: u8 = 30;
/// [`LossEvent::kind`] of a record for a netns that is gone: `src` and `dst` hold its final counters, four u64 (drop,
/// early_drop, insert_failed, chaintoolong), summed over all CPUs.
pub const KIND_NETNS_GONE: u8 = 29;
