//! SIGINT and SIGTERM where something has to be put in order first: a reader of recordings stops reading at once, and ends.
//! One that doesn't, because whoever it writes to takes nothing, is ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::atomic_outputs::remove_drafts;
use super::event_loop;
use super::live::Shutdown;
use crate::error::Exit;
use crate::record::stop_reading;
use crate::stderr;

/// What it takes to put things in order.
const GRACE: Duration = Duration::from_millis(500);

/// Whether SIGINT or SIGTERM came: from here on they don't end the process by themselves. It ends with this exit code if it
/// goes on.
pub(super) fn interrupted(exit: Exit) -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&flag);
    let events = event_loop()?;
    let mut shutdown = events.block_on(async { Shutdown::new() })?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            events.block_on(shutdown.wait());
            raised.store(true, Ordering::Relaxed);
            stop_reading();
            std::thread::sleep(GRACE);
            if remove_drafts() {
                stderr::line("interrupted; incomplete files were removed");
                stderr::settle();
            }
            std::process::exit(exit as i32);
        })
        .context("starting a thread that waits for signals")?;
    Ok(flag)
}
