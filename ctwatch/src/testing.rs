//! Made-up data that unit tests, integration tests and benchmarks start from: a run, a tick and a loss.
//! Nothing in ctwatch itself may use it.

use ctwatch_common::event::{IPV4, LossEvent, flag};
use ctwatch_common::{Cause, slot};
use jiff::Timestamp;

use crate::model::{Backend, KernelCounters, Loss, NetnsId, WallMono};
use crate::record::rows::Run;
use crate::record::tick::{NetnsTick, Tick};

/// The host's netns.
pub const HOST: NetnsId = NetnsId(4_026_531_840);

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
        host: Some("web1".to_owned()),
        version: "0.1.0".to_owned(),
        kernel_release: "6.12.1".to_owned(),
        backend: Backend::Kprobe,
        backend_reason: None,
        interval_us: 1_000_000,
        counts_flows: true,
        hooks: Vec::new(),
        since_boot: KernelCounters::default(),
        continues: false,
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
    slot::SlotKey { netns: HOST.0, port, proto: 6, kind }
}

/// A packet from a host to itself that found the table full: TCP, 10.1.0.1 port 40000 to 10.1.0.1 port 6379.
#[must_use]
pub fn loss(time: Timestamp) -> Loss {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[10, 1, 0, 1]);
    let event = LossEvent {
        netns: HOST.0,
        count: 1000,
        max: 1000,
        ifindex: 1,
        kind: Cause::TableFull as u8,
        proto: 6,
        family: IPV4,
        hook: 3,
        flags: flag::LOOPBACK | flag::COUNT | flag::MAX | flag::OUT | flag::TUPLE,
        sport: 40_000,
        dport: 6379,
        length: 60,
        src: address,
        dst: address,
        device: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ..LossEvent::EMPTY
    };
    Loss::new(time, event)
}
