//! Which backend it will be, why not a better one, and what that costs.
//! The words are the same for `check` and for a `drops` that can't watch.

use anyhow::Result;

use crate::cli::BackendChoice;
use crate::command::preflight::{Obstacle, Preflight};
use crate::error::Failure;
use crate::model::Backend;
use crate::probe::refusal::may_be_a_filter;

/// What the kernel's counters alone don't tell.
pub const LOST_WITH_COUNTERS: &str = "totals only, as the kernel counts them: no ports, flows or processes, no single events, and of causes only \
                                      drop, early_drop, insert_failed and chaintoolong";
/// What is said of any backend that was not asked for by name.
const INFERRED: &str = "causes are inferred from the kernel's counters";

/// The backend to use, with the reason if it is not the best or was asked for.
pub fn choose(choice: BackendChoice, found: &Preflight) -> Result<(Backend, Option<String>)> {
    if choice == BackendChoice::Forced(Backend::Counters) {
        return Ok((Backend::Counters, Some("asked for with --backend: totals only, no tuples".to_owned())));
    }
    if let Some(obstacle) = &found.obstacle {
        return without_programs(choice, obstacle, found);
    }
    match (choice, &found.kprobes) {
        (BackendChoice::Forced(Backend::Tracepoint), _) => {
            Ok((Backend::Tracepoint, Some("selected with --backend: causes are inferred".to_owned())))
        }
        (_, Ok(())) => Ok((Backend::Kprobe, None)),
        (BackendChoice::Auto, Err(why)) => Ok((Backend::Tracepoint, Some(format!("{why}: {INFERRED}")))),
        (BackendChoice::Forced(_), Err(why)) => Err(Failure::cannot_watch(format!(
            "cannot use the kprobe backend: {why}; leave out --backend to use the tracepoint backend"
        ))
        .into()),
    }
}

fn without_programs(
    choice: BackendChoice,
    obstacle: &Obstacle,
    found: &Preflight,
) -> Result<(Backend, Option<String>)> {
    let Obstacle { name, found: why, remedy } = obstacle;
    match (&found.counters, choice) {
        (Ok(()), BackendChoice::Auto) => {
            let reason = format!("{name}: {why}; {LOST_WITH_COUNTERS}. For more: {remedy}");
            Ok((Backend::Counters, Some(reason)))
        }
        (Ok(()), BackendChoice::Forced(_)) => Err(Failure::cannot_watch(format!(
            "cannot watch conntrack on this host: {obstacle} (`ctwatch check` shows all it looked at; --backend counters \
             works here)"
        ))
        .into()),
        (Err(counters), _) => Err(Failure::cannot_watch(format!(
            "cannot watch conntrack on this host: {obstacle} (`ctwatch check` shows all it looked at; the kernel's counters: \
             {counters})"
        ))
        .into()),
    }
}

/// What takes the place of a backend that the kernel refused although nothing spoke against it; none if that was asked for, or
/// nothing is left.
pub fn next(choice: BackendChoice, refused: Backend, found: &Preflight) -> Option<Backend> {
    match (choice, refused) {
        (BackendChoice::Auto, Backend::Kprobe) => Some(Backend::Tracepoint),
        (BackendChoice::Auto, Backend::Tracepoint) if found.counters.is_ok() => Some(Backend::Counters),
        _ => None,
    }
}

/// Why it is this backend, after another was refused.
pub fn instead(backend: Backend, refused: &anyhow::Error) -> String {
    let for_more =
        may_be_a_filter(refused).map_or_else(String::new, |remedy| format!(". For more: {remedy}"));
    match backend {
        Backend::Counters => format!("{refused:#}; {LOST_WITH_COUNTERS}{for_more}"),
        Backend::Kprobe | Backend::Tracepoint => format!("{refused:#}: {INFERRED}{for_more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;
    use crate::error::exit;
    use crate::probe::plan::RawTpReentrancy;

    fn found(obstacle: bool, counters: Result<(), String>) -> Preflight {
        let obstacle = obstacle.then(|| Obstacle {
            name: "capabilities",
            found: "missing CAP_SYS_ADMIN".to_owned(),
            remedy: "docker: --cap-add SYS_ADMIN".to_owned(),
        });
        Preflight {
            items: Vec::new(),
            obstacle,
            kprobes: Ok(()),
            counters,
            raw_tracepoints: RawTpReentrancy::Nested,
        }
    }

    #[test]
    fn what_is_chosen_falls_to_the_counters_and_says_what_that_costs_and_what_would_help() {
        let (backend, reason) = choose(BackendChoice::Auto, &found(true, Ok(()))).unwrap();
        assert_eq!(backend, Backend::Counters);
        let reason = reason.unwrap();
        for words in ["missing CAP_SYS_ADMIN", "no ports", "--cap-add SYS_ADMIN"] {
            assert!(reason.contains(words), "{words}: {reason}");
        }
    }

    #[test]
    fn a_backend_asked_for_by_name_is_refused_rather_than_replaced() {
        for backend in [Backend::Kprobe, Backend::Tracepoint] {
            let refused = choose(BackendChoice::Forced(backend), &found(true, Ok(()))).unwrap_err();
            assert_eq!(exit(&refused), Exit::CannotWatch);
            let text = refused.to_string();
            assert!(text.contains("missing CAP_SYS_ADMIN") && text.contains("--backend counters"), "{text}");
            assert_eq!(next(BackendChoice::Forced(backend), backend, &found(false, Ok(()))), None);
        }
    }

    #[test]
    fn a_refusal_that_nothing_spoke_against_names_what_may_let_it_pass() {
        let refused = |code| anyhow::Error::new(std::io::Error::from_raw_os_error(code));
        for backend in [Backend::Tracepoint, Backend::Counters] {
            let reason = instead(backend, &refused(libc::EACCES));
            assert!(
                reason.contains("For more: docker, podman: --security-opt seccomp=unconfined"),
                "{reason}"
            );
            let reason = instead(backend, &refused(libc::ENOMEM));
            assert!(!reason.contains("For more"), "no profile is short of memory: {reason}");
        }
    }

    #[test]
    fn where_the_counters_cannot_be_read_either_nothing_is_left() {
        let none = || found(true, Err("not readable: EACCES".to_owned()));
        let text = choose(BackendChoice::Auto, &none()).unwrap_err().to_string();
        assert!(text.contains("missing CAP_SYS_ADMIN") && text.contains("not readable"), "{text}");
        assert_eq!(next(BackendChoice::Auto, Backend::Kprobe, &none()), Some(Backend::Tracepoint));
        assert_eq!(next(BackendChoice::Auto, Backend::Tracepoint, &none()), None);
    }
}
