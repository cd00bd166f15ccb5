//! Describes a packet: tuple, device and hook, from the skb or from a conntrack tuple.
//! Fills an event in place; nothing is counted here.

use crate::config::config;
use crate::read::{field, read, read_bytes, read_words};
use core::mem::MaybeUninit;
use ctwatch_common::config::{HEAD_SPAN, NONE, SKB_SPAN};
use ctwatch_common::event::{EntryPart, IPV4, IPV6, LossEvent, flag, hook};

const SKB_WORDS: usize = SKB_SPAN / 8;
const HEAD_WORDS: usize = HEAD_SPAN / 8;
const HEADER_WORDS: usize = 6;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// [`LossEvent::EMPTY`] in place, written word by word: an assignment would become a call to memset, which goes byte by
/// byte.
#[inline(always)]
pub fn blank(place: &mut MaybeUninit<LossEvent>) -> &mut LossEvent {
    let words = place.as_mut_ptr().cast::<u64>();
    for word in 0..size_of::<LossEvent>() / 8 {
        // SAFETY: inside the place; all of it is written, and zero is a value of every field.
        unsafe { core::ptr::write_volatile(words.add(word), 0) };
    }
    // SAFETY: written above.
    unsafe { place.assume_init_mut() }
}

/// The part of an skb that matters, read in one go.
pub struct Skb {
    address: u64,
    block: MaybeUninit<[u64; SKB_WORDS]>,
}

impl Skb {
    #[inline(always)]
    pub fn uninit() -> Self {
        Self { address: 0, block: MaybeUninit::uninit() }
    }

    #[inline(always)]
    pub fn read(&mut self, skb: u64) {
        self.address = skb;
        // Reading costs by the byte.
        let start = skb + u64::from(config!(skb_span));
        // SAFETY: the block is as large as the read, which user space checked.
        unsafe {
            if config!(event_details) != 0 {
                read_words(self.block.as_mut_ptr(), start);
            } else {
                read_bytes(self.block.as_mut_ptr(), config!(skb_without_len), start);
            }
        }
    }

    #[inline(always)]
    fn get<T: Copy>(&self, offset: u32) -> T {
        // SAFETY: user space checked every offset against SKB_SPAN.
        unsafe { field(self.block.as_ptr(), offset) }
    }

    /// The conntrack entry the packet holds, 0 if none.
    #[inline(always)]
    pub fn entry(&self) -> u64 {
        self.nfct() & !7
    }

    /// `_nfct` as it is.
    #[inline(always)]
    pub fn nfct(&self) -> u64 {
        self.get(config!(skb_nfct))
    }

    #[inline(always)]
    pub fn device(&self) -> u64 {
        self.get(config!(skb_dev))
    }

    /// The socket the packet was sent from, 0 if none.
    #[inline(always)]
    pub fn socket(&self) -> u64 {
        self.get(config!(skb_sk))
    }

    /// The device of the route, for packets that have none yet (LOCAL_OUT).
    #[inline(always)]
    fn route_device(&self) -> u64 {
        let dst = self.get::<u64>(config!(skb_dst)) & !1;
        if dst == 0 { 0 } else { read(dst + u64::from(config!(dst_dev))) }
    }

    /// The netns: the device's; without a device the socket's; without a socket the route's.
    #[inline(always)]
    pub fn net(&self) -> u64 {
        let device = self.device();
        if device != 0 {
            return read(device + u64::from(config!(dev_net)));
        }
        let socket = self.socket();
        if socket != 0 {
            return read(socket + u64::from(config!(sock_net)));
        }
        let device = self.route_device();
        if device == 0 { 0 } else { read(device + u64::from(config!(dev_net))) }
    }

    /// Fills in device, hook and length; the tuple must be there already. `loopback` is the address of the netns's loopback
    /// device.
    #[inline(always)]
    pub fn describe_path(&self, has_entry: bool, loopback: u64, event: &mut LossEvent) {
        if config!(event_details) != 0 {
            event.length = self.get(config!(skb_len));
        }
        let mut device = self.device();
        if device == 0 {
            // Packets to 127.0.0.0/8 and ::1 use loopback: no need to look at the route.
            mark_loopback(event);
            if config!(event_details) != 0 || event.flags & flag::LOOPBACK == 0 {
                device = self.route_device();
            }
            event.hook = hook::LOCAL_OUT;
            event.flags |= flag::OUT;
        } else if has_entry {
            event.hook = hook::UNKNOWN;
            if event.place < hook::OPENVSWITCH {
                event.hook = confirmed_at(self.address, device, self.route_device());
                if event.hook == hook::POST_ROUTING {
                    event.flags |= flag::OUT;
                }
            }
        } else {
            event.hook = hook::PRE_ROUTING;
        }
        if device != 0 {
            if device == loopback {
                event.flags |= flag::LOOPBACK;
            }
            if config!(event_details) != 0 {
                event.ifindex = read(device + u64::from(config!(dev_ifindex)));
                event.device = read(device + u64::from(config!(dev_name)));
            }
        }
    }

