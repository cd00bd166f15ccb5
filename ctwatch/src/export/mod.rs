//! A recording as rows of plain tables, for other programs: one file defines the tables, one fills them, and one per format
//! writes them.

mod csv;
mod fill;
mod ndjson;
mod parquet;
mod table;

use std::path::PathBuf;

use crate::foreign::Foreign;
use anyhow::Result;
use jiff::Timestamp;

pub use csv::Csv;
pub use fill::{Choice, export};
pub use ndjson::Ndjson;
pub use parquet::Parquet;
pub use table::{Column, ColumnType, ExportTable};

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unknown, or not applicable.
    Null,
    /// A whole number.
    Int(i64),
    /// Any number.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Text from outside; words of ctwatch's own are as harmless in it.
    Text(Foreign),
    /// A sentence in which names are escaped.
    Sentence(Foreign),
    /// JSON.
    Json(Foreign),
    /// A point in time.
    Time(Timestamp),
}

/// Takes rows in any order of tables.
pub trait Sink {
    /// A row of that table, a value for each of its columns.
    ///
    /// # Errors
    /// It can't be written; a closed pipe is `BrokenPipe`.
    fn row(&mut self, table: ExportTable, values: &[Value]) -> Result<()>;
    /// Completes the output: there are no more rows.
    ///
    /// # Errors
    /// As [`Sink::row`].
    fn finish(&mut self) -> Result<()>;
}

/// Where the output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputTarget {
    /// Standard output.
    Stdout,
    /// This new file.
    File(PathBuf),
    /// This directory, with a new file per table.
    Folder(PathBuf),
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(value.cast_signed())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<u16> for Value {
    fn from(value: u16) -> Self {
        Self::Int(value.into())
    }
}

impl From<u8> for Value {
    fn from(value: u8) -> Self {
        Self::Int(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value.into())
    }
}

impl From<Foreign> for Value {
    fn from(value: Foreign) -> Self {
        Self::Text(value)
    }
}

impl From<Timestamp> for Value {
    fn from(value: Timestamp) -> Self {
        Self::Time(value)
    }
}
