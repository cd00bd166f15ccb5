//! Reading ends early: once a signal came, no recording is read any further.
//! One flag for the whole process, since SQLite asks for it from within a query.

use std::sync::atomic::{AtomicBool, Ordering};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Every reading of a recording in this process ends with [`super::Fault::Stopped`] from here on.
pub fn stop_reading() {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Whether reading is to end.
pub(super) fn is_stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}
