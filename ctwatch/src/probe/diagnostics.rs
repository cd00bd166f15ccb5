//! What the programs say of themselves with -vv (aya-log), on stderr. Level 0 leaves no logging in what is loaded.
//! For people who debug ctwatch; nothing else reads it.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use crate::stderr;

/// aya-log's level for `debug!`.
pub const DEBUG: u8 = 4;

/// Writes each record as one line.
pub struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        stderr::line(format_args!("ctwatch kernel side: {}", record.args()));
    }

    fn flush(&self) {}
}

/// Records that wait in the kernel.
pub struct Diagnostics(EbpfLogger<Stderr>);

impl Diagnostics {
    /// Opens the log of an object, before its programs run.
    pub fn open(ebpf: &mut Ebpf) -> Result<Self> {
        EbpfLogger::init_with_logger(ebpf, Stderr).map(Self).context("opening the programs' log")
    }

    /// Writes what has come since the last time.
    pub fn write(&mut self) {
        self.0.flush();
    }
}
