//! The eBPF object itself, part of this binary.
//! Nothing but its bytes and how they are loaded.

use std::thread;

use anyhow::{Context, Result};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use ctwatch_common::config::{Config, MAX_CPUS};

/// Built by `cargo xtask ebpf`, committed, checked by build.rs.
static OBJECT: &[u8] = include_bytes_aligned!(env!("CTWATCH_EBPF_OBJECT"));

/// The configuration in the form aya copies into .rodata.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Frozen(Config);

// SAFETY: integers only, without padding (Config asserts its size).
unsafe impl aya::Pod for Frozen {}

/// How large those maps are that depend on the host.
#[derive(Clone, Copy, Debug)]
pub struct MapSizes {
    /// Namespaces that can have a record: see [`super::room::NetnsRoom`].
    pub netns: u32,
    /// Counts of CPUs that are offline, by netns.
    pub late_bases: u32,
}

impl MapSizes {
    /// For programs that are loaded only to see whether they can be.
    pub const SMALL: Self = Self { netns: 64, late_bases: 1 };
}

/// aya's loader. It parses the kernel's BTF while it is made, wanted or not (`EbpfLoader::new`, aya 0.14): as long as all else
/// that is read for a start, and 21 MB for as long as it keeps it.
pub struct Loader(EbpfLoader<'static>);

impl Loader {
    /// Makes one.
    fn new() -> Self {
        let mut loader = EbpfLoader::new();
        // The object needs no BTF relocation.
        loader.btf(None);
        Self(loader)
    }

    /// Makes one while something else is done. None where no thread can be had.
    pub fn beside<T>(work: impl FnOnce() -> T) -> (Option<Self>, T) {
        let made = thread::Builder::new().name("loader".to_owned()).spawn(Self::new);
        let done = work();
        let made = made.ok().map(|made| made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (made, done)
    }
}

/// Creates the maps and relocates the programs; none is in the kernel yet.
pub fn load(loader: Option<Loader>, config: &Config, sizes: MapSizes, log_level: u8) -> Result<Ebpf> {
    raise_memlock();
    let Loader(mut loader) = loader.unwrap_or_else(Loader::new);
    let frozen = Frozen(*config);
    loader
        .override_global("CONFIG", &frozen, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .map_max_entries("NETS", sizes.netns)
        .map_max_entries("LATE_BASES", sizes.late_bases.max(1))
        .map_max_entries("OFFSETS", config.cpus.clamp(1, MAX_CPUS))
        .map_max_entries("VICTIMS", victims(config.cpus))
        .map_max_entries("EVENTS", ring_bytes(config))
        // One page unless someone reads it.
        .map_max_entries("AYA_LOGS", if log_level == 0 { 4096 } else { 1 << 17 })
        .load(OBJECT)
        .context("creating the eBPF maps")
}

/// Each CPU of an LRU map takes up to 128 of its free entries for itself (kernel/bpf/bpf_lru_list.c): with enough of them none
/// that is in use has to make room.
fn victims(cpus: u32) -> u32 {
    cpus.saturating_mul(64).clamp(1024, 16_384)
}

/// The ring is mapped twice over, all of it resident once it has gone round. Without events it carries no more than the ends of
/// namespaces: room for 1,800 that are destroyed together.
fn ring_bytes(config: &Config) -> u32 {
    if config.loss_events | config.insert_events == 0 { 256 << 10 } else { 4 << 20 }
}

/// Before 5.11 maps count against RLIMIT_MEMLOCK. A refusal shows when the maps are created.
fn raise_memlock() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a live struct.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}
