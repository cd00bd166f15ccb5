//! Made-up ticks, losses and everything else a recording contains, always the same for the same number.
//! Only as much as the tests need.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ctwatch::listing::Listing as Listed;
use ctwatch::model::{
    Census, CensusKey, Direction, EntryState, Flow, FlowOffset, KernelCounters, Loss, Name, Owner,
    PortDetail, ProcessId, Protocol, Role, TableEntry as Entry, TimeoutKind, Timeouts, Tuple, WallMono,
};
use ctwatch::record::rows::{
    Incident, MachineSnapshot, Names, NetnsSetting, Notice, Run, Setting, SnapshotReason, StoredListing,
};
use ctwatch::record::rules::{Packed, StoredRules};
use ctwatch::record::tick::Tick;
use ctwatch::record::writer::Batch;
use ctwatch::record::{Recording, Writer};
pub use ctwatch::testing::HOST;
use ctwatch::testing::{self, slot};
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK};

/// Not on a whole second, so that rounding would show.
pub fn at(second: i64) -> WallMono {
    let WallMono { time, mono_us } = testing::at(second);
    WallMono { time: time + jiff::SignedDuration::from_micros(17), mono_us }
}

pub fn run() -> Run {
    Run {
        started: at(0),
        boot_id: Some("f00".into()),
        hooks: vec![("early_drop".into(), "kretprobe".into())],
        since_boot: KernelCounters { drop: 7, ..KernelCounters::default() },
        ..testing::run()
    }
}

pub fn tick(second: i64) -> Tick {
    let mut tick = testing::tick(at(second), (second * 37 % 1000) as u32, 1000);
    tick.netns[0].kernel = [second % 3, 0, 0, 0];
    tick.losses = vec![(slot(6379, 1 | KIND_LOOPBACK), second % 3 + 1)];
    let mut flows = BTreeMap::new();
    for n in 0..5 {
        flows.insert(slot((second * 7 + n * 13) as u16 % 100, KIND_FLOWS), [n + 1, second % 2, 0]);
    }
    tick.flows = flows.into_iter().collect();
    tick.lost_events[1] = second % 2;
    tick.unexplained = [0, second % 2, 0, 0];
    tick.events_seen = second as u64 % 3 + 1;
    if second % 10 == 0 {
        tick.censuses = vec![census(second)];
    }
    tick
}

fn census(second: i64) -> Census {
    let mut detail = PortDetail::new(Protocol::TCP, Some(6379));
    detail.add(7, true, 60);
    detail.add(3, true, 432_000);
    Census {
        netns: HOST,
        keys: vec![CensusKey {
            proto: Protocol::TCP,
            port: 6379,
            entries: 710,
            assured: 700,
            time_wait: 690,
        }],
        details: vec![detail, PortDetail::new(Protocol::UDP, None)],
        bases: vec![
            FlowOffset { proto: Protocol::TCP, port: 80, entries: -4 },
            FlowOffset { proto: Protocol::TCP, port: 6379, entries: second },
        ],
        replaces_offsets: true,
        timeouts: Timeouts::from([(TimeoutKind::TimeWait, 120), (TimeoutKind::Udp, 30)]),
        exact: second % 20 == 0,
    }
}

pub fn loss(second: i64) -> Loss {
    let mut loss = testing::loss(at(second).time);
    let v6 = second % 2 == 1;
    let v4 = IpAddr::from([10, 1, (second >> 8) as u8, second as u8]);
    let tuple = Tuple {
        src: if v6 { IpAddr::from([0x20; 16]) } else { v4 },
        dst: if v6 { IpAddr::from([0xFD; 16]) } else { v4 },
        sport: 40_000,
        dport: 6379,
    };
    loss.cause = if v6 { Cause::Evicted } else { Cause::TableFull };
    loss.packet.at_ns = second as u64 * 1_000_000_000;
    loss.packet.tuple = Some(tuple);
    loss.packet.device.name = Some(Name::from_padded(*b"lo\0\xFFrubbish\0\0\0\0\0"));
    let nowhere = if v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
    let reply = Some(Tuple { src: tuple.dst, dst: nowhere, sport: 0, dport: 0 });
    loss.entry = Some(EntryState { reply, status: 0xE, tcp_state: Some(0), left_jiffies: -5 });
    loss.jiffies_per_s = Some(250);
    loss.pushed_out_by = v6.then_some(Flow { proto: Protocol::TCP, tuple: Tuple { sport: 5, ..tuple } });
    loss.owner = Some(Arc::new(Owner {
        process: Some(ProcessId { pid: 812, name: Name::new(b"nginx"), role: Role::Sender }),
        cgroup: Some("/system.slice/nginx.service".into()),
        container: v6.then(|| "nginx.service".into()),
        unattributable: false,
    }));
    loss
}

