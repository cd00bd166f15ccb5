//! Rule sets and the settings of a netns as rows, and back. A rule set is JSON that this room doesn't read, compressed.
//! A file from elsewhere may hold anything: what is unpacked has a limit.

use std::io::{self, Read as _, Write};

use anyhow::{Context as _, Result, ensure};
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use rusqlite::types::Null;
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::columns::{NETNS_SETTING, NetnsSettingColumns, RULES, RulesColumns};
use super::digest::Digest;
use super::fault::{ReadError, corrupt_row};
use super::limits;
use super::query::{RowSpan, each};
use super::rows::{NetnsSetting, Setting, SnapshotReason};
use crate::model::{NetnsId, WallMono};

/// A longer rule set is not kept: 20,000 rules take a third of it.
pub const MAX_SIZE: u64 = 48 << 20;

/// A rule set, compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of JSON.
    pub size: u64,
    /// The JSON, as raw DEFLATE (RFC 1951).
    pub bytes: Vec<u8>,
}

/// The rules of a netns, when they were first read and whenever they changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRules {
    /// Whose rules.
    pub netns: NetnsId,
    /// When they were read.
    pub at: WallMono,
    /// Why they were.
    pub reason: SnapshotReason,
    /// The rules; `None` if they were dropped since to keep the file small.
    pub rules: Option<Packed>,
}

/// Takes bytes for a digest, and counts them.
struct Sum(Sha256, u64);

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        self.1 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A digest of what [`Packed::new`] would keep, to see whether it is the same as before, and its size.
///
/// # Errors
/// It can't be serialized.
pub fn digest(rules: &impl Serialize) -> Result<([u8; 32], u64)> {
    let mut sum = io::BufWriter::with_capacity(64 << 10, Sum(Sha256::new(), 0));
    serde_json::to_writer(&mut sum, rules).context("writing rules as JSON")?;
    let Sum(digest, size) = sum.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok((digest.finalize().into(), size))
}

impl Packed {
    /// Compresses it.
    ///
    /// # Errors
    /// It is too large.
    pub fn new(rules: &impl Serialize) -> Result<Self> {
        // The fastest level: rules repeat themselves so much that the others gain little.
        let encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        let mut buffer = io::BufWriter::with_capacity(64 << 10, encoder);
        serde_json::to_writer(&mut buffer, rules).context("writing rules as JSON")?;
        let mut encoder = buffer.into_inner().map_err(io::IntoInnerError::into_error)?;
        encoder.try_finish()?;
        let (size, bytes) = (encoder.total_in(), encoder.finish()?);
        ensure!(size <= MAX_SIZE, "{size} bytes are more than a recording keeps of a rule set ({MAX_SIZE})");
        let packed = bytes.len();
        ensure!(
            packed <= limits::PACKED,
            "{packed} bytes, compressed, are more than a recording keeps of a rule set"
        );
        Ok(Self { size, bytes })
    }

    /// The JSON.
    ///
    /// # Errors
    /// It is not what was packed, or larger than anything that is.
    pub fn unpack(&self) -> Result<String> {
        ensure!(self.size <= MAX_SIZE, "a rule set of {} bytes: no recorder keeps one so large", self.size);
        let mut text = String::new();
        DeflateDecoder::new(self.bytes.as_slice())
            .take(self.size + 1)
            .read_to_string(&mut text)
            .context("unpacking rules")?;
        ensure!(text.len() as u64 == self.size, "a rule set is not as long as its row says");
        Ok(text)
    }
}

impl StoredRules {
    /// Without the rules themselves, which may be dropped while their row stays.
    fn checksum(&self, run: i64, size: i64, content: u32) -> u32 {
        let Self { netns, at, reason, rules: _ } = self;
        let mut digest = Digest::default();
        digest.instant(at).int(run).int(i64::from(netns.packed())).text(reason.name());
        digest.int(size).int(i64::from(content)).finish()
    }
}

