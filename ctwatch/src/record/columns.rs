//! The columns of each table, listed once: INSERT, SELECT, the values of a new row and the position of each column in a row
//! read back are all made from these lists. What the columns mean is in schema.sql.

#![allow(dead_code, reason = "all tables get the same, though not each is read alone or written row by row")]

use rusqlite::{CachedStatement, Connection, ToSql};

/// For each table a struct with a field per column, and a constant with the position of each column: reading a day of ticks
/// must not look up any names.
macro_rules! columns {
    ($($places:ident: $columns:ident = $table:ident [$first:ident $(, $column:ident)* $(,)?];)+) => {
        $(
            #[doc = concat!("One `T` per column of `", stringify!($table), "`: its value, or its position.")]
            #[derive(Clone, Copy, Debug)]
            pub(super) struct $columns<T> {
                pub $first: T,
                $(pub $column: T,)*
            }

            #[doc = concat!("The positions of the columns of `", stringify!($table), "` in a row of [`", stringify!($columns), "::SELECT`].")]
            pub(super) const $places: $columns<usize> = $columns::starting_at(0);

            impl $columns<usize> {
                /// All columns.
                pub const NAMES: &'static [&'static str] = &[stringify!($first) $(, stringify!($column))*];

                /// Reads all columns; the caller adds the condition.
                pub const SELECT: &'static str = concat!(
                    "SELECT ", stringify!($first) $(, ", ", stringify!($column))*, " FROM ", stringify!($table)
                );

                /// Their positions in a row where the first of them is at `place`.
                pub const fn starting_at(place: usize) -> Self {
                    let $first = place;
                    let next = place + 1;
                    $(let $column = next; let next = $column + 1;)*
                    let _ = next;
                    Self { $first $(, $column)* }
                }

                /// The column list for a SELECT in which the table has this alias.
                pub fn of(alias: &str) -> String {
                    let names: Vec<String> = Self::NAMES.iter().map(|name| format!("{alias}.{name}")).collect();
                    names.join(", ")
                }
            }

            impl<T> $columns<T> {
                fn in_order(self) -> [T; $columns::NAMES.len()] {
                    let Self { $first $(, $column)* } = self;
                    [$first $(, $column)*]
                }
            }

            impl $columns<&dyn ToSql> {
                const INSERT: &'static str = concat!(
                    "INSERT INTO ", stringify!($table), " (", stringify!($first) $(, ", ", stringify!($column))*,
                    ") VALUES (?", $(columns!(@value $column),)* ")"
                );

                /// The statement for [`Self::write`], prepared once for several rows.
                pub fn statement(connection: &Connection) -> rusqlite::Result<CachedStatement<'_>> {
                    connection.prepare_cached(Self::INSERT)
                }

                /// Writes one of several rows.
                pub fn write(self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<()> {
                    statement.execute(self.in_order().as_slice()).map(drop)
                }

                /// Writes a single row.
                pub fn insert(self, connection: &Connection) -> rusqlite::Result<()> {
                    self.write(&mut Self::statement(connection)?)
                }
            }
        )+

        #[cfg(test)]
        const TABLES: &[(&str, &[&str])] = &[$((stringify!($table), $columns::NAMES)),+];
    };
    (@value $column:ident) => { ", ?" };
}

