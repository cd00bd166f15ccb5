//! When memory goes back to the kernel: at once, not when the allocator sees fit. ctwatch runs for months on hosts that have other
//! uses for it, and a scan of all ports needs megabytes for a moment.

/// glibc's own first threshold. Left alone it follows the largest piece that was ever freed, up to 32 MiB, and what a tick needs for
/// a moment stays with the process from then on (malloc/malloc.c: `mp_.mmap_threshold`, glibc 2.36).
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Has large pieces given back whenever they are freed. Before there are threads.
pub fn give_back_large_pieces() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; the value is within what it takes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives back what is free now.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it only returns free pages to the kernel.
    unsafe {
        libc::malloc_trim(0);
    }
}
