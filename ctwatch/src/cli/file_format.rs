//! The formats of files that `report` and `export` write: what flags call each, and how its files may end.
//! `record` knows by the same names what can't be a recording.

use std::ffi::OsStr;
use std::path::Path;

use clap::builder::PossibleValue;

use super::common::{Choice, choice};
use crate::postmortem::ReportFormat;

/// A format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// One object per line.
    Ndjson,
    /// One file per table.
    Csv,
    /// One file per table, with types.
    Parquet,
}

/// One format.
pub struct FileFormat<T> {
    format: T,
    /// The name that help shows.
    name: &'static str,
    /// Others that are taken.
    aliases: &'static [&'static str],
    /// Endings besides all of these names.
    endings: &'static [&'static str],
}

pub const REPORT: [FileFormat<ReportFormat>; 4] = [
    FileFormat { format: ReportFormat::Text, name: "text", aliases: &["txt"], endings: &["log"] },
    FileFormat { format: ReportFormat::Markdown, name: "md", aliases: &["markdown"], endings: &[] },
    FileFormat { format: ReportFormat::Html, name: "html", aliases: &["htm"], endings: &[] },
    FileFormat { format: ReportFormat::Json, name: "json", aliases: &[], endings: &[] },
];

pub const EXPORT: [FileFormat<ExportFormat>; 3] = [
    FileFormat { format: ExportFormat::Ndjson, name: "ndjson", aliases: &["jsonl", "json"], endings: &[] },
    FileFormat { format: ExportFormat::Csv, name: "csv", aliases: &[], endings: &[] },
    FileFormat { format: ExportFormat::Parquet, name: "parquet", aliases: &[], endings: &[] },
];

/// The parser of a flag that takes their names.
pub fn by_name<T: Copy + Send + Sync + 'static>(formats: &[FileFormat<T>]) -> Choice<T> {
    choice(formats.iter().map(|one| (PossibleValue::new(one.name).aliases(one.aliases), one.format)))
}

/// The format that the ending of a file stands for.
pub fn by_ending<T: Copy>(formats: &[FileFormat<T>], path: &Path) -> Option<T> {
    let ending = ending(path)?;
    let is = |one: &&FileFormat<T>| one.is_called(&ending) || one.endings.contains(&ending.as_str());
    formats.iter().find(is).map(|one| one.format)
}

/// Whether the ending of a file is a name of one of these formats, so that it can be nothing else.
pub fn names_one<T>(formats: &[FileFormat<T>], path: &Path) -> bool {
    ending(path).is_some_and(|ending| formats.iter().any(|one| one.is_called(&ending)))
}

fn ending(path: &Path) -> Option<String> {
    Some(path.extension().and_then(OsStr::to_str)?.to_lowercase())
}

impl<T> FileFormat<T> {
    fn is_called(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }
}
