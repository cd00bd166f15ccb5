//! The beginning of every live run: choose a backend, wait for conntrack if that is wanted, attach, take the baseline.
//! Nothing is watched before all of it has worked.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;

use super::notices::waiting_for_conntrack;
use super::{Shutdown, StopReason, backend};
use crate::cli::BackendChoice;
use crate::command::VERSION;
use crate::command::preflight::look;
use crate::conntrack::module;
use crate::contract::{Hook, Notice, SCHEMA, Start};
use crate::error::{ExitContext as _, shortage};
use crate::kernel::roots::Roots;
use crate::kernel::standing::Standing;
use crate::kernel::{Kernel, calls};
use crate::model::Backend;
use crate::probe::object::Loader;
use crate::probe::plan::{Attachment, MissingHook, ProbeOptions};
use crate::stderr::{self, Progress};
use crate::watch::{StartInfo, Watch, WatchConfig};

/// How often to see whether conntrack has been loaded.
const MODULE_POLL: Duration = Duration::from_millis(250);

/// How long attaching may go on after a signal: there is nothing yet that an end at once could harm. A signal makes the kernel
/// give up a program it verifies (`bpf_check`, kernel/bpf/verifier.c: EAGAIN), and loading it anew, with a log, takes long.
const ATTACHING: Duration = Duration::from_secs(1);

/// What to attach, and how.
pub(in crate::command) struct AttachRequest<'a> {
    /// Where /proc and /sys are.
    pub roots: &'a Roots,
    /// Which backend.
    pub choice: BackendChoice,
    /// What this process could do before it gave up what it doesn't need.
    pub standing: &'a Standing,
    /// For aya-log in the kernel: 0 is off.
    pub log_level: u8,
}

/// A watch that runs.
pub(in crate::command) struct LiveSession {
    pub watch: Watch,
    pub backend: Backend,
    /// Why this backend and no better one.
    pub reason: Option<String>,
    pub start: StartInfo,
}

impl LiveSession {
    /// Chooses a backend, waits for conntrack and attaches; `None` if the run was ended before. `options` says what is
    /// wanted of a backend's programs, starting from all they do unasked; `waiting` is told that conntrack isn't there.
    pub async fn attach(
        request: AttachRequest<'_>,
        options: impl Fn(Backend, ProbeOptions) -> ProbeOptions,
        waiting: impl FnOnce(&Notice) -> Result<()>,
        shutdown: &mut Shutdown,
    ) -> Result<Option<Self>> {
        let patience = shutdown.end_within(ATTACHING);
        let attached = Self::attach_in_time(request, options, waiting, shutdown).await;
        shutdown.end_within(patience);
        attached
    }

    async fn attach_in_time(
        request: AttachRequest<'_>,
        options: impl Fn(Backend, ProbeOptions) -> ProbeOptions,
        waiting: impl FnOnce(&Notice) -> Result<()>,
        shutdown: &mut Shutdown,
    ) -> Result<Option<Self>> {
        let roots = request.roots;
        let (mut loader, mut kernel) = Loader::beside(|| Kernel::read(roots));
        // What refuses bpf() is told by name, with what lets it pass; programs that fail for it say only EPERM.
        let refused = calls::refused();
        let mut found = look(roots, &kernel, request.standing, &refused, None);
        let (mut backend, mut reason) = backend::choose(request.choice, &found)?;
        if module::loaded(roots).is_none() {
            waiting(&waiting_for_conntrack())?;
            loader = None;
            if !wait_for_conntrack(roots, shutdown).await {
                return Ok(None);
            }
            // Before it was loaded its functions could not be looked for.
            kernel = Kernel::read(roots);
            found = look(roots, &kernel, request.standing, &refused, None);
            (backend, reason) = backend::choose(request.choice, &found)?;
        }
        let config = |backend| WatchConfig {
            roots: roots.clone(),
            probe_options: ProbeOptions::for_backend(backend, found.raw_tracepoints)
                .map(|unasked| options(backend, unasked)),
            log_level: request.log_level,
        };
        let progress = Progress::show(|| "loading the programs and attaching them".to_owned());
        let mut started = Watch::start(config(backend), kernel, loader);
        while let Err(error) = &started
            && shortage::remedy(error).is_none()
            && let Some(next) = backend::next(request.choice, backend, &found)
        {
            // Programs that were refused as such are refused to the next backend, too.
            reason = Some(backend::instead(next, error));
            backend = next;
            started = Watch::start(config(backend), Kernel::read(roots), None);
        }
        drop(progress);
        let (watch, start) = started.or_cannot_watch(|| "starting the watch on conntrack".to_owned())?;
        // What programs and maps have left has to do for all that is read from here on.
        shortage::ensure_room()?;
        Ok(Some(Self { watch, backend, reason, start }))
    }

    /// Says on stderr what the counters don't tell, where nobody asked for them.
    pub fn tell_if_counters_must_do(&self, choice: BackendChoice) {
        if let (BackendChoice::Auto, Backend::Counters, Some(reason)) = (choice, self.backend, &self.reason) {
            stderr::line(format_args!("the counters backend will have to do: {reason}"));
        }
    }

    /// The first record.
    pub fn start_record(&self, roots: &Roots) -> Start {
        let StartInfo { attachments, missing, notes, since_boot, counters_from } = &self.start;
        let costs =
            |one: &MissingHook| format!("no hook on {} ({}): {}", one.function, one.reason, one.costs);
        let notes: Vec<String> =
            missing.iter().map(costs).chain(notes.iter().cloned()).chain(self.reason.clone()).collect();
        let hook = |one: &Attachment| Hook::attached(one.function.as_str().into(), one.kind.name().into());
        let no_hook = |one: &MissingHook| Hook {
            missing: Some(one.reason.as_str().into()),
            costs: Some(one.costs.as_str().into()),
            ..Hook::attached(one.function.as_str().into(), one.kind.name().into())
        };
        Start {
            schema: SCHEMA,
            version: VERSION.into(),
            time: Timestamp::now(),
            kernel_release: roots.release().into(),
            backend: self.backend,
            backend_reason: (!notes.is_empty()).then(|| notes.join("; ").into()),
            hooks: attachments.iter().map(hook).chain(missing.iter().map(no_hook)).collect(),
            since_boot: *since_boot,
            kernel_counters_from: *counters_from,
        }
    }
}

/// Waits until conntrack is there; false if the run was ended meanwhile.
async fn wait_for_conntrack(roots: &Roots, shutdown: &mut Shutdown) -> bool {
    loop {
        tokio::select! {
            reason = shutdown.wait() => {
                // There is nothing yet that a SIGHUP could close.
                if reason != StopReason::Reopen {
                    return false;
                }
            }
            () = tokio::time::sleep(MODULE_POLL) => {
                if module::loaded(roots).is_some() {
                    return true;
                }
            }
        }
    }
}
