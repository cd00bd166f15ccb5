//! Threads where a limit is reached for a moment (TasksMax=, docker's --pids-limit): what others in the same group, or our own
//! hooks, take, they give back. What can't do without a thread waits a little for it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder, JoinHandle, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// How long it is tried,
const PATIENCE: Duration = Duration::from_secs(5);
/// and how often.
const AGAIN: Duration = Duration::from_millis(20);

/// What a thread is to do. A failed attempt to start one would drop it, so all attempts share it.
struct Work<F>(Arc<Mutex<Option<F>>>);

impl<T, F: FnOnce() -> T> Work<F> {
    fn new(work: F) -> Self {
        Self(Arc::new(Mutex::new(Some(work))))
    }

    /// For one attempt. Only one thread is ever started.
    fn again(&self) -> impl FnOnce() -> Option<T> + use<T, F> {
        let work = Arc::clone(&self.0);
        move || {
            let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
            work.map(|work| work())
        }
    }
}

/// Starts a thread. What it returns is always there.
///
/// # Errors
/// None can be started, also a while later.
pub fn start<T: Send + 'static>(
    name: &str,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<Option<T>>> {
    let work = Work::new(work);
    patiently(PATIENCE, || Builder::new().name(name.to_owned()).stack_size(stack).spawn(work.again()))
}

/// As [`start`], for one that doesn't outlast a scope.
///
/// # Errors
/// As [`start`].
pub fn start_within<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    stack: usize,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, Option<T>>> {
    let work = Work::new(work);
    patiently(PATIENCE, || {
        Builder::new().name(name.to_owned()).stack_size(stack).spawn_scoped(scope, work.again())
    })
}

/// Whether one can be started now: asked before what can't be begun twice.
///
/// # Errors
/// None can.
pub fn try_one() -> io::Result<()> {
    thread::scope(|scope| Builder::new().stack_size(16 << 10).spawn_scoped(scope, || {}).map(drop))
}

/// Whether an error is that of a limit that is reached now.
#[must_use]
pub fn is_for_now(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

fn patiently<T>(patience: Duration, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + patience;
    loop {
        match attempt() {
            Err(error) if is_for_now(&error) && Instant::now() < until => thread::sleep(AGAIN),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_reached_for_a_moment_is_waited_for_and_other_errors_are_not() {
        let (mut attempts, work) = (0, Work::new(|| 7));
        let started = patiently(Duration::from_secs(20), || {
            attempts += 1;
            let attempt = work.again();
            if attempts < 4 { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(attempt) }
        });
        assert_eq!((started.unwrap()(), attempts), (Some(7), 4));
        let mut attempts = 0;
        let refused = patiently::<()>(Duration::from_secs(20), || {
            attempts += 1;
            Err(io::Error::from_raw_os_error(libc::ENOMEM))
        });
        assert_eq!((refused.unwrap_err().raw_os_error(), attempts), (Some(libc::ENOMEM), 1));
        let never =
            patiently::<()>(Duration::from_millis(50), || Err(io::Error::from_raw_os_error(libc::EAGAIN)));
        assert!(is_for_now(&never.unwrap_err()));
    }

    #[test]
    fn what_a_thread_finds_is_there() {
        assert_eq!(start("test", 64 << 10, || 3).unwrap().join().unwrap(), Some(3));
        let here = [1, 2];
        let sum = thread::scope(|scope| {
            start_within(scope, "test", 64 << 10, || here.iter().sum::<i32>()).unwrap().join().unwrap()
        });
        assert_eq!(sum, Some(3));
        try_one().unwrap();
    }
}
