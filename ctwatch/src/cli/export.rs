//! `ctwatch export` on the command line: arguments, resolved config, help examples.
//! Whether the output is a file or a directory depends on what exists, so the command decides that.

use std::path::{Path, PathBuf};

use clap::Args;

use super::common::{AnonymizeArgs, FromArgs, plain, recording};
use super::file_format::{EXPORT, ExportFormat, by_ending, by_name};
use crate::export::ExportTable;
use crate::record::span::Moment;
use crate::text::did_you_mean;

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ExportArgs {
    /// The recording
    #[arg(value_name = "FILE", value_parser = recording())]
    file: PathBuf,

    #[arg(
        long, value_name = "FORMAT", hide_possible_values = true,
        value_parser = by_name(&EXPORT),
        help = "ndjson, csv or parquet [default: by the extension\nof -o]"
    )]
    to: Option<ExportFormat>,
    #[arg(
        short,
        long,
        value_name = "PATH",
        help = "A new file, or a directory for several tables as\ncsv or parquet; - or none is standard output"
    )]
    output: Option<PathBuf>,
    #[arg(
        long, value_name = "TABLE", value_delimiter = ',', value_parser = table,
        help = "Only these tables: runs, ticks, fills, losses,\narrivals, drops, occupancy, listings, settings,\nincidents, notices, machine"
    )]
    table: Vec<ExportTable>,
    #[command(flatten)]
    start: FromArgs,
    /// End here
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    until: Option<Moment>,
    #[command(flatten)]
    anonymize: AnonymizeArgs,
}

const AFTER: &str = "\
ndjson has one object per line, its table in `type`; csv and parquet have one
file per table. --anonymize keeps shared prefixes of addresses, ports, times,
causes and counts, and leaves `machine` out. Details: docs/recording.md

Examples:
  ctwatch export host.ctw --to ndjson | jq 'select(.type == \"losses\")'
  ctwatch export host.ctw --to csv --table losses > losses.csv
  ctwatch export host.ctw --to parquet -o night --from 03:00 --anonymize

Exit codes: 0 success; 1 runtime failure (also a damaged file or Ctrl-C);
  2 usage error (also if the output already exists); 3 too few open files";

/// `ctwatch export`
#[derive(Clone, Debug)]
pub struct ExportConfig {
    /// The recording.
    pub file: PathBuf,
    /// What to convert it to.
    pub format: ExportFormat,
    /// Where to; `None`: to standard output.
    pub output: Option<PathBuf>,
    /// What of it, in the order of [`ExportTable::ALL`].
    pub tables: Vec<ExportTable>,
    /// Where to begin.
    pub from: Option<Moment>,
    /// Where to end.
    pub to: Option<Moment>,
    /// Pseudonymize names and addresses: with this key, or with a random one.
    pub anonymize: Option<Option<String>>,
}

impl ExportConfig {
    /// The error says what is missing.
    pub(super) fn resolve(args: ExportArgs) -> Result<Self, String> {
        let ExportArgs { file, to, output, table, start, until, anonymize } = args;
        let FromArgs { from } = start;
        let wanted = |one: &ExportTable| table.is_empty() || table.contains(one);
        let output = output.filter(|path| path != Path::new("-"));
        let format = to.or_else(|| by_ending(&EXPORT, output.as_deref()?)).ok_or(
            "the format is missing: '--to <FORMAT>' with ndjson, csv or parquet, or '-o' with a file that ends in one of these",
        )?;
        Ok(Self {
            file,
            format,
            output,
            tables: ExportTable::ALL.into_iter().filter(wanted).collect(),
            from,
            to: until,
            anonymize: anonymize.into_key(),
        })
    }
}

fn table(text: &str) -> Result<ExportTable, String> {
    let names = ExportTable::ALL.map(ExportTable::name);
    let word = plain(text);
    // Their names are plurals.
    ExportTable::from_name(&word).or_else(|| ExportTable::from_name(&format!("{word}s"))).ok_or_else(|| {
        let near = did_you_mean(&word, names);
        format!("the tables are {}{near}", names.join(", "))
    })
}
