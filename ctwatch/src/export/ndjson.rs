//! One JSON object per line, with the table's name as `type`. Every column is present, null if unknown.
//! Text that is itself JSON stays text.

use std::io::{self, BufWriter, Write};

use anyhow::Result;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::{ExportTable, Sink, Value};
use crate::foreign::write_json;

/// Writes NDJSON.
#[derive(Debug)]
pub struct Ndjson<W: Write>(BufWriter<W>);

impl<W: Write> Ndjson<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self(BufWriter::new(out))
    }
}

struct Row<'a>(ExportTable, &'a [Value]);

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(table, values) = self;
        let mut map = serializer.serialize_map(Some(values.len() + 1))?;
        map.serialize_entry("type", table.name())?;
        for ((name, _), value) in table.columns().iter().zip(*values) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_none(),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Text(value) | Self::Sentence(value) | Self::Json(value) => value.serialize(serializer),
            Self::Time(value) => serializer.collect_str(&format_args!("{value:.6}")),
        }
    }
}

impl<W: Write> Sink for Ndjson<W> {
    fn row(&mut self, table: ExportTable, values: &[Value]) -> Result<()> {
        write_json(&mut self.0, &Row(table, values)).map_err(io::Error::from)?;
        Ok(self.0.write_all(b"\n")?)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}
