//! The maps that are shared memory: exact counters and the control page. Reading them makes no system call.
//! Unsafe lives here: three mappings, atomic access to integers that the kernel adds to.

use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use ctwatch_common::cause::CAUSES;
use ctwatch_common::door::{DOORS, Door};
use ctwatch_common::slot::{
    BANKS, Control, FLOW_SLOTS, FlowRoom, FlowSlot, LOSS_SLOTS, LossRoom, LossSlot, RoomState,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::banks::{Banks, Counts, Kind, Memory};
pub use super::banks::{FlowTotals, Taken};
use super::grace::Grace;
use crate::children::threads;
use crate::model::SlotSample;

/// How often to look whether a bank is filling,
const POLL: Duration = Duration::from_millis(100);
/// and how often while it fills by more than a thirty-second of its slots at a time.
const SOON: Duration = Duration::from_millis(10);

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

// SAFETY: the memory is shared with the kernel anyway; all access is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// An integer that programs change meanwhile.
///
/// # Safety
/// `place` must be inside a mapping that outlives the result.
unsafe fn shared<'a>(place: *const u64) -> &'a AtomicU64 {
    // SAFETY: the caller's; fields of these layouts are aligned, and nobody but atomics accesses them here.
    unsafe { AtomicU64::from_ptr(place.cast_mut()) }
}

/// A copy of something that is made of u64 alone: each of them whole, though not all of the same instant.
///
/// # Safety
/// As of [`shared`], for all of `T`.
unsafe fn copy<T: Copy>(from: *const T) -> T {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let mut copy = MaybeUninit::<T>::uninit();
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: the caller's, and inside the copy.
        unsafe {
            let value = shared(from.cast::<u64>().add(word)).load(Ordering::Relaxed);
            copy.as_mut_ptr().cast::<u64>().add(word).write(value);
        }
    }
    // SAFETY: every word was written, and any value of an integer is one.
    unsafe { copy.assume_init() }
}

/// Clears something that is made of u64 alone.
///
/// # Safety
/// As of [`copy`].
unsafe fn zero<T: Copy>(place: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: the caller's.
        unsafe { shared(place.cast::<u64>().add(word)).store(0, Ordering::Relaxed) };
    }
}

/// What programs and user space tell each other.
struct ControlPage(Mapping);

impl ControlPage {
    fn read(&self) -> Control {
        // SAFETY: inside the mapping, integers only.
        unsafe { copy(self.0.start.as_ptr().cast::<Control>()) }
    }

    fn set(&self, place: impl FnOnce(*mut Control) -> *mut u64, value: u64) {
        // SAFETY: `place` picks a field of the mapped control page.
        unsafe { shared(place(self.0.start.as_ptr().cast::<Control>())).store(value, Ordering::Relaxed) }
    }
}

/// The mapped counters. A slot is integers, and a torn read can't happen within an aligned u64.
struct Slots {
    losses: Mapping,
    flows: Mapping,
}

impl Slots {
    fn loss(&self, index: u32) -> *mut LossSlot {
        assert!(index < BANKS * LOSS_SLOTS);
        let room = self.losses.start.as_ptr().cast::<LossRoom>();
        // SAFETY: inside the mapping.
        unsafe { (&raw mut (*room).slots).cast::<LossSlot>().add(index as usize) }
    }

    fn flow(&self, index: u32) -> *mut FlowSlot {
        assert!(index < BANKS * FLOW_SLOTS);
        let room = self.flows.start.as_ptr().cast::<FlowRoom>();
        // SAFETY: inside the mapping.
        unsafe { (&raw mut (*room).slots).cast::<FlowSlot>().add(index as usize) }
    }

    fn state(&self, kind: Kind) -> *mut RoomState {
        // SAFETY: projections inside the mappings.
        unsafe {
            match kind {
                Kind::Losses => &raw mut (*self.losses.start.as_ptr().cast::<LossRoom>()).state,
                Kind::Flows => &raw mut (*self.flows.start.as_ptr().cast::<FlowRoom>()).state,
            }
        }
    }
}

