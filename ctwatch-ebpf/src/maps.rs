//! The maps. Slots and control are shared memory that user space mmaps, so that reading them makes no bpf() call.
//! Sizes given here are upper bounds for tests; user space sets those that depend on the host.

use crate::withheld::Withheld;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use ctwatch_common::classify::Counters;
use ctwatch_common::config::MAX_CPUS;
use ctwatch_common::event::OwnerPart;
use ctwatch_common::netns::NetCpu;
use ctwatch_common::slot::{Control, FlowRoom, LossRoom};

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// BPF_ANY: a map's insert may replace what is there.
pub const ANY: u64 = 0;

/// The exact counters of losses.
#[map]
pub static LOSSES: Array<LossRoom> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The exact counters of flows.
#[map]
pub static FLOWS: Array<FlowRoom> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Totals and switches.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Slots whose key is being written: BPF_NOEXIST makes the claim atomic (5.10 has no compare-and-swap). As many as there
/// may be contexts that find a new key at the same instant.
#[map]
pub static CLAIMS: HashMap<u32, u32> = HashMap::with_max_entries(2048, 0);

/// Records for user space: losses, and what else happens one by one.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// What is accounted for, by address of `struct net`: namespaces that were there at the start, and those that lost something.
#[map]
pub static NETS: PerCpuHashMap<u64, NetCpu> = PerCpuHashMap::with_max_entries(1024, 0);

/// The record of a netns for which [`NETS`] has no room, for as long as one loss takes.
#[map]
pub static CROWD: PerCpuArray<NetCpu> = PerCpuArray::with_max_entries(1, 0);

/// What CPUs that were offline at the start had counted in namespaces that were there, unless it was nothing: user space
/// fills it in. By [`ctwatch_common::netns::late_key`].
#[map]
pub static LATE_BASES: HashMap<u64, Counters> = HashMap::with_max_entries(1, 0);

/// The generation of an inode number: how many netns had it and are gone. One that finds no room keeps its number, and that
/// is counted: whatever made room would be the number of another netns, which may be there.
#[map]
pub static GENERATIONS: HashMap<u32, u32> = HashMap::with_max_entries(16_384, 0);

/// The state of one CPU that belongs to no netns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cpu {
    /// What to add to a per-CPU pointer to reach this CPU's copy; 0 until it is found.
    pub offset: u64,
    /// Scratch space in which a pointer is turned into a number.
    pub scratch: u64,
    /// The packet the first kfree_skb program took.
    pub packet: u64,
    /// The stack of the context that evicted an entry last, and when that was: its new flow is about to be confirmed.
    pub evicting_stack: u64,
    pub evicting_at: u64,
    /// Where a socket's owner is assembled: it would not fit the stack.
    pub noted: SocketOwner,
    /// Contexts in which early_drop found no victim: their packets are about to be dropped.
    pub marks: [Mark; MARKS],
    /// Contexts whose helper found no room for an expectation: their packets are about to be dropped.
    pub expecting: [Mark; MARKS],
    /// When counts were last reconciled here, in jiffies: what had been counted and not freed by then is counted already.
    pub reconciled: u64,
    /// A packet of which a context with a mark will tell whether it was refused.
    pub withheld: Withheld,
}

/// How many contexts of a CPU can be between early_drop and the drop at a time: a task, softirqs, preempted tasks.
pub const MARKS: usize = 4;

/// One such context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Mark {
    /// Its stack pointer; 0 if free.
    pub stack: u64,
    /// When it was made, in jiffies: a context that doesn't end in a drop leaves its mark behind.
    pub since: u64,
}

#[map]
pub static CPU: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);

/// [`Cpu::offset`] of each CPU.
#[map]
pub static OFFSETS: Array<u64> = Array::with_max_entries(MAX_CPUS, 0);

/// An entry that `nf_ct_delete` removed, perhaps for `early_drop`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Victim {
    pub original: [u64; 5],
    pub reply: [u64; 5],
    pub status: u32,
    pub left: i32,
    /// Its struct nf_conntrack_zone.
    pub zone: u32,
    pub tcp_state: u16,
    /// Whether it has been counted as evicted by early_drop.
    pub counted: u16,
}

/// How many victims of one context are remembered (a power of two): early_drop empties one hash chain.
pub const REMEMBERED: usize = 8;

/// The last victims of one context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Victims {
    pub net: u64,
    pub seen: u64,
    pub last: [Victim; REMEMBERED],
}

/// No victim yet.
pub static NOBODY: Victims = Victims {
    net: 0,
    seen: 0,
    last: [Victim { original: [0; 5], reply: [0; 5], status: 0, left: 0, zone: 0, tcp_state: 0, counted: 0 };
        REMEMBERED],
};

/// Victims by the stack of their context (its aligned base). Every task in whose context an entry was ever deleted has one,
/// and nothing tells that the task is gone: the least recently used make room.
#[map]
pub static VICTIMS: LruHashMap<u64, Victims> = LruHashMap::with_max_entries(1024, 0);

/// What an entry probe keeps for the return probe.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pending {
    pub net: u64,
    pub skb: u64,
    pub tuple: [u64; 5],
    /// The new flow's struct nf_conntrack_zone; 0 if unknown.
    pub zone: u64,
}

/// Pending new flows, by stack pointer at entry.
#[map]
pub static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(4096, 0);

/// Packets about to be freed that the init_conntrack pair has reported, by address.
#[map]
pub static REPORTED: LruHashMap<u64, u8> = LruHashMap::with_max_entries(4096, 0);

/// An insert whose outcome is still open.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Inserting {
    pub skb: u64,
    pub entry: u64,
    /// When that began, in jiffies.
    pub since: u64,
    pub netns: u32,
    pub port: u16,
    pub proto: u8,
    pub reserved: u8,
}

/// Inserts by ctnetlink, and clashes, by stack pointer at entry. One stays behind where the kernel skipped the return probe.
#[map]
pub static INSERTING: LruHashMap<u64, Inserting> = LruHashMap::with_max_entries(1024, 0);

/// An entry that lost a clash and with it its packet, which may be freed on another CPU than the one that counted it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Clashed {
    /// A time before the kernel counted it, in jiffies.
    pub since: u64,
    /// The CPU that counted it.
    pub cpu: u64,
}

/// Such entries, by address.
#[map]
pub static CLASHED: LruHashMap<u64, Clashed> = LruHashMap::with_max_entries(4096, 0);

/// The owner of a socket, noted when its process sent the flow's first packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SocketOwner {
    /// The flow's ports and protocol, so that another socket at a reused address is not mistaken for it.
    pub flow: u64,
    pub owner: OwnerPart,
}

/// Sockets by address.
#[map]
pub static SOCKETS: LruHashMap<u64, SocketOwner> = LruHashMap::with_max_entries(8192, 0);

/// Adds to shared memory, atomically.
///
/// # Safety
/// `to` must point into a map's value.
#[inline(always)]
pub unsafe fn add<T: Copy>(to: *mut T, by: T) {
    // SAFETY: the caller's. The result must stay unused: 5.10 has no fetching atomics.
    unsafe {
        core::intrinsics::atomic_xadd::<T, T, { core::intrinsics::AtomicOrdering::Relaxed }>(to, by);
    }
}

/// The control page.
#[inline(always)]
pub fn control() -> Option<*mut Control> {
    CONTROL.get_ptr_mut(0)
}
