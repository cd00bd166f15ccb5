//! Small numbers for what ticks and events name again and again: slots, namespaces, owners.
//! What a transaction that failed had learned must be forgotten: the file doesn't have it.

use std::collections::HashMap;
use std::sync::Arc;

use ctwatch_common::slot::{KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use rusqlite::{Connection, params};

use crate::model::{NetnsId, Owner, Role};
use crate::record::event::text;
use crate::record::rebuild::Names;
use crate::record::rows::netns_checksum;
use crate::record::track::{cause_of, is_flow};

/// Owners remembered. One that is forgotten gets a second row, which harms nobody.
const OWNERS: usize = 1024;

/// The numbers of one run.
#[derive(Debug)]
pub struct Dictionary {
    run: i64,
    slots: HashMap<SlotKey, i64>,
    netns: HashMap<NetnsId, i64>,
    owners: HashMap<Arc<Owner>, i64>,
}

impl Dictionary {
    /// Of a run that has nothing in the file yet.
    pub fn new(run: i64) -> Self {
        Self { run, slots: HashMap::new(), netns: HashMap::new(), owners: HashMap::new() }
    }

    /// Of a run that has: its slots and namespaces are known.
    pub fn load(connection: &Connection, run: i64) -> rusqlite::Result<Self> {
        let mut dictionary = Self::new(run);
        let mut statement = connection.prepare_cached("SELECT id, number FROM netns WHERE run = ?1")?;
        let mut rows = statement.query([run])?;
        while let Some(row) = rows.next()? {
            dictionary.netns.insert(NetnsId::from_packed(row.get(1)?), row.get(0)?);
        }
        let mut statement = connection.prepare_cached(super::super::reader::SLOTS)?;
        let mut rows = statement.query([run])?;
        while let Some(row) = rows.next()? {
            dictionary.slots.insert(super::super::reader::slot_key(row)?, row.get(0)?);
        }
        Ok(dictionary)
    }

    /// Keeps what namespaces are called.
    pub fn name(&mut self, connection: &Connection, names: &HashMap<NetnsId, Names>) -> rusqlite::Result<()> {
        for (id, names) in names {
            let row = self.netns(connection, *id)?;
            let crc = netns_checksum(self.run, *id, names);
            connection
                .prepare_cached("UPDATE netns SET name = ?2, container = ?3, crc = ?4 WHERE id = ?1")?
                .execute(params![row, names.name, names.container, crc])?;
        }
        Ok(())
    }

    /// The number of a netns.
    pub fn netns(&mut self, connection: &Connection, id: NetnsId) -> rusqlite::Result<i64> {
        if let Some(row) = self.netns.get(&id) {
            return Ok(*row);
        }
        let crc = netns_checksum(self.run, id, &Names::default());
        connection
            .prepare_cached("INSERT INTO netns (run, number, inode, life, crc) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![self.run, id.packed(), id.inode(), id.generation(), crc])?;
        let row = connection.last_insert_rowid();
        self.netns.insert(id, row);
        Ok(row)
    }

    /// The number of a slot.
    pub fn slot(&mut self, connection: &Connection, key: SlotKey) -> rusqlite::Result<i64> {
        if let Some(row) = self.slots.get(&key) {
            return Ok(*row);
        }
        let netns = self.netns(connection, NetnsId::from_packed(key.netns))?;
        connection
            .prepare_cached(
                "INSERT INTO slot (netns, proto, port, cause, loopback, unattributed) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                netns,
                key.proto,
                key.port,
                (!is_flow(key)).then(|| cause_of(key)),
                key.kind & KIND_LOOPBACK != 0,
                key.kind & KIND_UNATTRIBUTED != 0,
            ])?;
        let row = connection.last_insert_rowid();
        self.slots.insert(key, row);
        Ok(row)
    }

    /// Owners from this number on are known here, and may be named again.
    pub fn known_owners(&self) -> i64 {
        self.owners.values().copied().min().unwrap_or(i64::MAX)
    }

    /// The number of an owner.
    pub fn owner(&mut self, connection: &Connection, who: &Arc<Owner>) -> rusqlite::Result<i64> {
        if let Some(row) = self.owners.get(who) {
            return Ok(*row);
        }
        let Owner { process, cgroup, container, unattributable } = &**who;
        connection
            .prepare_cached(
                "INSERT INTO owner (pid, name, role, cgroup, container, anybodys) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                process.map(|process| process.pid),
                process.and_then(|process| text(&process.name.padded())),
                process.map(|process| match process.role {
                    Role::Sender => "sender",
                    Role::Listener => "listener",
                }),
                cgroup,
                container,
                unattributable
            ])?;
        let row = connection.last_insert_rowid();
        if self.owners.len() >= OWNERS {
            self.owners.clear();
        }
        self.owners.insert(Arc::clone(who), row);
        Ok(row)
    }
}
