//! Small numbers for what ticks and events refer to again and again: slots, namespaces, owners. Of a run there are only so
//! many, whatever comes and goes: readers hold all of them.
//! After a failed transaction the dictionary must be reloaded: the file doesn't have what was added.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ctwatch_common::slot::{KIND_FLAGS, KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey, SlotKind};
use rusqlite::types::Null;
use rusqlite::{Connection, ToSql, params};

use crate::model::{NetnsId, Owner, Role};
use crate::record::columns::{NETNS, NetnsColumns, OwnerColumns, SlotColumns};
use crate::record::event::text;
use crate::record::limits;
use crate::record::reader::slot;
use crate::record::rows::{Names, netns_checksum};
use crate::record::tick::{NetnsTick, Presence, Tick};

/// Owners remembered. One that is forgotten gets a second row, which does no harm.
const OWNERS: usize = 1024;
/// What namespaces that are gone are called together in a sum: no netns has this number.
pub(in crate::record) const GONE: NetnsId = NetnsId::from_packed(0);
/// What namespaces without a number of their own are called together: nor this one.
const OTHERS: NetnsId = NetnsId::from_packed(1);
/// Namespaces that get a number of their own: [`OTHERS`] and those that are gone have one together.
const MOST_NETNS: usize = limits::NETNS - 2;

/// The numbers of one run.
#[derive(Debug)]
pub struct Dictionary {
    run: i64,
    slots: HashMap<SlotKey, i64>,
    netns: HashMap<NetnsId, i64>,
    owners: HashMap<Arc<Owner>, i64>,
    /// Something had no room.
    is_full: bool,
    /// Of some of those called [`OTHERS`] not all is counted: from then on their sum isn't whole.
    others_lack: bool,
}