    /// Corrects hook, direction and length for a packet that conntrack met without a hook of netfilter's.
    #[inline(always)]
    pub fn describe_place(&self, event: &mut LossEvent) {
        let place = event.place;
        if place < hook::OPENVSWITCH {
            return;
        }
        event.hook = place;
        if place == hook::TC_EGRESS {
            event.flags |= flag::OUT;
        }
        if config!(event_details) != 0 {
            event.length = event.length.wrapping_sub(before_network_header(self.address) as u32);
        }
    }

    /// Fills in the tuple, from the packet's own headers.
    #[inline(always)]
    pub fn describe_tuple(&self, event: &mut LossEvent) {
        describe_from_headers(self.address, event);
    }
}

/// Fills in the tuple from a packet's headers. On a stack frame of its own: the caller's is nearly full.
#[inline(never)]
fn describe_from_headers(skb: u64, event: &mut LossEvent) {
    let mut head = MaybeUninit::<[u64; HEAD_WORDS]>::uninit();
    let block = head.as_mut_ptr();
    // SAFETY: the block is as large as the read, and user space checked both offsets against HEAD_SPAN.
    let start = unsafe {
        read_words(block, skb + u64::from(config!(head_span)));
        field::<u64, HEAD_WORDS>(block, config!(head_head))
            + u64::from(field::<u16, HEAD_WORDS>(block, config!(head_network_header)))
    };
    let mut header = MaybeUninit::<[u64; HEADER_WORDS]>::uninit();
    let block = header.as_mut_ptr();
    // SAFETY: the block is as large as the read, and all offsets below are constants inside it.
    unsafe {
        read_words(block, start);
        let first: u8 = field(block, 0);
        let transport: u64;
        match first >> 4 {
            4 => {
                event.family = IPV4;
                event.proto = field(block, 9);
                copy4(&mut event.src, field(block, 12));
                copy4(&mut event.dst, field(block, 16));
                let length = (first & 15) * 4;
                transport =
                    if length == 20 { field_unaligned(block) } else { read(start + u64::from(length)) };
            }
            6 => {
                event.family = IPV6;
                event.src = words(field(block, 8), field(block, 16));
                event.dst = words(field(block, 24), field(block, 32));
                let mut next: u8 = field(block, 6);
                let mut at = start + 40;
                // Hop-by-hop, routing and destination options come before the transport header.
                for _ in 0..4 {
                    if next != 0 && next != 43 && next != 60 {
                        break;
                    }
                    let option: u16 = read(at);
                    next = option as u8;
                    at += (u64::from(option >> 8) + 1) * 8;
                }
                event.proto = next;
                transport = if at == start + 40 { field(block, 40) } else { read(at) };
            }
            _ => return,
        }
        event.flags |= flag::TUPLE;
        ports(transport, event);
    }
}

/// The hook of a packet that holds an entry: where entries are confirmed, LOCAL_IN or POST_ROUTING; unknown where the packet
/// doesn't tell. `skb_iif` is set by __netif_receive_skb_core (net/core/dev.c) and vrf_ip_rcv (drivers/net/vrf.c) to where
/// the packet came in, `dev` by ip_output to where it leaves. A route to this host is over the loopback device, or over the
/// VRF itself (ip_rt_get_dev, net/ipv4/route.c; ip6_rt_get_dev_rcu, net/ipv6/route.c). On a stack frame of its own.
#[inline(never)]
fn confirmed_at(skb: u64, device: u64, route: u64) -> u8 {
    if config!(skb_iif) == NONE {
        return hook::UNKNOWN;
    }
    let came_by: u32 = read(skb + u64::from(config!(skb_iif)));
    if came_by != read(device + u64::from(config!(dev_ifindex))) {
        // Another than the one it came by, or it didn't come by any.
        return hook::POST_ROUTING;
    }
    if route == 0 {
        return hook::UNKNOWN;
    }
    let is_vrf = config!(dev_l3mdev) != NONE && read::<u64>(device + u64::from(config!(dev_l3mdev))) != 0;
    // A router with one arm sends packets out where they came in.
    if route != device || is_vrf { hook::LOCAL_IN } else { hook::UNKNOWN }
}

/// How many bytes of a packet come before its network header: those of the link layer, if they are part of it at this moment.
#[inline(never)]
fn before_network_header(skb: u64) -> u64 {
    let mut block = MaybeUninit::<[u64; HEAD_WORDS]>::uninit();
    let block = block.as_mut_ptr();
    // SAFETY: the block is as large as the read, and user space checked both offsets against HEAD_SPAN.
    unsafe {
        read_words(block, skb + u64::from(config!(head_span)));
        let data: u64 = read(skb + u64::from(config!(skb_data)));
        (field::<u64, HEAD_WORDS>(block, config!(head_head))
            + u64::from(field::<u16, HEAD_WORDS>(block, config!(head_network_header))))
        .wrapping_sub(data)
    }
}

/// Eight bytes at offset 20: two aligned halves, since the verifier knows only aligned stack reads.
#[inline(always)]
unsafe fn field_unaligned(block: *const [u64; HEADER_WORDS]) -> u64 {
    // SAFETY: 20..28 lies inside the block.
    unsafe {
        u64::from(field::<u32, HEADER_WORDS>(block, 20))
            | u64::from(field::<u32, HEADER_WORDS>(block, 24)) << 32
    }
}

