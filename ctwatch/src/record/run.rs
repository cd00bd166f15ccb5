//! Runs as rows, and rows as them.
//! The columns stand here once for the writer and once for the reader; what they mean is in schema.sql.

use anyhow::Result;
use rusqlite::{Connection, Row, params};

use super::open::{ReadError, wrong};
use super::rows::Run;
use crate::model::{KernelCounters, WallMono};

/// All runs, in their order.
pub(super) const ROWS: &str = "SELECT id, started_us, started_mono_us, boot_id, host, version, kernel_release, backend, \
     backend_reason, interval_us, counts_flows, hooks, boot_drop, boot_early_drop, boot_insert_failed, boot_chaintoolong, \
     continues, first_tick, crc FROM run ORDER BY id";

/// Writes the start of a run, and returns its number.
pub(super) fn insert(connection: &Connection, run: &Run, first_tick: i64) -> Result<i64> {
    let Run {
        started,
        boot_id,
        host,
        version,
        kernel_release,
        backend,
        backend_reason,
        interval_us,
        counts_flows,
        hooks,
        since_boot,
        continues,
    } = run;
    let hooks: Vec<_> = hooks
        .iter()
        .map(|(function, kind)| serde_json::json!({ "function": function, "kind": kind }))
        .collect();
    connection.execute(
        "INSERT INTO run (started_us, started_mono_us, boot_id, host, version, kernel_release, backend, backend_reason, \
         interval_us, counts_flows, hooks, boot_drop, boot_early_drop, boot_insert_failed, boot_chaintoolong, continues, \
         first_tick, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
        params![
            started.time.as_microsecond(),
            started.mono_us,
            boot_id,
            host,
            version,
            kernel_release,
            backend,
            backend_reason,
            interval_us,
            counts_flows,
            serde_json::to_string(&hooks)?,
            since_boot.drop.cast_signed(),
            since_boot.early_drop.cast_signed(),
            since_boot.insert_failed.cast_signed(),
            since_boot.chaintoolong.cast_signed(),
            continues,
            first_tick,
            run.checksum(first_tick),
        ],
    )?;
    Ok(connection.last_insert_rowid())
}

/// A run with its number and that of its first tick.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, i64, Run), ReadError> {
    let hooks = hooks(&row.get::<_, String>(11)?);
    let run = WallMono::from_columns(row.get(1)?, row.get(2)?).zip(hooks).map(|(started, hooks)| {
        Ok::<_, rusqlite::Error>(Run {
            started,
            boot_id: row.get(3)?,
            host: row.get(4)?,
            version: row.get(5)?,
            kernel_release: row.get(6)?,
            backend: row.get(7)?,
            backend_reason: row.get(8)?,
            interval_us: row.get(9)?,
            counts_flows: row.get(10)?,
            hooks,
            since_boot: KernelCounters {
                drop: row.get::<_, i64>(12)?.cast_unsigned(),
                early_drop: row.get::<_, i64>(13)?.cast_unsigned(),
                insert_failed: row.get::<_, i64>(14)?.cast_unsigned(),
                chaintoolong: row.get::<_, i64>(15)?.cast_unsigned(),
            },
            continues: row.get(16)?,
        })
    });
    let (id, first_tick): (i64, i64) = (row.get(0)?, row.get(17)?);
    let Some(run) = run.transpose()? else { return wrong("run", id) };
    let holds = run.checksum(first_tick) == row.get::<_, u32>(18)?;
    if holds { Ok((id, first_tick, run)) } else { wrong("run", id) }
}

fn hooks(text: &str) -> Option<Vec<(String, String)>> {
    let hooks: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
    let of = |hook: &serde_json::Value, name: &str| Some(hook.get(name)?.as_str()?.to_owned());
    hooks.iter().map(|hook| Some((of(hook, "function")?, of(hook, "kind")?))).collect()
}
