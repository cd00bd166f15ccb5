//! The maps. Slots and control are shared memory that user space mmaps, so that reading them makes no bpf() call.
//! Sizes given here are upper bounds for tests; user space sets those that depend on the host.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use ctwatch_common::netns::NetCpu;
use ctwatch_common::slot::{Control, SLOTS, Slot};

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The exact counters.
#[map]
pub static COUNTERS: Array<Slot> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);

/// Totals and switches.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Who claimed a slot: BPF_NOEXIST makes the claim atomic (5.10 has no compare-and-swap).
#[map]
pub static CLAIMS: HashMap<u32, u64> = HashMap::with_max_entries(SLOTS, 0);

/// Every loss, one event.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(2 << 20, 0);

/// What is accounted for, by address of `struct net`.
#[map]
pub static NETS: PerCpuHashMap<u64, NetCpu> = PerCpuHashMap::with_max_entries(1024, 0);

/// What a CPU knows of itself.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cpu {
    /// This element's own address, and the per-CPU offset found by it.
    pub own: u64,
    pub offset: u64,
    /// The packet the first kfree_skb program took.
    pub packet: u64,
    /// Where early_drop found no victim: the packet of that context is about to be dropped.
    pub marks: [Mark; MARKS],
}

/// How many contexts of a CPU can be between early_drop and the drop at once: a task, softirqs, preempted tasks.
pub const MARKS: usize = 4;

/// One such context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Mark {
    /// Its stack pointer; 0 if free.
    pub stack: u64,
    /// When, in jiffies: a context that took another way out leaves its mark behind.
    pub since: u64,
}

#[map]
pub static CPU: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);

/// Where the address of [`CPU`] itself is turned into a number.
#[map]
pub static SCRATCH: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// One entry that `nf_ct_delete` removed, perhaps for `early_drop`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Victim {
    pub tuple: [u64; 5],
}

/// The last victims of one context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Victims {
    pub net: u64,
    pub seen: u64,
    pub last: [Victim; 4],
}

/// Victims by the stack of their context (its aligned base).
#[map]
pub static VICTIMS: HashMap<u64, Victims> = HashMap::with_max_entries(4096, 0);

/// What a new flow's entry probe keeps for its return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pending {
    pub net: u64,
    pub skb: u64,
    pub tuple: [u64; 5],
}

/// Pending new flows, by stack pointer at entry.
#[map]
pub static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(4096, 0);

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
