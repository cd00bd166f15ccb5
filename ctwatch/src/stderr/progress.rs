//! What a command is doing, on a terminal, once that takes longer than a moment. Nothing of it reaches a pipe or a file.
//! It stands in the last line, and is gone when the command has something to say.

use std::io::IsTerminal as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{harmless, lines, settle};
use crate::text::{COLUMNS, shorten};

/// What is over by then needs no words.
const MOMENT: Duration = Duration::from_secs(1);
/// Between two looks at how far it is.
const EVERY: Duration = Duration::from_millis(250);

/// Shows what goes on until it is dropped.
#[derive(Debug)]
pub struct Progress {
    thread: Option<JoinHandle<()>>,
    over: Arc<(Mutex<bool>, Condvar)>,
}

impl Progress {
    /// Shows what this says, refreshed four times a second. Nothing where stderr is no terminal.
    #[must_use = "it ends when it is dropped"]
    pub fn show(doing: impl Fn() -> String + Send + 'static) -> Self {
        let over = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&over);
        let thread = || {
            let thread = std::thread::Builder::new().name("progress".to_owned()).stack_size(128 << 10);
            thread.spawn(move || follow(&doing, &shared)).ok()
        };
        Self { thread: std::io::stderr().is_terminal().then(thread).flatten(), over }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        *self.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.over.1.notify_all();
        let _ = thread.join();
    }
}

fn follow(doing: &impl Fn() -> String, over: &(Mutex<bool>, Condvar)) {
    let began = Instant::now();
    let mut pause = MOMENT;
    let mut is_shown = false;
    loop {
        let guard = over.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = over.1.wait_timeout_while(guard, pause, |over| !*over);
        let is_over = *waited.unwrap_or_else(PoisonError::into_inner).0;
        if is_over {
            break;
        }
        let text = format!("{} ({} s)", doing(), began.elapsed().as_secs());
        if let Some(mut lines) = lines() {
            // A full last column would begin another line.
            lines.pass(&shorten(&harmless(&text), COLUMNS - 2));
            is_shown = true;
        }
        pause = EVERY;
    }
    if is_shown {
        // What is written to stdout next may go to the same terminal.
        if let Some(mut lines) = lines() {
            let empty = lines.without_passing();
            lines.put(&empty);
        }
        settle();
    }
}
