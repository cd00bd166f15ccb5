//! Small numbers for what ticks and events refer to again and again: slots, namespaces, owners.
//! After a failed transaction the dictionary must be reloaded: the file doesn't have what was added.

use std::collections::HashMap;
use std::sync::Arc;

use ctwatch_common::slot::{KIND_FLAGS, KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use rusqlite::types::Null;
use rusqlite::{Connection, ToSql, params};

use crate::model::{NetnsId, Owner, Role};
use crate::record::columns::{NETNS, NetnsColumns, OwnerColumns, SlotColumns};
use crate::record::event::text;
use crate::record::reader::{slot, slots_of_run};
use crate::record::rows::{Names, netns_checksum};

/// Owners remembered. One that is forgotten gets a second row, which does no harm.
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
    /// For a run that has nothing in the file yet.
    pub fn new(run: i64) -> Self {
        Self { run, slots: HashMap::new(), netns: HashMap::new(), owners: HashMap::new() }
    }

    /// For a run whose slots and namespaces are in the file.
    pub fn load(connection: &Connection, run: i64) -> rusqlite::Result<Self> {
        let mut dictionary = Self::new(run);
        let sql = format!("{} WHERE run = ?1", NetnsColumns::SELECT);
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query([run])?;
        while let Some(row) = rows.next()? {
            dictionary.netns.insert(NetnsId::from_packed(row.get(NETNS.number)?), row.get(NETNS.id)?);
        }
        let mut statement = connection.prepare_cached(&slots_of_run())?;
        let mut rows = statement.query([run])?;
        while let Some(row) = rows.next()? {
            let (id, key) = slot(row)?;
            dictionary.slots.insert(key, id);
        }
        Ok(dictionary)
    }

    /// Stores the names of namespaces.
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
        NetnsColumns::<&dyn ToSql> {
            id: &Null,
            run: &self.run,
            number: &id.packed(),
            inode: &id.inode(),
            life: &id.generation(),
            name: &Null,
            container: &Null,
            crc: &netns_checksum(self.run, id, &Names::default()),
        }
        .insert(connection)?;
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
        let number = key.kind & !KIND_FLAGS;
        SlotColumns::<&dyn ToSql> {
            id: &Null,
            netns: &netns,
            proto: &key.proto,
            port: &key.port,
            cause: &(number != KIND_FLOWS).then_some(number),
            loopback: &(key.kind & KIND_LOOPBACK != 0),
            unattributed: &(key.kind & KIND_UNATTRIBUTED != 0),
        }
        .insert(connection)?;
        let row = connection.last_insert_rowid();
        self.slots.insert(key, row);
        Ok(row)
    }

    /// Owners from this number on are known here, and may be referenced again.
    pub fn known_owners(&self) -> i64 {
        self.owners.values().copied().min().unwrap_or(i64::MAX)
    }

    /// The number of an owner.
    pub fn owner(&mut self, connection: &Connection, who: &Arc<Owner>) -> rusqlite::Result<i64> {
        if let Some(row) = self.owners.get(who) {
            return Ok(*row);
        }
        let Owner { process, cgroup, container, unattributable } = &**who;
        OwnerColumns::<&dyn ToSql> {
            id: &Null,
            pid: &process.map(|process| process.pid),
            name: &process.and_then(|process| text(process.name)),
            role: &process.map(|process| match process.role {
                Role::Sender => "sender",
                Role::Listener => "listener",
            }),
            cgroup,
            container,
            anybodys: unattributable,
        }
        .insert(connection)?;
        let row = connection.last_insert_rowid();
        if self.owners.len() >= OWNERS {
            self.owners.clear();
        }
        self.owners.insert(Arc::clone(who), row);
        Ok(row)
    }
}
