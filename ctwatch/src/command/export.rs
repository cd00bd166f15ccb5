//! `ctwatch export`: a recording for other programs.
//! Where it goes is settled before anything is written, and nothing that is there is written over.

use std::fs::File;
use std::io::{IsTerminal as _, stdout};
use std::path::Path;

use anyhow::{Result, anyhow, bail};

use super::atomic_outputs::AtomicOutputs;
use super::confine;
use super::guard::Guard;
use crate::cli::{Config, ExportConfig, ExportFormat};
use crate::error::{Exit, Failure};
use crate::export::{Choice, Csv, ExportTable, Ndjson, OutputTarget, Parquet, Sink, Value, export};
use crate::foreign::Shown as _;
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;
use crate::record::span::Span;
use crate::record::ticks_read;
use crate::sandbox::{Files, Work};
use crate::stderr::Progress;
use crate::text::thousands;

/// Runs it.
pub fn run(config: &Config, arguments: &ExportConfig) -> Result<Exit> {
    let target = target(arguments)?;
    confine(config, Work::Reads, &Files::read([&arguments.file]).write(arguments.output.as_deref()));
    let recording = Recording::open(&arguments.file)?;
    let Some(bounds) = recording.bounds(&recording.runs()?)? else {
        bail!("exporting {}: it contains no runs", arguments.file.shown());
    };
    let span =
        Span::of(arguments.from, arguments.to, bounds, &config.look.time_zone).map_err(Failure::usage)?;
    let anonymizer = arguments.anonymize.as_ref().map(|key| Anonymizer::new(key.as_deref())).transpose()?;
    let choice = Choice { tables: arguments.tables.clone(), span, anonymizer };
    // On a terminal what is exported shows how far it is.
    let is_shown = target == OutputTarget::Stdout && stdout().is_terminal();
    let show = || Progress::show(|| format!("exporting: {} ticks", thousands(ticks_read())));
    let _progress = (!is_shown).then(show);
    if target == OutputTarget::Stdout {
        export(&recording, choice, sink(arguments, &target, &mut AtomicOutputs::default())?.as_mut())?;
        return Ok(Exit::Done);
    }
    let guard = Guard::of_reader()?;
    let mut drafts = AtomicOutputs::default();
    let sink = sink(arguments, &target, &mut drafts)?;
    let mut sink = Interruptible { sink, guard };
    // Whatever it is that stopped.
    export(&recording, choice, &mut sink).map_err(|error| if sink.is_over() { over() } else { error })?;
    drafts.publish()?;
    Ok(Exit::Done)
}

fn over() -> anyhow::Error {
    anyhow!("export interrupted; incomplete files were removed")
}

/// Ends with an error once it was interrupted.
struct Interruptible {
    sink: Box<dyn Sink>,
    guard: Guard,
}

impl Interruptible {
    fn is_over(&self) -> bool {
        self.guard.has_come()
    }

    fn goes_on(&self) -> Result<()> {
        if self.is_over() { Err(over()) } else { Ok(()) }
    }
}

impl Sink for Interruptible {
    fn row(&mut self, table: ExportTable, values: &[Value]) -> Result<()> {
        self.goes_on()?;
        self.sink.row(table, values)
    }

    fn finish(&mut self) -> Result<()> {
        self.sink.finish()?;
        self.goes_on()
    }
}

/// Several tables need several files where each has a header of its own.
fn target(arguments: &ExportConfig) -> Result<OutputTarget> {
    let ExportConfig { format, output, tables, .. } = arguments;
    let needs_folder = *format != ExportFormat::Ndjson && tables.len() > 1;
    match output {
        Some(path) if needs_folder && !path.is_dir() && path.symlink_metadata().is_ok() => {
            Err(Failure::usage(format!(
                "-o: {} is there already and no folder, and several tables need one: name a folder, or one of them with \
                 --table",
                path.shown()
            ))
            .into())
        }
        Some(path) if path.is_dir() || needs_folder => Ok(OutputTarget::Folder(path.clone())),
        Some(path) => Ok(OutputTarget::File(path.clone())),
        None if needs_folder => Err(Failure::usage(
            "-o: several tables, each with its own columns: name a folder with -o, or select one table with --table",
        )
        .into()),
        None if *format == ExportFormat::Parquet => {
            Err(Failure::usage("-o: Parquet can't be written to a terminal or a pipe: name a new file").into())
        }
        None => Ok(OutputTarget::Stdout),
    }
}

fn sink(
    arguments: &ExportConfig,
    target: &OutputTarget,
    drafts: &mut AtomicOutputs,
) -> Result<Box<dyn Sink>> {
    let ExportConfig { format, tables, .. } = arguments;
    Ok(match (format, target) {
        (ExportFormat::Ndjson, OutputTarget::Stdout) => Box::new(Ndjson::new(stdout().lock())),
        (ExportFormat::Ndjson, OutputTarget::File(path)) => Box::new(Ndjson::new(drafts.file(path)?)),
        (ExportFormat::Ndjson, OutputTarget::Folder(folder)) => {
            Box::new(Ndjson::new(drafts.file(&folder.join("recording.ndjson"))?))
        }
        (ExportFormat::Csv, OutputTarget::Stdout) => {
            Box::new(Csv::new(tables.first().map(|table| (*table, stdout().lock())))?)
        }
        (ExportFormat::Csv, OutputTarget::File(path)) => {
            let out = drafts.file(path)?;
            Box::new(Csv::new(tables.first().map(|table| (*table, out)))?)
        }
        (ExportFormat::Parquet, OutputTarget::Folder(folder)) => {
            Box::new(Parquet::new(files(drafts, folder, tables, "parquet")?)?)
        }
        (ExportFormat::Parquet, OutputTarget::File(path)) => {
            let out = drafts.file(path)?;
            Box::new(Parquet::new(tables.first().map(|table| (*table, out)))?)
        }
        (ExportFormat::Parquet, OutputTarget::Stdout) => bail!("exporting Parquet: it needs a file"),
        (ExportFormat::Csv, OutputTarget::Folder(folder)) => {
            Box::new(Csv::new(files(drafts, folder, tables, "csv")?)?)
        }
    })
}

/// A new file for each table.
fn files(
    drafts: &mut AtomicOutputs,
    folder: &Path,
    tables: &[ExportTable],
    ending: &str,
) -> Result<Vec<(ExportTable, File)>> {
    drafts.folder(folder)?;
    let name = |table: &ExportTable| folder.join(format!("{}.{ending}", table.name()));
    tables.iter().map(|table| Ok((*table, drafts.file(&name(table))?))).collect()
}