#[inline(always)]
fn copy4(to: &mut [u8; 16], from: u32) {
    *to = words(u64::from(from), 0);
}

#[inline(always)]
fn words(low: u64, high: u64) -> [u8; 16] {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { core::mem::transmute([low, high]) }
}

/// The first eight bytes of the transport header.
#[inline(always)]
fn ports(transport: u64, event: &mut LossEvent) {
    match event.proto {
        TCP | UDP | SCTP | DCCP | UDPLITE => {
            event.sport = (transport as u16).swap_bytes();
            event.dport = ((transport >> 16) as u16).swap_bytes();
        }
        ICMP | ICMPV6 => {
            event.icmp = [transport as u8, (transport >> 8) as u8];
            event.sport = ((transport >> 32) as u16).swap_bytes();
        }
        _ => {}
    }
}

/// Fills the event's tuple from the entry's original direction. On a stack frame of its own: the caller's is nearly full.
#[inline(never)]
pub fn describe_from_entry(entry: u64, event: &mut LossEvent) {
    let tuple: [u64; 5] = read(entry + u64::from(config!(ct_tuple)));
    describe_from_tuple(&tuple, event);
}

/// Fills the event's tuple from a `struct nf_conntrack_tuple` (40 bytes, stable: see docs/how-it-works.md).
#[inline(always)]
pub fn describe_from_tuple(tuple: &[u64; 5], event: &mut LossEvent) {
    let (family, source) = ((tuple[2] >> 16) as u16, tuple[2] as u16);
    let (port, proto) = ((tuple[4] >> 32) as u16, (tuple[4] >> 48) as u8);
    // dst.u3 starts at byte 20, so it straddles the words.
    let low = tuple[2] >> 32 | tuple[3] << 32;
    let high = tuple[3] >> 32 | tuple[4] << 32;
    if family == 2 {
        event.family = IPV4;
        event.src = words(u64::from(tuple[0] as u32), 0);
        event.dst = words(u64::from(low as u32), 0);
    } else {
        event.family = IPV6;
        event.src = words(tuple[0], tuple[1]);
        event.dst = words(low, high);
    }
    event.proto = proto;
    event.flags |= flag::TUPLE;
    event.sport = source.swap_bytes();
    if proto == ICMP || proto == ICMPV6 {
        // dst.u.icmp is { type, code }, src.u.icmp the id.
        event.icmp = [port as u8, (port >> 8) as u8];
    } else if matches!(proto, TCP | UDP | SCTP | DCCP | UDPLITE) {
        event.dport = port.swap_bytes();
    } else {
        event.sport = 0;
    }
}

/// Marks a flow as loopback if its destination is: an entry remembers no device.
#[inline(always)]
pub fn mark_loopback(event: &mut LossEvent) {
    const ONE: u64 = 1u64.to_be();
    // SAFETY: 16 bytes of plain data, aligned to 8 in the event.
    let [high, low] = unsafe { core::ptr::read((&raw const event.dst).cast::<[u64; 2]>()) };
    let is = if event.family == IPV4 { high as u8 == 127 } else { high == 0 && low == ONE };
    if is {
        event.flags |= flag::LOOPBACK;
    }
}

/// Fills in the reply direction of an entry.
///
/// # Safety
/// `to` must point into a reserved record.
#[inline(always)]
pub unsafe fn describe_reply(tuple: &[u64; 5], to: *mut EntryPart) {
    let (family, source) = ((tuple[2] >> 16) as u16, tuple[2] as u16);
    let (port, proto) = ((tuple[4] >> 32) as u16, (tuple[4] >> 48) as u8);
    let low = tuple[2] >> 32 | tuple[3] << 32;
    let high = tuple[3] >> 32 | tuple[4] << 32;
    // SAFETY: the caller's.
    unsafe {
        if family == 2 {
            (*to).reply_src = words(u64::from(tuple[0] as u32), 0);
            (*to).reply_dst = words(u64::from(low as u32), 0);
        } else {
            (*to).reply_src = words(tuple[0], tuple[1]);
            (*to).reply_dst = words(low, high);
        }
        if matches!(proto, TCP | UDP | SCTP | DCCP | UDPLITE) {
            (*to).reply_sport = source.swap_bytes();
            (*to).reply_dport = port.swap_bytes();
        }
    }
}

/// The port a flow is counted under: the destination port, or type and code for ICMP.
#[inline(always)]
pub fn service_port(event: &LossEvent) -> u16 {
    if event.proto == ICMP || event.proto == ICMPV6 {
        u16::from(event.icmp[0]) << 8 | u16::from(event.icmp[1])
    } else {
        event.dport
    }
}

/// The same from the last word of a tuple, without an event: (proto, port).
#[inline(always)]
pub fn service_of_tuple(last: u64) -> (u8, u16) {
    let proto = (last >> 48) as u8;
    let port = ((last >> 32) as u16).swap_bytes();
    // For ICMP the two bytes are type and code, in this order: big-endian gives type << 8 | code too.
    (proto, port)
}
