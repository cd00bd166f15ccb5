//! RFC 4180 with a header; unknown values are empty. Text is escaped, and no cell is a formula for a spreadsheet.
//! One file per table, since each has its own columns.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;

use super::{ExportTable, Sink, Value};
use crate::foreign::{json_cell, sentence_cell};

/// Writes CSV.
pub struct Csv<W: Write>(BTreeMap<ExportTable, csv::Writer<W>>);

impl<W: Write> Csv<W> {
    /// Writes these tables to these files, the headers at once.
    ///
    /// # Errors
    /// As [`Sink::row`].
    pub fn new(outs: impl IntoIterator<Item = (ExportTable, W)>) -> Result<Self> {
        let mut writers = BTreeMap::new();
        for (table, out) in outs {
            let mut writer = csv::Writer::from_writer(out);
            writer.write_record(table.columns().iter().map(|(name, _)| name)).map_err(plain)?;
            writers.insert(table, writer);
        }
        Ok(Self(writers))
    }
}

/// The csv crate wraps I/O errors; unwrapped, a closed pipe can be told from a failure.
fn plain(error: csv::Error) -> anyhow::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.into(),
        other => anyhow::anyhow!("writing CSV: {other:?}"),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Text(value) => value.cell(),
        Value::Sentence(value) => sentence_cell(value.raw()),
        Value::Json(value) => json_cell(value.raw()),
        Value::Time(value) => format!("{value:.6}"),
    }
}

impl<W: Write> Sink for Csv<W> {
    fn row(&mut self, table: ExportTable, values: &[Value]) -> Result<()> {
        if let Some(writer) = self.0.get_mut(&table) {
            writer.write_record(values.iter().map(text)).map_err(plain)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for writer in self.0.values_mut() {
            writer.flush()?;
        }
        Ok(())
    }
}
