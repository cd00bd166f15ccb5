//! `ctwatch export` on the command line: raw arguments, and what they come to.
//! Whether a file or a folder is meant shows only on the disk, so the command decides it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::export::ExportTable;
use crate::record::span::Moment;

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ExportArgs {
    /// The recording
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// ndjson, csv or parquet
    #[arg(long, value_name = "FORMAT", value_enum, hide_possible_values = true)]
    to: ToFormat,
    #[arg(
        short,
        long,
        value_name = "PATH",
        help = "A new file; a folder for several tables as csv or\nparquet [default: standard output]"
    )]
    output: Option<PathBuf>,
    #[arg(
        long, value_name = "TABLE", value_delimiter = ',', value_parser = table,
        help = "Only these tables: runs, ticks, fills, losses,\narrivals, drops, occupancy, listings, settings,\nincidents, notices, machine"
    )]
    table: Vec<ExportTable>,
    #[arg(
        long,
        value_name = "WHEN",
        allow_hyphen_values = true,
        help = "From here on: 2026-03-14T12:00:00Z, a local\n'2026-03-14 12:00' or 12:00, +10m from the start,\n-10m from the end"
    )]
    from: Option<Moment>,
    /// Up to here
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    until: Option<Moment>,
    #[arg(
        long, value_name = "KEY", num_args = 0..=1, require_equals = true, default_missing_value = "",
        help = "Replace addresses and names, always by the same;\nwith a KEY, addresses in other files, too"
    )]
    anonymize: Option<String>,
}

const AFTER: &str = "\
ndjson is one object a line, `type` says of which table; csv and parquet are a
file a table. --anonymize keeps which addresses share a network, ports, times,
causes and counts; `machine` is left out then. docs/recording.md has it all.

Examples:
  ctwatch export host.ctw --to ndjson | jq 'select(.type == \"losses\")'
  ctwatch export host.ctw --to csv --table losses > losses.csv
  ctwatch export host.ctw --to parquet -o night --from 03:00 --anonymize

Exit codes: 0 done; 1 failed while running, also a damaged file or Ctrl-C;
  2 wrong usage, also if something is there already";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ToFormat {
    Ndjson,
    Csv,
    Parquet,
}

fn table(text: &str) -> Result<ExportTable, String> {
    ExportTable::from_name(text)
        .ok_or_else(|| format!("tables are {}", ExportTable::ALL.map(ExportTable::name).join(", ")))
}

/// A format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// One object a line.
    Ndjson,
    /// A file a table.
    Csv,
    /// A file a table, with types.
    Parquet,
}

/// `ctwatch export`
#[derive(Clone, Debug)]
pub struct Export {
    /// The recording.
    pub file: PathBuf,
    /// What to make of it.
    pub format: ExportFormat,
    /// Where to; `None`: to standard output.
    pub output: Option<PathBuf>,
    /// What of it, in the order of [`Table::ALL`].
    pub tables: Vec<ExportTable>,
    /// Where to begin.
    pub from: Option<Moment>,
    /// Where to end.
    pub to: Option<Moment>,
    /// Without names and addresses; with a key or not.
    pub anonymize: Option<Option<String>>,
}

impl Export {
    pub(super) fn resolve(args: ExportArgs) -> Self {
        let ExportArgs { file, to, output, table, from, until, anonymize } = args;
        let wanted = |one: &ExportTable| table.is_empty() || table.contains(one);
        Self {
            file,
            format: match to {
                ToFormat::Ndjson => ExportFormat::Ndjson,
                ToFormat::Csv => ExportFormat::Csv,
                ToFormat::Parquet => ExportFormat::Parquet,
            },
            output,
            tables: ExportTable::ALL.into_iter().filter(wanted).collect(),
            from,
            to: until,
            anonymize: anonymize.map(|key| (!key.is_empty()).then_some(key)),
        }
    }
}
