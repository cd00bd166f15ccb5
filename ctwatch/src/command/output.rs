//! stdout of the commands that watch: they go on counting whether or not anybody reads.
//! What was left out meanwhile is said once somebody does, and by the exit code.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;

use crate::contract::Notice;
use crate::outlet::{Meter, Outlet};
use crate::stderr;
use crate::text::counted;

/// How long the last words wait for a reader who takes nothing,
const STUCK: Duration = Duration::from_secs(1);
/// and for one who takes a little at a time.
const SLOW: Duration = Duration::from_secs(5);

/// How it goes with stdout.
pub(super) struct Output {
    meter: Meter,
    /// Lines of which was said that they are missing.
    told: u64,
}

impl Output {
    /// Where to write to, and what to ask about it.
    pub fn open() -> Result<(Outlet, Self)> {
        let outlet = Outlet::stdout().context("starting the thread that writes to stdout")?;
        let meter = outlet.meter();
        Ok((outlet, Self { meter, told: 0 }))
    }

    /// Lines that were left out so far.
    pub fn left_out(&self) -> u64 {
        self.meter.left_out()
    }

    /// What the reader must know, now that there is one again.
    pub fn news(&mut self) -> Option<Notice> {
        if let Some(error) = self.meter.take_trouble() {
            stderr::line(format_args!(
                "writing to stdout: {error}; counting goes on, and what doesn't fit is left out"
            ));
        }
        if !self.meter.has_room() { None } else { self.missing() }
    }

    /// The last words are coming: they are let in, whatever waits.
    pub fn last_words(&mut self) -> Option<Notice> {
        self.meter.accept_all();
        self.missing()
    }

    fn missing(&mut self) -> Option<Notice> {
        let missing = self.meter.left_out() - self.told;
        self.told += missing;
        (missing > 0).then(|| Notice {
            time: Timestamp::now(),
            code: "output_left_out",
            text: format!(
                "{} missing here, as nobody read them in time; counting went on, and totals are exact",
                counted(missing, "line is", "lines are")
            )
            .into(),
        })
    }

    /// Waits a while until all is written.
    ///
    /// # Errors
    /// Not all was: the exit code says so. It is an [`std::io::Error`] if writing failed, as where the reader went.
    pub fn finish(&self) -> Result<()> {
        let unwritten = self.meter.settle(STUCK, SLOW);
        if let Some(error) = self.meter.failure() {
            return Err(error).context("writing to stdout");
        }
        match unwritten {
            0 => Ok(()),
            unwritten => bail!(
                "writing to stdout: {} left out, as nobody read them in time; counting went on meanwhile",
                counted(unwritten, "line was", "lines were")
            ),
        }
    }
}
