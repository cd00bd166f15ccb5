//! Lays out a new file, and sets up every connection.
//! The tables are in schema.sql; settings of the whole database are here.

use ctwatch_common::Cause;
use rusqlite::{Connection, Result, params};

use super::{APPLICATION_ID, SCHEMA};

pub(super) const TABLES: &str = include_str!("schema.sql");
/// Tables that came later.
pub(super) const LATER: &str = include_str!("schema_rules.sql");

/// Lays out an empty file that nobody else uses yet.
pub(super) fn lay_out(connection: &mut Connection, version: &str, created: &str) -> Result<()> {
    // Before the first table: afterwards it would take a VACUUM.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    let transaction = connection.transaction()?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.execute_batch(TABLES)?;
    transaction.execute_batch(LATER)?;
    for (name, value) in
        [("schema", SCHEMA.to_string().as_str()), ("created_by", version), ("created", created)]
    {
        transaction.execute("INSERT INTO meta VALUES (?1, ?2)", params![name, value])?;
    }
    for cause in Cause::ALL {
        let row = params![cause as u8, cause.name(), cause.unit().name()];
        transaction.execute("INSERT INTO cause VALUES (?1, ?2, ?3)", row)?;
    }
    transaction.commit()
}

/// Gives a file that an older ctwatch began the tables it lacks.
pub(super) fn complete(connection: &Connection) -> Result<()> {
    connection.execute_batch(LATER)
}
