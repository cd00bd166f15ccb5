//! The rule sets of tests/cases by the command line: `cases` has how.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Guest, Outcome};
use crate::cases::{Asker, Options, run_all};
use crate::lab;

/// Where the guest has them.
const FOLDER: &str = "/ctw/cases";
/// Emulation against real hardware.
const SLOWNESS: u32 = 8;

pub(super) fn have_the_right_answer(_: &Guest) -> Result<Outcome> {
    lab::hide_files()?;
    let options = Options {
        folder: Path::new(FOLDER),
        only: &[],
        jobs: 3,
        asker: Asker::Program("ctwatch".into()),
        slowness: SLOWNESS,
        other_tools: false,
    };
    let crate::cases::Outcome { right, wrong, .. } = run_all(&options)?;
    if !wrong.is_empty() {
        bail!("{right} answers are right; these are not:\n{wrong}");
    }
    Ok(Outcome::Passed(format!("answers={right}")))
}
