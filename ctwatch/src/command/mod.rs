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

/// Gives up what this command doesn't need; before anything else, as threads hand it down. Only who asks hears of a
/// kernel that lacks something: `check` says so, too. What the process could do before is returned: it tells whoever started
/// it what is missing.
fn confine(config: &Config, work: Work, files: &Files) -> Standing {
    let roots = config.roots();
    let standing = Standing::look(&roots);
    for what in sandbox::enter(work, files, &roots) {
        if config.verbosity > 0 {
            stderr::line(format_args!("not confined: {what}"));
        }
    }
    standing
}

/// What a command that waits runs in: one thread.
fn event_loop() -> Result<Runtime> {
    Builder::new_current_thread().enable_io().enable_time().build().context("starting the event loop")
}

/// The view of a format, on stdout. A netns that was asked for gets its line even when nothing happens there.
fn view(format: Format, look: &TextOptions, selected: Option<Vec<NetnsId>>) -> Box<dyn View> {
    view_on(stdout(), format, look, selected)
}

/// The same, on whatever takes it.
fn view_on(
    out: impl Write + 'static,
    format: Format,
    look: &TextOptions,
    selected: Option<Vec<NetnsId>>,
) -> Box<dyn View> {
    match format {
        Format::Json => Box::new(JsonView::new(out)),
        Format::Text => Box::new(TextView::new(out, look.clone()).selecting(selected)),
    }
}
