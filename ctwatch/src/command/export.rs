//! `ctwatch export`: a recording for other programs.
//! Where it goes is settled before anything is written, and nothing that is there is written over.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, stdout};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cli::{Config, Export, ExportFormat};
use crate::error::{Exit, Failure};
use crate::export::{Choice, Csv, Ndjson, Parquet, Sink, Table, Target, export};
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;
use crate::record::span::Span;

/// Runs it.
pub fn run(config: &Config, arguments: &Export) -> Result<Exit> {
    let target = target(arguments)?;
    let recording = Recording::open(&arguments.file)?;
    let Some(bounds) = recording.bounds(&recording.runs()?)? else {
        bail!("exporting {}: no run was recorded in it", arguments.file.display());
    };
    let span =
        Span::of(arguments.from, arguments.to, bounds, &config.look.time_zone).map_err(Failure::usage)?;
    let anonymizer = arguments.anonymize.as_ref().map(|key| Anonymizer::new(key.as_deref())).transpose()?;
    let choice = Choice { tables: arguments.tables.clone(), span, anonymizer };
    let mut sink = sink(arguments, &target)?;
    match export(&recording, choice, sink.as_mut()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(match target {
            Target::Stdout => error,
            Target::File(path) | Target::Folder(path) => {
                error.context(format!("exporting to {}, which is not complete now", path.display()))
            }
        }),
    }
}

/// Several tables need several files where each has a header of its own.
fn target(arguments: &Export) -> Result<Target> {
    let Export { format, output, tables, .. } = arguments;
    let needs_folder = *format != ExportFormat::Ndjson && tables.len() > 1;
    match output {
        Some(path) if path.is_dir() || needs_folder => Ok(Target::Folder(path.clone())),
        Some(path) => Ok(Target::File(path.clone())),
        None if needs_folder => Err(Failure::usage(
            "-o: there are several tables, and each has columns of its own: give a folder for them with -o, or \
             one of them with --table",
        )
        .into()),
        None if *format == ExportFormat::Parquet => {
            Err(Failure::usage("-o: Parquet is nothing to read or to pipe: give a new file for it").into())
        }
        None => Ok(Target::Stdout),
    }
}

fn sink(arguments: &Export, target: &Target) -> Result<Box<dyn Sink>> {
    let Export { format, tables, .. } = arguments;
    Ok(match (format, target) {
        (ExportFormat::Ndjson, Target::Stdout) => Box::new(Ndjson::new(stdout().lock())),
        (ExportFormat::Ndjson, Target::File(path)) => Box::new(Ndjson::new(create(path)?)),
        (ExportFormat::Ndjson, Target::Folder(folder)) => {
            Box::new(Ndjson::new(create(&folder.join("recording.ndjson"))?))
        }
        (ExportFormat::Csv, Target::Stdout) => {
            Box::new(Csv::new(tables.first().map(|table| (*table, stdout().lock())))?)
        }
        (ExportFormat::Csv, Target::File(path)) => {
            let out = create(path)?;
            Box::new(Csv::new(tables.first().map(|table| (*table, out)))?)
        }
        (ExportFormat::Parquet, Target::Folder(folder)) => {
            Box::new(Parquet::new(files(folder, tables, "parquet")?)?)
        }
        (ExportFormat::Parquet, Target::File(path)) => {
            let out = create(path)?;
            Box::new(Parquet::new(tables.first().map(|table| (*table, out)))?)
        }
        (ExportFormat::Parquet, Target::Stdout) => bail!("exporting Parquet: it needs a file"),
        (ExportFormat::Csv, Target::Folder(folder)) => Box::new(Csv::new(files(folder, tables, "csv")?)?),
    })
}

/// A new file for each table.
fn files(folder: &Path, tables: &[Table], ending: &str) -> Result<Vec<(Table, File)>> {
    if let Err(error) = std::fs::create_dir(folder)
        && error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("creating the folder {}", folder.display()));
    }
    let paths: Vec<(Table, PathBuf)> =
        tables.iter().map(|table| (*table, folder.join(format!("{}.{ending}", table.name())))).collect();
    // All or nothing: none is created where one is in the way.
    if let Some((_, path)) = paths.iter().find(|(_, path)| path.exists()) {
        return Err(in_the_way(path).into());
    }
    paths.into_iter().map(|(table, path)| Ok((table, create(&path)?))).collect()
}

/// A new file that only its owner may read, like the recording.
fn create(path: &Path) -> Result<File> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(in_the_way(path).into()),
        Err(error) => Err(error).with_context(|| format!("creating {}", path.display())),
    }
}

fn in_the_way(path: &Path) -> Failure {
    let path = path.display();
    Failure::usage(format!(
        "-o: {path} is there already, and nothing is written over: remove it, or give another name"
    ))
}