impl Dictionary {
    /// For a run that has nothing in the file yet.
    pub fn new(run: i64) -> Self {
        Self {
            run,
            slots: HashMap::new(),
            netns: HashMap::new(),
            owners: HashMap::new(),
            is_full: false,
            others_lack: false,
        }
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
        let of_run = dictionary.netns.iter().map(|(id, row)| (*row, *id)).collect();
        let mut statement = connection.prepare_cached(SlotColumns::SELECT)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some((id, key)) = slot(row, &of_run)? {
                dictionary.slots.insert(key, id);
            }
        }
        Ok(dictionary)
    }

    /// The same one as it is in the file by now.
    pub fn reload(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let others_lack = self.others_lack;
        *self = Self { others_lack, ..Self::load(connection, self.run)? };
        Ok(())
    }

    /// Whether something had no room since this was last asked.
    pub fn take_full(&mut self) -> bool {
        std::mem::take(&mut self.is_full)
    }

    /// Whether a netns has a number, or there is one left for it.
    pub fn has_room_for(&mut self, id: NetnsId) -> bool {
        let has_room = self.netns.len() < MOST_NETNS || self.netns.contains_key(&id);
        self.is_full |= !has_room;
        has_room
    }

    /// A tick of which all has a number: what has none is in its sums, by cause and by kernel counter.
    pub fn fit<'a>(&mut self, tick: &'a Tick) -> Cow<'a, Tick> {
        let slots = self.slots.len() + tick.losses.len() + tick.flows.len();
        // Each slot may be of a netns that nothing else was of.
        let netns = self.netns.len() + tick.netns.len() + tick.losses.len() + tick.flows.len();
        if slots <= limits::SLOTS && netns <= MOST_NETNS {
            return Cow::Borrowed(tick);
        }
        let mut room = Room { dictionary: self, netns: HashSet::new(), slots: HashSet::new() };
        let mut fitting = tick.clone();
        fitting.netns.retain(|one| room.takes_netns(one.id));
        fitting.losses.retain(|(key, _)| room.takes(*key));
        fitting.flows.retain(|(key, _)| room.takes(*key));
        let (netns, slots) = (room.netns, room.slots);
        let has_number = |id: NetnsId| self.netns.contains_key(&id) || netns.contains(&id);
        let has_slot = |key: SlotKey| self.slots.contains_key(&key) || slots.contains(&key);
        let mut others: Option<NetnsTick> = None;
        for one in tick.netns.iter().filter(|one| !has_number(one.id)) {
            let others =
                others.get_or_insert(NetnsTick { id: OTHERS, complete: true, ..NetnsTick::default() });
            others.complete &= one.complete;
            let is_whole = one.presence == Presence::Present
                || (one.complete && matches!(one.presence, Presence::Gone | Presence::Absent));
            self.others_lack |= !is_whole;
            if self.others_lack {
                others.presence = Presence::Unreadable;
            }
            for (sums, more) in [(&mut others.kernel, one.kernel), (&mut others.width, one.width)] {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
        }
        for (key, losses) in tick.losses.iter().filter(|(key, _)| !has_slot(*key)) {
            match key.decode() {
                Some(SlotKind::Loss { cause, .. }) => fitting.overflow[cause as usize] += losses,
                // No program counts such a kind.
                Some(SlotKind::Flows) | None => {}
            }
        }
        for (_, counts) in tick.flows.iter().filter(|(key, _)| !has_slot(*key)) {
            fitting.flows_overflow += counts.iter().sum::<i64>();
        }
        self.is_full |= (fitting.netns.len(), fitting.losses.len(), fitting.flows.len())
            != (tick.netns.len(), tick.losses.len(), tick.flows.len());
        fitting.netns.extend(others);
        fitting.netns.sort_by_key(|one| one.id);
        Cow::Owned(fitting)
    }

    /// Stores the names of namespaces.
    pub fn name(&mut self, connection: &Connection, names: &HashMap<NetnsId, Names>) -> rusqlite::Result<()> {
        for (id, names) in names {
            if !self.has_room_for(*id) {
                continue;
            }
            let row = self.netns(connection, *id)?;
            let crc = netns_checksum(self.run, *id, names);
            connection
                .prepare_cached("UPDATE netns SET name = ?2, container = ?3, crc = ?4 WHERE id = ?1")?
                .execute(params![row, names.name, names.container, crc])?;
        }
        Ok(())
    }

    /// The number of a netns. There is room for it ([`Dictionary::has_room_for`]).
    pub fn netns(&mut self, connection: &Connection, id: NetnsId) -> rusqlite::Result<i64> {
        if let Some(row) = self.netns.get(&id) {
            return Ok(*row);
        }
        let name = (id == OTHERS).then(|| "others".into());
        let names = Names { name, container: None };
        NetnsColumns::<&dyn ToSql> {
            id: &Null,
            run: &self.run,
            number: &id.packed(),
            inode: &id.inode(),
            life: &id.generation(),
            name: &names.name,
            container: &Null,
            crc: &netns_checksum(self.run, id, &names),
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

/// What gets a number when a tick is written.
struct Room<'a> {
    dictionary: &'a Dictionary,
    netns: HashSet<NetnsId>,
    slots: HashSet<SlotKey>,
}

impl Room<'_> {
    fn takes_netns(&mut self, id: NetnsId) -> bool {
        let known = &self.dictionary.netns;
        let has_room = known.len() + self.netns.len() < MOST_NETNS;
        // Those that many share.
        let is_known = known.contains_key(&id) || self.netns.contains(&id) || [GONE, OTHERS].contains(&id);
        if !is_known && has_room {
            self.netns.insert(id);
        }
        is_known || has_room
    }

    fn takes(&mut self, key: SlotKey) -> bool {
        let known = &self.dictionary.slots;
        if known.contains_key(&key) || self.slots.contains(&key) {
            return true;
        }
        let has_room = known.len() + self.slots.len() < limits::SLOTS;
        let is_taken = has_room && self.takes_netns(NetnsId::from_packed(key.netns));
        if is_taken {
            self.slots.insert(key);
        }
        is_taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn tick(presence: Presence, complete: bool) -> Tick {
        let mut tick = Tick::quiet(Timestamp::UNIX_EPOCH, 1, 1);
        let one = |id, presence, complete| NetnsTick {
            id: NetnsId::from_packed(id),
            presence,
            complete,
            kernel: [1, 0, 0, 0],
            ..NetnsTick::default()
        };
        tick.netns = vec![one(1 << 30, Presence::Present, false), one((1 << 30) + 1, presence, complete)];
        tick
    }

    fn full() -> Dictionary {
        let mut dictionary = Dictionary::new(1);
        dictionary.netns = (0..MOST_NETNS).map(|n| (NetnsId::from_packed(n as u32 + 2), n as i64)).collect();
        dictionary
    }

    fn others(dictionary: &mut Dictionary, tick: &Tick) -> NetnsTick {
        let fitting = dictionary.fit(tick);
        assert_eq!(fitting.netns.len(), 1);
        fitting.netns[0]
    }

    #[test]
    fn a_sum_of_others_is_whole_only_as_long_as_each_of_them_is() {
        for (presence, complete, is_whole) in [
            (Presence::Present, false, true),
            (Presence::Gone, true, true),
            (Presence::Absent, true, true),
            (Presence::Unreadable, false, false),
            (Presence::Gone, false, false),
            (Presence::Absent, false, false),
        ] {
            let mut dictionary = full();
            let sum = others(&mut dictionary, &tick(presence, complete));
            let expected = if is_whole { Presence::Present } else { Presence::Unreadable };
            assert_eq!((sum.id, sum.kernel[0]), (OTHERS, 2));
            assert_eq!((sum.presence, sum.complete), (expected, false), "{presence:?}, {complete}");
            let later = others(&mut dictionary, &tick(Presence::Present, false));
            assert_eq!(later.presence, expected, "what is missing stays so: {presence:?}, {complete}");
        }
    }
}
