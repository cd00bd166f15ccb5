//! Runs as rows, and rows as runs.
//! What the columns mean is in schema.sql.

use anyhow::Result;
use rusqlite::types::Null;
use rusqlite::{Connection, Row, ToSql};

use super::columns::{RUN, RunColumns};
use super::fault::{ReadError, corrupt_row};
use super::limits;
use super::rows::Run;
use crate::foreign::Foreign;
use crate::model::{Backend, KernelCounters, WallMono};

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
    let [drop, early_drop, insert_failed, chaintoolong] = since_boot.as_array().map(u64::cast_signed);
    RunColumns::<&dyn ToSql> {
        id: &Null,
        started_us: &started.time.as_microsecond(),
        started_mono_us: &started.mono_us,
        boot_id,
        host,
        version,
        kernel_release,
        backend: &backend.name(),
        backend_reason,
        interval_us,
        counts_flows,
        hooks: &serde_json::to_string(&hooks)?,
        boot_drop: &drop,
        boot_early_drop: &early_drop,
        boot_insert_failed: &insert_failed,
        boot_chaintoolong: &chaintoolong,
        continues,
        first_tick: &first_tick,
        crc: &run.checksum(first_tick),
    }
    .insert(connection)?;
    Ok(connection.last_insert_rowid())
}

/// All runs, oldest first.
pub(super) fn all() -> String {
    format!("{} ORDER BY id", RunColumns::SELECT)
}

/// Reads a run, its number and that of its first tick.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, i64, Run), ReadError> {
    let (id, first_tick): (i64, i64) = (row.get(RUN.id)?, row.get(RUN.first_tick)?);
    let started = WallMono::from_columns(row.get(RUN.started_us)?, row.get(RUN.started_mono_us)?);
    let backend = Backend::from_name(&row.get::<_, String>(RUN.backend)?);
    let hooks = hooks(&row.get::<_, String>(RUN.hooks)?);
    let (Some(started), Some(backend), Some(hooks)) = (started, backend, hooks) else {
        return corrupt_row("run", id);
    };
    let counter = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let run = Run {
        started,
        boot_id: row.get(RUN.boot_id)?,
        host: row.get(RUN.host)?,
        version: row.get(RUN.version)?,
        kernel_release: row.get(RUN.kernel_release)?,
        backend,
        backend_reason: row.get(RUN.backend_reason)?,
        interval_us: row.get(RUN.interval_us)?,
        counts_flows: row.get(RUN.counts_flows)?,
        hooks,
        since_boot: KernelCounters {
            drop: counter(RUN.boot_drop)?,
            early_drop: counter(RUN.boot_early_drop)?,
            insert_failed: counter(RUN.boot_insert_failed)?,
            chaintoolong: counter(RUN.boot_chaintoolong)?,
        },
        continues: row.get(RUN.continues)?,
    };
    let names = [run.boot_id.as_ref(), run.host.as_ref(), Some(&run.version), Some(&run.kernel_release)];
    let counters = run.since_boot.as_array().map(u64::cast_signed);
    let holds = run.checksum(first_tick) == row.get::<_, u32>(RUN.crc)?
        && names.into_iter().all(limits::is_name)
        && limits::is_clock(run.interval_us)
        && limits::is_tick(first_tick)
        && counters.into_iter().all(|counter| counter >= 0);
    if holds { Ok((id, first_tick, run)) } else { corrupt_row("run", id) }
}

fn hooks(text: &str) -> Option<Vec<(Foreign, Foreign)>> {
    #[derive(serde::Deserialize)]
    struct Hook {
        function: Foreign,
        kind: Foreign,
    }
    let hooks: Vec<Hook> = serde_json::from_str(text).ok()?;
    Some(hooks.into_iter().map(|Hook { function, kind }| (function, kind)).collect())
}
