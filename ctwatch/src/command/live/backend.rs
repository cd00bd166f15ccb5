//! Which backend it will be, and why not a better one.
//! The words are the same for `check` and for a `drops` that can't watch.

use anyhow::Result;

use crate::cli::BackendChoice;
use crate::command::preflight::Preflight;
use crate::error::Failure;
use crate::model::Backend;

/// The backend to use, with the reason if it is not the best or was asked for.
pub fn choose(choice: BackendChoice, found: &Preflight) -> Result<(Backend, Option<String>)> {
    if choice == BackendChoice::Forced(Backend::Counters) {
        return Ok((Backend::Counters, Some("asked for with --backend: totals only, no tuples".to_owned())));
    }
    if let Some(obstacle) = &found.obstacle {
        return Err(Failure::cannot_watch(format!(
            "cannot watch conntrack on this host: {obstacle} (`ctwatch check` shows all it looked at)"
        ))
        .into());
    }
    match (choice, &found.kprobes) {
        (BackendChoice::Forced(Backend::Tracepoint), _) => {
            Ok((Backend::Tracepoint, Some("selected with --backend: causes are inferred".to_owned())))
        }
        (_, Ok(())) => Ok((Backend::Kprobe, None)),
        (BackendChoice::Auto, Err(why)) => {
            Ok((Backend::Tracepoint, Some(format!("{why}: causes are inferred from the kernel's counters"))))
        }
        (BackendChoice::Forced(_), Err(why)) => Err(Failure::cannot_watch(format!(
            "cannot use the kprobe backend: {why}; leave out --backend to use the tracepoint backend"
        ))
        .into()),
    }
}