/// Writes a rule set.
pub(super) fn insert(
    connection: &Connection,
    run: i64,
    netns: i64,
    stored: &StoredRules,
) -> rusqlite::Result<()> {
    let StoredRules { netns: _, at, reason, rules } = stored;
    let size = rules.as_ref().map_or(0, |rules| rules.size.cast_signed());
    let content = rules.as_ref().map_or(0, |rules| crc32fast::hash(&rules.bytes));
    RulesColumns::<&dyn ToSql> {
        id: &Null,
        run: &run,
        netns: &netns,
        reason: &reason.name(),
        wall_us: &at.time.as_microsecond(),
        mono_us: &at.mono_us,
        size: &size,
        rules: &rules.as_ref().map(|rules| rules.bytes.as_slice()),
        rules_crc: &content,
        crc: &stored.checksum(run, size, content),
    }
    .insert(connection)
}

/// Reads the rule sets of a run. None at all where the file is from before they were kept.
pub(super) fn read(connection: &Connection, run: i64, span: RowSpan) -> Result<Vec<StoredRules>, ReadError> {
    if !has_table(connection, "rules")? {
        return Ok(Vec::new());
    }
    let [first, last] = span;
    // The netns's number follows the row's own columns.
    const NETNS_NUMBER: usize = RulesColumns::NAMES.len();
    let columns = RulesColumns::of("r");
    let sql = format!(
        "SELECT {columns}, n.number, length(r.rules) FROM rules r CROSS JOIN netns n ON n.id = r.netns WHERE r.run = ?1 \
         AND r.id BETWEEN ?2 AND ?3 ORDER BY r.id"
    );
    let read = |row: &Row<'_>| {
        let id: i64 = row.get(RULES.id)?;
        let at = WallMono::from_columns(row.get(RULES.wall_us)?, row.get(RULES.mono_us)?);
        let reason = SnapshotReason::from_name(&row.get::<_, String>(RULES.reason)?);
        let (Some(at), Some(reason)) = (at, reason) else { return corrupt_row("rules", id) };
        if row.get::<_, Option<i64>>(NETNS_NUMBER + 1)?.is_some_and(|length| length > limits::PACKED as i64) {
            return corrupt_row("rules", id);
        }
        let (size, content): (i64, u32) = (row.get(RULES.size)?, row.get(RULES.rules_crc)?);
        let bytes: Option<Vec<u8>> = row.get(RULES.rules)?;
        if bytes.as_ref().is_some_and(|bytes| crc32fast::hash(bytes) != content) {
            return corrupt_row("rules", id);
        }
        let rules = bytes.map(|bytes| Packed { size: size.cast_unsigned(), bytes });
        let stored = StoredRules { netns: NetnsId::from_packed(row.get(NETNS_NUMBER)?), at, reason, rules };
        let holds = stored.checksum(run, size, content) == row.get::<_, u32>(RULES.crc)?;
        if holds { Ok(stored) } else { corrupt_row("rules", id) }
    };
    limits::with_long_values(connection, || each(connection, &sql, [run, first, last], read))
}

/// Writes a setting of another netns.
pub(super) fn insert_setting(
    connection: &Connection,
    run: i64,
    netns: i64,
    stored: &NetnsSetting,
) -> rusqlite::Result<()> {
    let Setting { at, name, value, before } = &stored.setting;
    NetnsSettingColumns::<&dyn ToSql> {
        id: &Null,
        run: &run,
        netns: &netns,
        wall_us: &at.time.as_microsecond(),
        mono_us: &at.mono_us,
        name,
        value,
        before,
        crc: &stored.checksum(run),
    }
    .insert(connection)
}

