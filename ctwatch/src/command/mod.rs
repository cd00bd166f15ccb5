//! What each subcommand does: it joins the watch, the state and a view.
//! No kernel detail and no layout of output belongs here.

pub mod advise;
mod atomic_outputs;
pub mod check;
pub mod drops;
pub mod export;
mod guard;
mod live;
mod netns_spec;
mod output;
pub mod preflight;
pub mod record;
pub mod replay;
pub mod report;
pub mod table;

use std::io::{Write, stdout};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};

use crate::cli::{Config, Format};
use crate::kernel::standing::Standing;
use crate::model::NetnsId;
use crate::sandbox::{self, Files, Work};
use crate::stderr;
use crate::text::TextOptions;
use crate::view::View;
use crate::view::json::JsonView;
use crate::view::text::TextView;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Gives up what this command doesn't need; before anything else, as threads hand it down. What fails is said; of a kernel
/// that lacks something only who asks hears. `check` says both, too. What the process could do before is returned: it tells
/// whoever started it what is missing.
fn confine(config: &Config, work: Work, files: &Files) -> Standing {
    let roots = config.roots();
    let standing = Standing::look(&roots);
    let not = sandbox::enter(work, files, &roots);
    let lacking = if config.verbosity > 0 { not.lacking } else { Vec::new() };
    for what in not.failed.into_iter().chain(lacking) {
        stderr::line(format_args!("not confined: {what}"));
    }
    standing
}

/// What a command that waits runs in: one thread.
fn event_loop() -> Result<Runtime> {
    Builder::new_current_thread().enable_io().enable_time().build().context("starting the event loop")
}

/// The view of a format, on stdout.
fn view(format: Format, look: &TextOptions) -> Box<dyn View> {
    match format {
        Format::Json => Box::new(JsonView::new(stdout())),
        Format::Text => Box::new(TextView::new(stdout(), look.clone())),
    }
}

/// The view of a stream of ticks, on whatever takes it. A netns that was asked for gets its line even when nothing happens
/// there.
fn view_of_ticks(
    out: impl Write + 'static,
    format: Format,
    look: &TextOptions,
    selected: Option<Vec<NetnsId>>,
    interval: Duration,
) -> Box<dyn View> {
    match format {
        Format::Json => Box::new(JsonView::new(out)),
        Format::Text => Box::new(TextView::new(out, look.clone()).selecting(selected).every(interval)),
    }
}
