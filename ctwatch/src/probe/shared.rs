//! The two maps that are shared memory: exact counters and the control page. Reading them makes no system call.
//! Unsafe lives here: two mappings, volatile reads of integers that the kernel adds to.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use anyhow::{Context, Result};
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::{Control, KIND_FLOWS, SLOTS, Slot, SlotKey};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::model::SlotSample;

/// A mapping of an array map.
struct Mapping {
    start: NonNull<core::ffi::c_void>,
    length: NonZeroUsize,
}

impl Mapping {
    fn new(map: impl AsFd, length: usize, what: &str) -> Result<Self> {
        let length = NonZeroUsize::new(length.next_multiple_of(4096)).context("an empty map")?;
        // SAFETY: a fresh mapping of a map's memory, at an address the kernel chooses.
        let start = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0)
        }
        .with_context(|| format!("mapping the {what} into memory"))?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made above; nothing points into it any more.
        let _ = unsafe { munmap(self.start, self.length.get()) };
    }
}

// SAFETY: the memory is shared with the kernel anyway; all access is volatile.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A slot of the mapped counters.
fn read_slot(slots: &Mapping, index: u32) -> Slot {
    debug_assert!(index < SLOTS);
    // SAFETY: inside the mapping; a slot is integers, and a torn read can't happen within an aligned u64.
    unsafe {
        let slot = slots.start.as_ptr().cast::<Slot>().add(index as usize);
        Slot {
            key: (&raw const (*slot).key).read_volatile(),
            count: (&raw const (*slot).count).read_volatile(),
            deletes: (&raw const (*slot).deletes).read_volatile(),
            failed: (&raw const (*slot).failed).read_volatile(),
        }
    }
}

fn sample_of(slot: Slot) -> SlotSample {
    SlotSample {
        key: SlotKey::unpack(slot.key),
        count: slot.count,
        deletes: slot.deletes,
        failed: slot.failed,
    }
}

/// Reads flow counters from another thread, for as long as it likes: the memory stays.
#[derive(Clone)]
pub struct FlowReader(Arc<Mapping>);

impl FlowReader {
    /// The flow slots of this netns (by inode number), as they are now.
    #[must_use]
    pub fn read(&self, inode: u32) -> Vec<SlotSample> {
        (0..SLOTS)
            .map(|index| read_slot(&self.0, index))
            .filter(|slot| slot.key != 0)
            .map(sample_of)
            .filter(|slot| slot.key.kind == KIND_FLOWS && slot.key.netns == inode)
            .collect()
    }
}

/// The shared memory of a loaded object.
pub struct Shared {
    slots: Arc<Mapping>,
    control: Mapping,
    /// Slots that hold a key, in the order they were found.
    used: Vec<u32>,
    /// What `claimed` said when `used` was last brought up to date.
    claimed: u64,
}

impl Shared {
    /// Maps both.
    pub fn new(counters: impl AsFd, control: impl AsFd) -> Result<Self> {
        Ok(Self {
            slots: Arc::new(Mapping::new(counters, SLOTS as usize * size_of::<Slot>(), "counters")?),
            control: Mapping::new(control, size_of::<Control>(), "control page")?,
            used: Vec::new(),
            claimed: 0,
        })
    }

    fn slot(&self, index: u32) -> Slot {
        read_slot(&self.slots, index)
    }

    /// For a census, which runs beside the watch.
    #[must_use]
    pub fn flow_reader(&self) -> FlowReader {
        FlowReader(Arc::clone(&self.slots))
    }

    /// The control page as it is now.
    #[must_use]
    pub fn control(&self) -> Control {
        // SAFETY: inside the mapping, integers only.
        unsafe { self.control.start.as_ptr().cast::<Control>().read_volatile() }
    }

    fn set(&self, place: impl FnOnce(*mut Control) -> *mut u64, value: u64) {
        // SAFETY: `place` picks a field of the mapped control page.
        unsafe { place(self.control.start.as_ptr().cast::<Control>()).write_volatile(value) }
    }

    /// From here on losses count.
    pub fn start_watching(&self) {
        // SAFETY: a projection inside the mapping.
        self.set(|control| unsafe { &raw mut (*control).watching }, 1);
    }

    /// The netns that the sync program found last.
    #[must_use]
    pub fn sync_net(&self) -> u64 {
        self.control().sync_net
    }

    /// The id of that netns.
    #[must_use]
    pub fn sync_id(&self) -> u32 {
        self.control().sync_id as u32
    }

    /// Losses in namespaces for which the programs had no room.
    #[must_use]
    pub fn crowded(&self) -> u64 {
        self.control().crowded
    }

    /// All slots in use. Looks for new ones only when the kernel has claimed some since.
    pub fn slots(&mut self) -> Vec<SlotSample> {
        let claimed = self.control().claimed;
        if claimed != self.claimed {
            self.used = (0..SLOTS).filter(|index| self.slot(*index).key != 0).collect();
            // A slot's key is written before `claimed` moves, so none of these is missed.
            self.claimed = claimed;
        }
        self.used.iter().map(|index| sample_of(self.slot(*index))).collect()
    }

    /// Totals by cause: events that did not fit the ring, losses that found no slot, and uncertain claims.
    #[must_use]
    pub fn totals(&self) -> ([u64; CAUSES], [u64; CAUSES], u64) {
        let control = self.control();
        (control.lost_events, control.overflow, control.ambiguous)
    }
}
