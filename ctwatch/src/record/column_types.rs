//! Types of ours in a recording's columns: text from outside is written as it is, and read whatever it is; a protocol is its number.
//! A recording comes from others: what it holds is text from outside again.

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};

use crate::foreign::Foreign;
use crate::model::Protocol;

impl ToSql for Foreign {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.raw().as_bytes())))
    }
}

impl FromSql for Foreign {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let ValueRef::Text(bytes) = value else { return Err(FromSqlError::InvalidType) };
        // The stand-ins of bytes are stored as such.
        Ok(std::str::from_utf8(bytes).map_or_else(|_| Self::from_bytes(bytes), Self::from))
    }
}

impl ToSql for Protocol {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Protocol {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        u8::column_result(value).map(Self)
    }
}