impl Memory for Slots {
    fn slots(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Losses => LOSS_SLOTS,
            Kind::Flows => FLOW_SLOTS,
        }
    }

    fn room(&self, kind: Kind) -> RoomState {
        // SAFETY: inside the mapping, integers only.
        unsafe { copy(self.state(kind)) }
    }

    fn activate(&self, kind: Kind, bank: usize) {
        // A thread that sees this must also see what was cleared in that bank.
        fence(Ordering::Release);
        let first = bank as u64 * u64::from(self.slots(kind));
        // SAFETY: inside the mapping.
        unsafe { shared(&raw const (*self.state(kind)).active).store(first, Ordering::Relaxed) }
    }

    fn slot(&self, kind: Kind, index: u32) -> Counts {
        // SAFETY: inside the mapping.
        unsafe {
            match kind {
                Kind::Losses => {
                    let LossSlot { key, count } = copy(self.loss(index));
                    (key, [count, 0, 0])
                }
                Kind::Flows => {
                    let FlowSlot { key, inserts, deletes, failed } = copy(self.flow(index));
                    (key, [inserts, deletes, failed])
                }
            }
        }
    }

    fn clear(&self, kind: Kind, index: u32) {
        // SAFETY: inside the mapping.
        unsafe {
            match kind {
                Kind::Losses => zero(self.loss(index)),
                Kind::Flows => zero(self.flow(index)),
            }
        }
    }

    fn clear_claimed(&self, kind: Kind, bank: usize) {
        // SAFETY: inside the mapping; the bank's number is checked.
        unsafe { shared(&raw const (*self.state(kind)).claimed[bank]).store(0, Ordering::Relaxed) }
    }
}

/// All who read or empty the banks do so one at a time.
type SharedBanks = Arc<Mutex<Banks<Slots>>>;

fn lock(banks: &SharedBanks) -> MutexGuard<'_, Banks<Slots>> {
    banks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads flow counters from another thread, for as long as it likes: the memory stays.
#[derive(Clone)]
pub struct FlowReader(SharedBanks);

impl FlowReader {
    /// The flow counters of this netns (by inode number), as they are now.
    #[must_use]
    pub fn read(&self, inode: u32) -> Vec<SlotSample> {
        let mut flows = lock(&self.0).flows();
        flows.retain(|slot| slot.key.netns == inode);
        flows
    }
}

/// The shared memory of a loaded object.
pub struct Shared {
    banks: SharedBanks,
    control: ControlPage,
    /// Dropped, it ends the thread that empties the banks.
    _stop: Sender<()>,
}

impl Shared {
    /// Maps all three, and sees to it that slots never run out.
    pub fn new(losses: impl AsFd, flows: impl AsFd, control: impl AsFd) -> Result<Self> {
        let grace = Grace::new(&control);
        let control = ControlPage(Mapping::new(control, size_of::<Control>(), "control page")?);
        let slots = Slots {
            losses: Mapping::new(losses, size_of::<LossRoom>(), "counters of losses")?,
            flows: Mapping::new(flows, size_of::<FlowRoom>(), "counters of flows")?,
        };
        let banks = Arc::new(Mutex::new(Banks::new(slots)));
        let (stop, stopped) = channel();
        let of_thread = Arc::clone(&banks);
        threads::start("counters", 128 << 10, move || keep_room(&of_thread, &grace, &stopped))
            .context("starting the thread that gives slots back")?;
        Ok(Self { banks, control, _stop: stop })
    }

    /// For a census, which runs beside the watch.
    #[must_use]
    pub fn flow_reader(&self) -> FlowReader {
        FlowReader(Arc::clone(&self.banks))
    }

