//! Waiting for files with a limit: a file system that a process serves (FUSE), or another host does (NFS), may never answer,
//! and neither O_NONBLOCK nor statfs helps: both ask it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Threads that may hang at once. Whoever makes them hang gains no more than these; they end with the program, since such
/// waits end when it is killed or exits (request_wait_answer, fs/fuse/dev.c).
const HANGING: usize = 8;
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// Counts a thread for as long as it lasts.
struct Counted;

impl Counted {
    fn new() -> Option<Self> {
        let one_more = |at_work| (at_work < HANGING).then_some(at_work + 1);
        AT_WORK.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(|_| Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// It took too long; its thread is left behind.
    TooLong,
    /// So many threads hang already that no more are begun.
    TooMany,
}

/// What `look` finds, if it does so in time.
///
/// # Errors
/// It didn't, or others before it didn't.
pub fn within<T: Send + 'static>(
    limit: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let counted = Counted::new().ok_or(Unanswered::TooMany)?;
    let (answer, answers) = mpsc::sync_channel(1);
    let work = move || {
        let found = look();
        drop(counted);
        // Nobody waits any more if it took too long.
        let _ = answer.try_send(found);
    };
    let thread = thread::Builder::new().name("files".to_owned()).stack_size(512 << 10);
    if thread.spawn(work).is_err() {
        return Err(Unanswered::TooMany);
    }
    answers.recv_timeout(limit).map_err(|_| Unanswered::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn an_answer_in_time_is_given_and_nobody_waits_for_another_one() {
        assert_eq!(within(Duration::from_secs(20), || 7), Ok(7));
        let began = Instant::now();
        let (end, ended) = mpsc::channel::<()>();
        let hangs = within(Duration::from_millis(50), move || ended.recv());
        assert_eq!(hangs, Err(Unanswered::TooLong));
        assert!(began.elapsed() < Duration::from_secs(20));
        drop(end);
    }
}
