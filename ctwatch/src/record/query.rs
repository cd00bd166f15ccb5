//! Taking the rows of a query, within what a recorder can have written.
//! Everything that is read of a recording is read by these.

use std::ops::ControlFlow;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::fault::{ReadError, too_much};
use super::limits;
use super::stop::is_stopped;

/// What a row takes at least that goes elsewhere than into the list of rows.
const LEAST: usize = 32;

/// The lowest and the highest number that rows of a run have. They are written run by run, so that there are no others
/// between them, and reading all runs takes as long as the rows are many.
pub(super) type RowSpan = [i64; 2];

/// Rows of any number.
pub(super) const ANY_ROW: RowSpan = [i64::MIN, i64::MAX];

/// Every row of a query. Texts are no longer than [`limits::TEXT`], and all together no more than is held at once.
pub(super) fn each<T, P: rusqlite::Params>(
    connection: &Connection,
    sql: &str,
    parameters: P,
    read: impl FnMut(&Row<'_>) -> Result<T, ReadError>,
) -> Result<Vec<T>, ReadError> {
    each_of(connection, sql, parameters, limits::TEXT, read)
}

/// As [`each`], with texts up to this length.
pub(super) fn each_of<T, P: rusqlite::Params>(
    connection: &Connection,
    sql: &str,
    parameters: P,
    longest: usize,
    mut read: impl FnMut(&Row<'_>) -> Result<T, ReadError>,
) -> Result<Vec<T>, ReadError> {
    let (mut found, mut held) = (Vec::new(), 0);
    for_each(connection, sql, parameters, longest, |row, values| {
        held += values + size_of::<T>().max(LEAST);
        if held > limits::HELD {
            return too_much(&format!("bytes in rows of {} at once", table_of(sql)), limits::HELD);
        }
        found.push(read(row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Takes the rows of a query one by one, each with the bytes of its texts and blobs. None of them is held.
pub(super) fn for_each<P: rusqlite::Params>(
    connection: &Connection,
    sql: &str,
    parameters: P,
    longest: usize,
    mut take: impl FnMut(&Row<'_>, usize) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    let mut statement = connection.prepare_cached(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query(parameters)?;
    let left = limits::ValuesLeft::of(connection);
    while let Some(row) = rows.next()? {
        if is_stopped() {
            return Err(ReadError::Stopped);
        }
        let mut values = 0;
        for column in 0..columns {
            values += match row.get_ref(column)? {
                ValueRef::Text(text) if text.len() > longest => {
                    return too_much(&format!("bytes in a text of {}", table_of(sql)), longest);
                }
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len(),
                ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => 0,
            };
        }
        if values > 0 && left.is_some_and(|left| !left.take(values)) {
            let what = "its texts and blobs are more bytes than a file of its size can have";
            return Err(ReadError::TooMuch(what.to_owned()));
        }
        if take(row, values)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The first table that a query of ours is about.
pub(super) fn table_of(sql: &str) -> &str {
    let after = sql.split_once(" FROM ").map(|(_, after)| after);
    after.and_then(|after| after.split_whitespace().next()).unwrap_or("the file")
}