    /// The control page as it is now.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.read()
    }

    /// From here on losses count. What was on its way when the last baseline was noted may be part of it: the program that
    /// noted it left its time, a tick early at most.
    pub fn start_watching(&self) {
        let since = self.control().jiffies + 1;
        // SAFETY: a projection inside the mapping.
        self.control.set(|control| unsafe { &raw mut (*control).watching }, since);
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

    /// Where else than in nf_hook_slow the programs look at packets that are freed.
    pub fn set_doors(&self, doors: &[Door]) {
        let set = |index: usize, door: Door| {
            // SAFETY: projections inside the mapping, both.
            self.control.set(|control| unsafe { &raw mut (*control).doors[index].start }, door.start);
            // SAFETY: as above.
            self.control.set(|control| unsafe { &raw mut (*control).doors[index].span }, door.span);
        };
        // The first one ends the list until the others are there.
        set(0, Door::NONE);
        for index in (0..DOORS).rev() {
            set(index, doors.get(index).copied().unwrap_or(Door::NONE));
        }
    }

    /// Losses in namespaces for which the programs had no room.
    #[must_use]
    pub fn crowded(&self) -> u64 {
        self.control().crowded
    }

    /// Namespaces whose inode number found no room for another generation.
    #[must_use]
    pub fn unnumbered(&self) -> u64 {
        self.control().unnumbered
    }

    /// All counters. What keys without a slot had counted is handed over once.
    #[must_use]
    pub fn take(&self) -> Taken {
        lock(&self.banks).take()
    }

    /// Totals of flows.
    #[must_use]
    pub fn flows(&self) -> Vec<SlotSample> {
        lock(&self.banks).flows()
    }

    /// The same by key, for the next programs.
    #[must_use]
    pub fn flow_totals(&self) -> FlowTotals {
        lock(&self.banks).flow_totals()
    }

    /// Continues totals of flows that earlier programs counted.
    pub fn carry_on(&self, flows: FlowTotals) {
        lock(&self.banks).carry_on(flows);
    }

    /// The flows of this netns (by inode number) begin at 0 again: it is another one now.
    pub fn restart_flows(&self, inode: u32) {
        lock(&self.banks).restart_flows(inode);
    }

    /// Totals by cause: events that did not fit the ring, losses that found no slot, and uncertain claims.
    #[must_use]
    pub fn totals(&self) -> ([u64; CAUSES], [u64; CAUSES], u64) {
        let (mut overflow, _) = lock(&self.banks).overflow_at_sample();
        let control = self.control();
        for (sum, more) in overflow.iter_mut().zip(control.overflow) {
            *sum += more;
        }
        (control.lost_events, overflow, control.ambiguous)
    }

    /// Inserts and deletes that found no slot.
    #[must_use]
    pub fn flows_overflow(&self) -> u64 {
        let (_, overflow) = lock(&self.banks).overflow_at_sample();
        overflow + self.control().flows_overflow.iter().sum::<u64>()
    }
}

/// Empties banks before they are full, until told to stop. A thread of its own: neither a long sample nor a slow reader of
/// the output may keep it from that, and it may wait for programs to end.
fn keep_room(banks: &SharedBanks, grace: &Grace, stop: &Receiver<()>) {
    let mut pause = POLL;
    let mut claimed_before = [0; Kind::ALL.len()];
    while matches!(stop.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
        let filling = {
            let mut banks = lock(banks);
            let filling = Kind::ALL.map(|kind| banks.is_filling(kind));
            for kind in Kind::ALL.into_iter().filter(|kind| filling[*kind as usize]) {
                banks.flip(kind);
            }
            filling
        };
        if filling.contains(&true) {
            let Ok(()) = grace.wait(stop) else { return };
            for kind in Kind::ALL.into_iter().filter(|kind| filling[*kind as usize]) {
                lock(banks).harvest(kind);
            }
        }
        let is_busy = {
            let banks = lock(banks);
            let claimed = Kind::ALL.map(|kind| banks.claimed(kind));
            let before = std::mem::replace(&mut claimed_before, claimed);
            let more = |kind: Kind| claimed[kind as usize].saturating_sub(before[kind as usize]);
            Kind::ALL.into_iter().any(|kind| banks.is_busy(kind, more(kind)))
        };
        pause = if is_busy || filling.contains(&true) { SOON } else { POLL };
    }
}
