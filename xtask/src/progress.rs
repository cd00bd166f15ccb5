//! What a task is doing, on stderr: step n of m, its name, its seconds, and what takes long inside it. Only plain lines,
//! so a terminal and a CI log read the same; nothing here decides what is done.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// After so long without a word somebody wonders whether anything happens.
const SILENCE: Duration = Duration::from_secs(10);

thread_local! {
    /// What the lines of this thread begin with: the step it works on.
    static STEP: RefCell<String> = RefCell::new("xtask".to_owned());
}

/// The steps of a task, which know how many they are.
pub struct Steps {
    begun: AtomicUsize,
    all: usize,
}

impl Steps {
    /// A task of so many steps.
    pub fn of(all: usize) -> Steps {
        Steps { begun: AtomicUsize::new(0), all }
    }

    /// Begins the next step on this thread and says so; it lasts until what is returned is dropped.
    pub fn begin(&self, name: &str) -> Step {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let label = format!("[{number}/{}] {name}", self.all);
        eprintln!("{label}");
        let before = STEP.replace(label);
        Step { before, began: Instant::now() }
    }

    /// Does one step.
    pub fn step<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _step = self.begin(name);
        work()
    }
}

/// A step that is being worked on.
pub struct Step {
    before: String,
    began: Instant,
}

impl Drop for Step {
    fn drop(&mut self) {
        say(&format!("{:.1} s", self.began.elapsed().as_secs_f64()));
        STEP.set(std::mem::take(&mut self.before));
    }
}

/// A line about the step of this thread.
pub fn say(text: &str) {
    STEP.with_borrow(|step| eprintln!("{step}: {text}"));
}

/// Does `work`; while it says nothing, a line every ten seconds tells what `state` makes of it then.
pub fn watched<T: Send>(work: impl FnOnce() -> T + Send, state: impl Fn() -> String) -> T {
    let began = Instant::now();
    let step = STEP.with_borrow(Clone::clone);
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let working = scope.spawn(move || {
            let _done = done;
            STEP.set(step);
            work()
        });
        while let Err(RecvTimeoutError::Timeout) = is_done.recv_timeout(SILENCE) {
            say(&format!("{} ({} s)", state(), began.elapsed().as_secs()));
        }
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A number of bytes for people, in the megabytes that apt speaks of.
pub fn megabytes(bytes: u64) -> String {
    match bytes {
        0..100_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        100_000..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(megabytes(1_234), "1.2 kB");
        assert_eq!(megabytes(150_000), "0.1 MB");
        assert_eq!(megabytes(58_400_000), "58 MB");
    }

    #[test]
    fn a_step_ends_with_its_guard_and_gives_the_label_back() {
        let steps = Steps::of(2);
        let label = || STEP.with_borrow(Clone::clone);
        let before = label();
        let result = steps.step("the first", || Ok(label()));
        assert_eq!(result.ok().as_deref(), Some("[1/2] the first"));
        assert_eq!(label(), before);
        let step = steps.begin("the second");
        assert_eq!(label(), "[2/2] the second");
        drop(step);
    }

    #[test]
    fn what_is_watched_gives_its_result() {
        assert_eq!(watched(|| 7, String::new), 7);
    }
}
