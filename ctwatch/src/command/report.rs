//! `ctwatch report`: gathers a postmortem and prints it, or writes it to a new file.
//! Needs no rights but to read the recordings.

use std::io::{Write as _, stdout};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::atomic_outputs::AtomicOutputs;
use super::guard::Guard;
use super::{VERSION, confine};
use crate::cli::{Config, ReportConfig};
use crate::error::Exit;
use crate::foreign::Shown as _;
use crate::postmortem::{gather, render};
use crate::record::ticks_read;
use crate::sandbox::{Files, Work};
use crate::stderr::Progress;
use crate::text::thousands;

/// Runs it.
pub fn run(config: &Config, arguments: &ReportConfig) -> Result<Exit> {
    let ReportConfig { request, format, output } = arguments;
    confine(config, Work::Reads, &Files::read(&request.files).write(output.as_deref()));
    let progress = Progress::show(|| format!("reading the recording: {} ticks", thousands(ticks_read())));
    let report = gather(request, VERSION, &config.look.time_zone)?;
    let text = render(&report, *format, &config.look.time_zone)?;
    drop(progress);
    match output {
        None => {
            let mut out = stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing the report")?;
        }
        Some(path) => write(path, &text)?,
    }
    Ok(Exit::Done)
}

/// Into a file that isn't there yet and that only its owner may read: it holds addresses.
fn write(path: &Path, text: &str) -> Result<()> {
    let doing = || format!("writing the report to {}", path.shown());
    let _guard = Guard::of_reader()?;
    let mut drafts = AtomicOutputs::default();
    drafts.file(path)?.write_all(text.as_bytes()).with_context(doing)?;
    drafts.publish()
}
