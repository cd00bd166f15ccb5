//! Parquet: one file per table, with typed columns, all of them optional.
//! Rows are buffered until there are enough for a row group, so memory is bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;

use super::{ColumnType, ExportTable, Sink, Value};

/// Rows per row group: enough for a dictionary to pay off, and a few MB of memory at most.
const ROWS: usize = 1 << 13;

/// Writes Parquet.
pub struct Parquet(BTreeMap<ExportTable, Part>);

/// The file of one table.
struct Part {
    /// `None` once closed.
    writer: Option<SerializedFileWriter<File>>,
    columns: Vec<Cells>,
    rows: usize,
}

/// The buffered cells of one column: the known values, and for each row whether its value is known.
struct Cells {
    known: Known,
    levels: Vec<i16>,
}

enum Known {
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    Texts(Vec<ByteArray>),
}

impl Parquet {
    /// Writes these tables to these files.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn new(files: impl IntoIterator<Item = (ExportTable, File)>) -> Result<Self> {
        let part = |(table, file): (ExportTable, File)| {
            let schema = Arc::new(parse_message_type(&schema(table)).context("laying out a Parquet file")?);
            let writer =
                SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::builder().build()))?;
            let columns = table.columns().iter().map(|(_, kind)| Cells::new(*kind)).collect();
            Ok((table, Part { writer: Some(writer), columns, rows: 0 }))
        };
        Ok(Self(files.into_iter().map(part).collect::<Result<_>>()?))
    }
}

/// In Parquet's own notation.
fn schema(table: ExportTable) -> String {
    let columns = table.columns().iter().map(|(name, kind)| {
        let (physical, logical) = match kind {
            ColumnType::Int => ("INT64", ""),
            ColumnType::Float => ("DOUBLE", ""),
            ColumnType::Bool => ("BOOLEAN", ""),
            ColumnType::Text => ("BYTE_ARRAY", " (STRING)"),
            ColumnType::Time => ("INT64", " (TIMESTAMP(MICROS,true))"),
        };
        format!("OPTIONAL {physical} {name}{logical};")
    });
    format!("message {} {{ {} }}", table.name(), columns.collect::<Vec<_>>().join(" "))
}

impl Cells {
    const fn new(kind: ColumnType) -> Self {
        let known = match kind {
            ColumnType::Int | ColumnType::Time => Known::Ints(Vec::new()),
            ColumnType::Float => Known::Floats(Vec::new()),
            ColumnType::Bool => Known::Bools(Vec::new()),
            ColumnType::Text => Known::Texts(Vec::new()),
        };
        Self { known, levels: Vec::new() }
    }

    fn push(&mut self, value: &Value) {
        let is_known = match (&mut self.known, value) {
            (Known::Ints(known), Value::Int(value)) => {
                known.push(*value);
                true
            }
            (Known::Ints(known), Value::Time(value)) => {
                known.push(value.as_microsecond());
                true
            }
            (Known::Floats(known), Value::Float(value)) => {
                known.push(*value);
                true
            }
            (Known::Bools(known), Value::Bool(value)) => {
                known.push(*value);
                true
            }
            (Known::Texts(known), Value::Text(value) | Value::Sentence(value) | Value::Json(value)) => {
                known.push(ByteArray::from(value.raw()));
                true
            }
            _ => false,
        };
        self.levels.push(i16::from(is_known));
    }

    fn write(&mut self, writer: &mut SerializedColumnWriter<'_>) -> Result<()> {
        match &mut self.known {
            Known::Ints(known) => put::<Int64Type>(writer, known, &self.levels)?,
            Known::Floats(known) => put::<DoubleType>(writer, known, &self.levels)?,
            Known::Bools(known) => put::<BoolType>(writer, known, &self.levels)?,
            Known::Texts(known) => put::<ByteArrayType>(writer, known, &self.levels)?,
        }
        self.levels.clear();
        Ok(())
    }
}

fn put<T: DataType>(
    writer: &mut SerializedColumnWriter<'_>,
    known: &mut Vec<T::T>,
    levels: &[i16],
) -> Result<()> {
    writer.typed::<T>().write_batch(known, Some(levels), None)?;
    known.clear();
    Ok(())
}

impl Part {
    /// Writes the buffered rows as a row group.
    fn write(&mut self) -> Result<()> {
        let Some(writer) = self.writer.as_mut().filter(|_| self.rows > 0) else { return Ok(()) };
        let mut group = writer.next_row_group()?;
        let mut columns = self.columns.iter_mut();
        while let Some(mut column) = group.next_column()? {
            if let Some(cells) = columns.next() {
                cells.write(&mut column)?;
            }
            column.close()?;
        }
        group.close()?;
        self.rows = 0;
        Ok(())
    }
}

impl Sink for Parquet {
    fn row(&mut self, table: ExportTable, values: &[Value]) -> Result<()> {
        let Some(part) = self.0.get_mut(&table) else { return Ok(()) };
        for (cells, value) in part.columns.iter_mut().zip(values) {
            cells.push(value);
        }
        part.rows += 1;
        if part.rows == ROWS { part.write() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<()> {
        for part in self.0.values_mut() {
            part.write()?;
            if let Some(writer) = part.writer.take() {
                writer.close()?;
            }
        }
        Ok(())
    }
}