/// Reads the settings of other namespaces in a run.
pub(super) fn read_settings(
    connection: &Connection,
    run: i64,
    span: RowSpan,
) -> Result<Vec<NetnsSetting>, ReadError> {
    if !has_table(connection, "netns_setting")? {
        return Ok(Vec::new());
    }
    let [first, last] = span;
    const NETNS_NUMBER: usize = NetnsSettingColumns::NAMES.len();
    let columns = NetnsSettingColumns::of("s");
    let sql = format!(
        "SELECT {columns}, n.number FROM netns_setting s CROSS JOIN netns n ON n.id = s.netns WHERE s.run = ?1 \
         AND s.id BETWEEN ?2 AND ?3 ORDER BY s.id"
    );
    each(connection, &sql, [run, first, last], |row| {
        let id = row.get(NETNS_SETTING.id)?;
        let at = WallMono::from_columns(row.get(NETNS_SETTING.wall_us)?, row.get(NETNS_SETTING.mono_us)?);
        let Some(at) = at else { return corrupt_row("netns_setting", id) };
        let stored = NetnsSetting {
            netns: NetnsId::from_packed(row.get(NETNS_NUMBER)?),
            setting: Setting {
                at,
                name: row.get(NETNS_SETTING.name)?,
                value: row.get(NETNS_SETTING.value)?,
                before: row.get(NETNS_SETTING.before)?,
            },
        };
        let holds = stored.checksum(run) == row.get::<_, u32>(NETNS_SETTING.crc)?;
        if holds { Ok(stored) } else { corrupt_row("netns_setting", id) }
    })
}

/// Whether the file has this table: one from before it was thought of has not.
pub(super) fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    let mut statement =
        connection.prepare_cached("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1")?;
    Ok(statement.query_row([name], |_| Ok(())).optional()?.is_some())
}

/// Drops the oldest rule sets while all together take more than this: first those
/// during which no trigger fired, then any but the newest of each netns. Their rows stay and say that there were some.
pub(super) fn shrink(connection: &Connection, budget: u64) -> rusqlite::Result<bool> {
    let total = "SELECT ifnull(sum(length(rules)), 0) FROM rules";
    let mut dropped = false;
    while connection.prepare_cached(total)?.query_row([], |row| row.get::<_, i64>(0))?.cast_unsigned()
        > budget
    {
        // In force from its own time to that of the next one of its netns.
        let oldest = "SELECT r.id FROM rules r WHERE r.rules IS NOT NULL \
             AND EXISTS (SELECT 1 FROM rules n WHERE n.netns = r.netns AND n.id > r.id) \
             ORDER BY EXISTS (SELECT 1 FROM incident i WHERE i.run = r.run AND i.mono_us BETWEEN r.mono_us AND \
               (SELECT min(n.mono_us) FROM rules n WHERE n.netns = r.netns AND n.id > r.id)), r.id LIMIT 1";
        let id: Option<i64> =
            connection.prepare_cached(oldest)?.query_row([], |row| row.get(0)).optional()?;
        let Some(id) = id else { break };
        connection.prepare_cached("UPDATE rules SET rules = NULL WHERE id = ?1")?.execute([id])?;
        dropped = true;
    }
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(text: String, more in 0..2000_usize) {
            let rules = vec![text; more];
            let packed = Packed::new(&rules).unwrap();
            let unpacked = packed.unpack().unwrap();
            prop_assert_eq!(unpacked.len() as u64, packed.size);
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&unpacked).unwrap(), rules.clone());
            prop_assert_eq!(digest(&rules).unwrap().1, packed.size);
        }

        #[test]
        fn bytes_from_elsewhere_give_an_error_and_no_more_than_they_claim(bytes: Vec<u8>, size in 0..4096_u64) {
            if let Ok(text) = (Packed { size, bytes }).unpack() {
                prop_assert_eq!(text.len() as u64, size);
            }
        }
    }

    #[test]
    fn a_bomb_is_cut_off() {
        let mut packed = Packed::new(&"0".repeat(40 << 20)).unwrap();
        assert!(packed.bytes.len() < 1 << 20, "it is one");
        packed.size = 100;
        assert!(packed.unpack().unwrap_err().to_string().contains("not as long"));
        packed.size = u64::MAX;
        assert!(packed.unpack().unwrap_err().to_string().contains("no recorder keeps"));
    }

    #[test]
    fn a_rule_set_larger_than_any_is_not_kept() {
        let error = Packed::new(&"0".repeat((MAX_SIZE + 1) as usize)).unwrap_err();
        assert!(error.to_string().contains("more than a recording keeps"), "{error}");
    }
}
