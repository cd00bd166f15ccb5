//! Made-up data that unit tests, integration tests and benchmarks start from: a run, a tick and a loss.
//! Nothing in ctwatch itself may use it.

pub mod fuzz;

use std::net::IpAddr;

use ctwatch_common::{Cause, slot};
use jiff::Timestamp;

use crate::contract::{self, Counted, TableStatus, Unexplained};
use crate::model::{
    Backend, Device, Hook, KernelCounters, Loss, Name, NetnsId, Packet, Protocol, Tuple, WallMono,
};
use crate::record::rows::Run;
use crate::record::tick::{NetnsTick, Tick};
use crate::state::{By, Filter, StateConfig};

/// The host's netns.
pub const HOST: NetnsId = NetnsId::from_inode(4_026_531_840);

/// This many seconds after the run began.
#[must_use]
pub fn at(second: i64) -> WallMono {
    let time = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(1_700_000_000 + second);
    WallMono { time, mono_us: second * 1_000_000 }
}

/// A run with one tick a second.
#[must_use]
pub fn run() -> Run {
    Run {
        started: at(0),
        boot_id: None,
        host: Some("web1".into()),
        version: "0.1.0".into(),
        kernel_release: "6.12.1".into(),
        backend: Backend::Kprobe,
        backend_reason: None,
        interval_us: 1_000_000,
        counts_flows: true,
        hooks: Vec::new(),
        since_boot: KernelCounters::default(),
        continues: false,
    }
}

/// A table of which nothing more is known than that it is there.
#[must_use]
pub fn table_status(netns: NetnsId) -> TableStatus {
    TableStatus {
        netns,
        name: None,
        container: None,
        count: None,
        max: None,
        fill: None,
        new_per_s: None,
        gone_per_s: None,
        full_in_s: None,
        occupants: None,
        occupancy_exact: None,
        packets_lost: 0,
        entries_lost: 0,
        gone: false,
        not_readable: false,
        unexplained: None,
    }
}

/// A second of a run in which only these tables are of interest.
#[must_use]
pub fn tick_of_tables(tables: Vec<TableStatus>) -> contract::Tick {
    contract::Tick {
        time: Timestamp::UNIX_EPOCH,
        interval_s: 1.0,
        tables,
        tables_left_out: None,
        rows: Vec::new(),
        counted: Counted::default(),
        kernel_counters: KernelCounters::default(),
        lost_events: 0,
        unexplained: Unexplained::default(),
        ambiguous: None,
    }
}

/// A state that keeps all it can, by this key.
#[must_use]
pub fn settings(by: By) -> StateConfig {
    StateConfig {
        by,
        filter: Filter::default(),
        top: 5,
        drop_events: true,
        insert_events: true,
        count_flows: true,
        backend: Backend::Kprobe,
    }
}

/// A second in which nothing moved, with the host's table at its end.
#[must_use]
pub fn tick(end: WallMono, count: u32, max: u32) -> Tick {
    let count = Some(count);
    let table = NetnsTick { id: HOST, count, peak: count, max: Some(max), ..NetnsTick::default() };
    Tick { netns: vec![table], ..Tick::quiet(end.time, end.mono_us, 1_000_000) }
}

/// A slot of the host's table for a service on TCP; kinds are those of [`ctwatch_common::slot`].
#[must_use]
pub const fn slot(port: u16, kind: u8) -> slot::SlotKey {
    slot::SlotKey { netns: HOST.packed(), port, proto: 6, kind }
}

/// A packet from a host to itself that found the table full: TCP, 10.1.0.1 port 40000 to 10.1.0.1 port 6379.
#[must_use]
pub fn loss(time: Timestamp) -> Loss {
    let address = IpAddr::from([10, 1, 0, 1]);
    let packet = Packet {
        netns: HOST,
        proto: Some(Protocol::TCP),
        tuple: Some(Tuple { src: address, dst: address, sport: 40_000, dport: 6379 }),
        is_loopback: true,
        hook: Some(Hook::LocalOut),
        device: Device { name: Some(Name::new(b"lo")), ifindex: 1, is_output: true },
        count: Some(1000),
        max: Some(1000),
        length: 60,
        ..Packet::default()
    };
    Loss::new(time, Cause::TableFull, packet)
}