pub fn batch(second: i64) -> Batch {
    let mut batch = Batch { tick: Some(tick(second)), ..Batch::default() };
    batch.events = vec![(loss(second), second % 2 == 0)];
    if second % 25 == 1 {
        let name = Names { name: Some(format!("host{second}").into()), container: None };
        batch.names = HashMap::from([(HOST, name)]);
        batch.settings = vec![Setting {
            at: at(second),
            name: "net.netfilter.nf_conntrack_max".into(),
            value: Some(second.to_string().into()),
            before: (second > 1).then(|| "1".into()),
        }];
        let text = "a word".to_owned();
        batch.notices = vec![Notice { at: at(second), code: "events_lost".into(), text: text.into() }];
        batch.facts = vec![MachineSnapshot {
            at: at(second),
            reason: SnapshotReason::Start,
            json: "{\"cpus\":2}".to_owned(),
        }];
        batch.listings = vec![listing(second)];
        batch.rules = vec![rules(second, SnapshotReason::Start)];
        batch.netns_settings = vec![NetnsSetting {
            netns: HOST,
            setting: Setting {
                at: at(second),
                name: "net.ipv4.tcp_tw_reuse".into(),
                value: Some("2".into()),
                before: None,
            },
        }];
    }
    batch
}

/// As `advise` packs them: with an address and a name.
pub fn rules(second: i64, reason: SnapshotReason) -> StoredRules {
    let text = format!("-A acme-{second} -s 203.0.113.9 -j ACCEPT\n");
    let packed = Packed::new(&serde_json::json!({ "dump": { "saves": [text] } })).unwrap();
    StoredRules { netns: HOST, at: at(second), reason, rules: Some(packed) }
}

pub fn listing(second: i64) -> StoredListing {
    let mut census = Listed::new([(TimeoutKind::TimeWait, 120), (TimeoutKind::Udp, 30)].into(), 15);
    for n in 0..50u32 {
        let entry = Entry { proto: Protocol::TCP, port: 6379, tcp_state: 7, left: n, ..Entry::default() };
        census.add(&entry, Direction::Loopback);
    }
    StoredListing {
        netns: HOST,
        reason: SnapshotReason::Trigger,
        at: at(second),
        took_us: 1234,
        entries: 50,
        duplicates: 1,
        interrupted: false,
        census,
    }
}

pub fn incident(tick: i64) -> Incident {
    Incident {
        condition: "fill>=90%".into(),
        tick,
        at: at(tick),
        measured: "{\"fill\":0.93}".to_owned(),
        detail_from: tick - 2,
        detail_to: tick + 5,
        ceased: None,
    }
}

/// Writes so many seconds, and leaves the writer open.
pub fn write(path: &Path, seconds: i64) -> Writer {
    let mut writer = Writer::open(path, &run()).unwrap();
    for second in 1..=seconds {
        writer.write(&batch(second)).unwrap();
    }
    writer
}

/// Everything that can be read of a file, as text: two files with the same text hold the same.
pub fn all_of(path: &Path) -> anyhow::Result<String> {
    let recording = Recording::open(path)?;
    let mut text = String::new();
    for run in recording.runs()? {
        text += &format!(
            "{run:?}\n{:?}\n",
            BTreeMap::from_iter(recording.names(run.id)?.into_iter().map(|(id, n)| (id.packed(), n)))
        );
        for tick in recording.ticks(&run, i64::MIN..=i64::MAX)? {
            let tick = tick?;
            text += &format!("{tick:?}\n{:?}\n", recording.losses(tick.first..=tick.id)?);
        }
        let mut listings = recording.listings(run.id)?;
        let timeouts: Vec<_> = listings.iter_mut().map(|one| *one.census.timeouts()).collect();
        text += &format!(
            "{:?} {timeouts:?}\n",
            listings.iter().map(|one| (one.at, one.entries)).collect::<Vec<_>>()
        );
        text += &format!("{:?}\n{:?}\n", recording.notices(run.id)?, recording.settings(run.id)?);
        text += &format!("{:?}\n{:?}\n", recording.rules(run.id)?, recording.netns_settings(run.id)?);
        text += &format!("{:?}\n{:?}\n", recording.machines(run.id)?, recording.incidents(run.id)?);
    }
    Ok(text)
}