columns! {
    RUN: RunColumns = run [
        id, started_us, started_mono_us, boot_id, host, version, kernel_release, backend,
        backend_reason, interval_us, counts_flows, hooks, boot_drop, boot_early_drop,
        boot_insert_failed, boot_chaintoolong, continues, first_tick, crc
    ];
    RUN_END: RunEndColumns = run_end [
        run, ended_us, ended_mono_us, reason, last_tick, crc
    ];
    NETNS: NetnsColumns = netns [
        id, run, number, inode, life, name, container, crc
    ];
    SLOT: SlotColumns = slot [
        id, netns, proto, port, cause, loopback, unattributed
    ];
    TICK: TickColumns = tick [
        id, first, run, level, wall_us, mono_us, interval_us, restarted, ambiguous, flows_overflow,
        unexplained_drop, unexplained_early_drop, unexplained_insert_failed,
        unexplained_chaintoolong, events_seen, crc
    ];
    TICK_NETNS: TickNetnsColumns = tick_netns [
        tick, netns, presence, complete, count, peak, max, drops, early_drop, insert_failed,
        chaintoolong, drops_width, early_drop_width, insert_failed_width, chaintoolong_width
    ];
    TICK_LOSS: TickLossColumns = tick_loss [
        tick, slot, losses
    ];
    TICK_FLOW: TickFlowColumns = tick_flow [
        tick, slot, inserts, deletes, failed
    ];
    TICK_CAUSE: TickCauseColumns = tick_cause [
        tick, cause, overflow, lost_events
    ];
    OWNER: OwnerColumns = owner [
        id, pid, name, role, cgroup, container, anybodys
    ];
    EVENT: EventColumns = event [
        tick, place, detail, wall_us, at_ns, netns, cause, flags, proto, family, src, sport, dst,
        dport, icmp, hook, device, ifindex, length, count, max, owner, sender_pid, sender_name,
        sender_cgroup, reply_src, reply_sport, reply_dst, reply_dport, status, tcp_state,
        jiffies_left, jiffies_per_s, by_proto, by_src, by_sport, by_dst, by_dport, crc
    ];
    EVENT_ZONE: EventZoneColumns = event_zone [
        tick, place, original, reply, crc
    ];
    CENSUS: CensusColumns = census [
        id, tick, netns, rebase, exact, timeouts, omitted, crc
    ];
    CENSUS_KEY: CensusKeyColumns = census_key [
        census, proto, port, entries, assured, time_wait, base
    ];
    CENSUS_DETAIL: CensusDetailColumns = census_detail [
        census, proto, port, assured, states, lasting, ending
    ];
    LISTING: ListingColumns = listing [
        id, run, netns, reason, wall_us, mono_us, took_us, entries, duplicates, interrupted, look_s,
        timeouts, crc
    ];
    LISTING_PHASE: ListingPhaseColumns = listing_phase [
        listing, proto, port, direction, phase, timeout, entries, entered, idle, pairs
    ];
    SETTING: SettingColumns = setting [
        id, run, wall_us, mono_us, name, value, before, crc
    ];
    RULES: RulesColumns = rules [
        id, run, netns, reason, wall_us, mono_us, size, rules, rules_crc, crc
    ];
    NETNS_SETTING: NetnsSettingColumns = netns_setting [
        id, run, netns, wall_us, mono_us, name, value, before, crc
    ];
    MACHINE: MachineColumns = machine [
        id, run, reason, wall_us, mono_us, facts, crc
    ];
    NOTICE: NoticeColumns = notice [
        id, run, wall_us, mono_us, code, text, crc
    ];
    INCIDENT: IncidentColumns = incident [
        id, run, condition, tick, wall_us, mono_us, measured, detail_from, detail_to, ceased_us, crc
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Hook;

    #[test]
    fn the_lists_are_those_of_the_schema() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("schema.sql")).unwrap();
        connection.execute_batch(include_str!("schema_rules.sql")).unwrap();
        let mut statement =
            connection.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").unwrap();
        let tables: Vec<String> =
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for table in tables.iter().filter(|table| !["meta", "cause"].contains(&table.as_str())) {
            let (_, listed) = TABLES.iter().find(|(name, _)| name == table).expect(table);
            let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)").unwrap();
            let columns = statement.query_map([table], |row| row.get(0)).unwrap();
            let columns: Vec<String> = columns.map(Result::unwrap).collect();
            assert_eq!(columns, *listed, "{table}");
        }
    }

    #[test]
    fn the_view_of_drops_has_a_name_for_every_hook() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("schema.sql")).unwrap();
        let sql = "SELECT sql FROM sqlite_master WHERE name = 'drops'";
        let view: String = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        for hook in Hook::ALL {
            let case = format!("WHEN {} THEN '{}'", hook as u8, hook.name());
            assert!(view.contains(&case), "{case}");
        }
    }

    #[test]
    fn every_column_has_the_place_of_its_name() {
        assert_eq!(TICK_LOSS.in_order(), [0, 1, 2]);
        assert_eq!(TICK_LOSS.losses, 2);
        assert_eq!(TickLossColumns::starting_at(7).in_order(), [7, 8, 9]);
        assert_eq!(TickLossColumns::of("l"), "l.tick, l.slot, l.losses");
        assert_eq!(TickLossColumns::SELECT, "SELECT tick, slot, losses FROM tick_loss");
        assert_eq!(
            TickLossColumns::<&dyn ToSql>::INSERT,
            "INSERT INTO tick_loss (tick, slot, losses) VALUES (?, ?, ?)"
        );
    }
}
