//! Fixed inputs for the goldens and the schema test, and the comparison with a committed file.
//! `BLESS=1 cargo test` writes the files anew; read the diff before committing it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ctwatch::contract::{Check, CheckItem, CheckProgram, Event, Hook as StartHook, Notice, SCHEMA, Start};
use ctwatch::foreign::Shown as _;
use ctwatch::model::{
    Backend, Census, CensusKey, CounterSource, Device, EntryState, Flow, FlowOffset, FlowSample, Hook,
    Insert, KernelCounters, Loss, Name, NetnsAccess, NetnsId, NetnsSample, Owner, Packet, PortDetail,
    ProcessId, Protocol, Role, Sample, SlotSample, TimeoutKind, Timeouts, Tuple, Zone,
};
use ctwatch::record::lines::Line;
use ctwatch::record::trigger::Measured;
use ctwatch::state::{By, State};
use ctwatch_common::Cause;
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use jiff::Timestamp;

pub const HOST: u32 = 4_026_531_840;
pub const WEB1: u32 = 4_026_532_299;

/// Compares text with tests/reports/golden/`name`, or writes it there.
#[track_caller]
pub fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reports/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, actual).expect("write the golden");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} has changed; if that is meant, run BLESS=1 cargo test -p ctwatch and commit it.\n\
         --- expected\n{expected}\n--- actual\n{actual}"
    );
}

pub fn time(millis: i64) -> Timestamp {
    "2026-03-14T12:03:04Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_millis(millis)
}

pub fn start(backend: Backend) -> Start {
    let hook = |function: &str, kind: &str| StartHook::attached(function.into(), kind.into());
    let (reason, hooks) = match backend {
        Backend::Kprobe => (
            None,
            vec![
                hook("early_drop", "kretprobe"),
                hook("kfree_skb", "raw_tracepoint"),
                hook("nf_ct_delete", "kprobe"),
                hook("__nf_conntrack_confirm", "kprobe"),
            ],
        ),
        Backend::Tracepoint => (
            Some("this kernel has no kprobes (CONFIG_KPROBES is off): causes are inferred".to_owned()),
            vec![hook("kfree_skb", "raw_tracepoint")],
        ),
        Backend::Counters => (Some("asked for with --backend: totals only, no tuples".to_owned()), vec![]),
    };
    Start {
        schema: SCHEMA,
        version: "0.1.0".into(),
        time: time(0),
        kernel_release: "6.12.43+deb13-cloud-amd64".into(),
        backend,
        backend_reason: reason.map(Into::into),
        hooks,
        since_boot: KernelCounters { drop: 77_143, early_drop: 12, insert_failed: 3, chaintoolong: 0 },
        kernel_counters_from: Some(CounterSource::Procfs),
    }
}

pub use ctwatch::testing::settings;

fn slot(netns: u32, kind: u8, proto: u8, port: u16, count: u64, deletes: u64) -> SlotSample {
    SlotSample { key: SlotKey { netns, port, proto, kind }, count, deletes, failed: 0 }
}

/// The story's night, `second` seconds in: redis on loopback suffers, and a container has its own trouble.
pub fn storm(second: u64) -> Sample {
    let full = Cause::TableFull as u8;
    let slots = vec![
        slot(HOST, full | KIND_LOOPBACK, 6, 6379, 88_000 + 1_204 * second, 0),
        slot(HOST, full, 6, 443, 97 * second, 0),
        slot(HOST, full, 6, 80, 41 * second, 0),
        slot(HOST, full, 58, 135 << 8, 2 * second, 0),
        slot(HOST, Cause::Evicted as u8, 6, 443, 18 * second, 0),
        slot(WEB1, full, 17, 53, 33 * second, 0),
        slot(WEB1, Cause::Clash as u8, 17, 53, 5 * second, 0),
        slot(HOST, KIND_FLOWS, 6, 6379, 2_210 * second, 1_980 * second),
        slot(WEB1, KIND_FLOWS, 17, 53, 400 * second, 380 * second),
    ];
    let host_drops = 88_000 + (1_204 + 97 + 41 + 2) * second;
    let host = KernelCounters { drop: host_drops, early_drop: 18 * second, ..KernelCounters::default() };
    let web1 = KernelCounters { drop: 38 * second, insert_failed: 5 * second, ..KernelCounters::default() };
    let netns = |id, name: &str, count, counters| NetnsSample {
        id: NetnsId::from_packed(id),
        name: Some(name.into()),
        container: (name == "web1").then(|| "docker:3f2a9c0b1d2e".into()),
        count: Some(count),
        max: Some(262_144),
        before: counters,
        after: counters,
        gone: false,
        complete: false,
        access: NetnsAccess::Readable,
    };
    Sample {
        mono_us: 0,
        counters_from: Some(CounterSource::Procfs),
        time: time(i64::try_from(second).unwrap() * 1_000),
        interval_s: 1.0,
        netns: vec![
            netns(HOST, "host", 262_144, host),
            netns(WEB1, "web1", 262_144, web1),
            netns(7, "idle", 12, KernelCounters::default()),
        ],
        slots,
        retired: Vec::new(),
        overflow: [0; CAUSES],
        lost_events: [0; CAUSES],
        ambiguous: 0,
        flows: FlowSample::default(),
    }
}

/// What the story's tables hold when the storm begins: mostly redis's TIME_WAIT on the host.
pub fn censuses() -> Vec<Census> {
    let redis = CensusKey {
        proto: Protocol::TCP,
        port: 6379,
        entries: 186_122,
        assured: 186_122,
        time_wait: 180_600,
    };
    let others = [(6, 443, 31_457), (6, 80, 23_593), (17, 53, 15_728), (1, 8 << 8, 5_000)].map(
        |(proto, port, entries)| CensusKey {
            proto: Protocol(proto),
            port,
            entries,
            assured: 0,
            time_wait: 0,
        },
    );
    let dns = CensusKey { proto: Protocol::UDP, port: 53, entries: 131_072, assured: 0, time_wait: 0 };
    let of = |netns, keys: &[CensusKey], exact| Census {
        netns: NetnsId::from_packed(netns),
        keys: keys.to_vec(),
        details: keys.iter().map(|key| PortDetail::new(key.proto, Some(key.port))).collect(),
        bases: keys
            .iter()
            .map(|key| FlowOffset { proto: key.proto, port: key.port, entries: key.entries.into() })
            .collect(),
        replaces_offsets: true,
        timeouts: Timeouts::from([(TimeoutKind::TimeWait, 120), (TimeoutKind::Udp, 600)]),
        exact,
    };
    vec![of(HOST, &[&[redis], &others[..]].concat(), true), of(WEB1, &[dns], false)]
}

/// The storm once it is known who fills the tables.
pub fn storm_with_occupants(second: u64) -> Sample {
    let mut sample = storm(second);
    if second == 1 {
        sample.flows.censuses = censuses();
    }
    sample.netns[1].count = Some(131_072 + 20 * u32::try_from(second).unwrap());
    sample
}

/// The same, with losses whose tuple was missed.
pub fn storm_with_unknown_ports(second: u64) -> Sample {
    let mut sample = storm(second);
    sample.slots.push(slot(HOST, Cause::TableFull as u8 | KIND_UNATTRIBUTED, 0, 0, 7 * second, 0));
    sample.netns[0].before.drop += 7 * second;
    sample.netns[0].after.drop += 7 * second;
    sample
}

/// The second netns can't be entered: it is only known by what it lost.
pub fn storm_beyond_reach(second: u64) -> Sample {
    let mut sample = storm(second);
    let netns = &mut sample.netns[1];
    netns.access = NetnsAccess::Unreadable;
    (netns.name, netns.count, netns.max) = (None, None, None);
    (netns.before, netns.after) = <_>::default();
    sample
}

/// A storm in which all ports were scanned: most losses have no slot any more, a few never had one.
pub fn scan(second: u64) -> Sample {
    let mut sample = storm(second);
    let host = sample.netns[0].id.packed();
    let kind = Cause::TableFull as u8 | KIND_LOOPBACK;
    sample.retired = (0..60_000).map(|port| slot(host, kind, 6, port, 1, 0)).collect();
    sample.overflow[Cause::TableFull as usize] = 1_234;
    sample.netns[0].before.drop += 61_234;
    sample.netns[0].after.drop += 61_234;
    sample
}

/// A host that has room.
pub fn quiet() -> Sample {
    let mut sample = storm(0);
    sample.slots.clear();
    for netns in &mut sample.netns {
        netns.count = Some(4_321);
        (netns.before, netns.after) = <_>::default();
    }
    sample
}

pub fn state(by: By) -> State {
    State::new(settings(by))
}

pub fn loss(ipv6: bool, proto: u8) -> Loss {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (src, dst, device) = if ipv6 {
        ("2001:db8:1111:2222:3333:4444:5555:6666", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", "eth0")
    } else {
        ("127.0.0.1", "127.0.0.1", "lo")
    };
    let packet = Packet {
        at_ns: 1,
        netns: NetnsId::from_packed(HOST),
        proto: Some(Protocol(proto)),
        tuple: Some(Tuple {
            src: address(src),
            dst: address(dst),
            sport: 42_901,
            dport: if proto == 6 { 6379 } else { 0 },
        }),
        icmp: if proto == 6 { [0; 2] } else { [128, 0] },
        is_loopback: !ipv6,
        hook: Some(if ipv6 { Hook::PreRouting } else { Hook::LocalOut }),
        device: Device { name: Some(Name::new(device.as_bytes())), ifindex: 1, is_output: !ipv6 },
        count: Some(262_144),
        max: Some(262_144),
        length: 60,
        zone: None,
    };
    Loss::new(time(123), Cause::TableFull, packet)
}

/// A loss whose process and container are known.
pub fn of(name: &str, role: Role, container: Option<&str>, loss: Loss) -> Loss {
    let who = Owner {
        process: Some(ProcessId { pid: 812, name: Name::new(name.as_bytes()), role }),
        cgroup: Some(format!("/system.slice/{name}.service").into()),
        container: container.map(Into::into),
        unattributable: false,
    };
    Loss { owner: Some(Arc::new(who)), ..loss }
}

/// A loss of which only is known in whose netns it happened.
pub fn of_a_stranger(container: Option<&str>, unattributable: bool, loss: Loss) -> Loss {
    let who = Owner { container: container.map(Into::into), unattributable, ..Owner::default() };
    Loss { owner: Some(Arc::new(who)), ..loss }
}

/// What the storm's packets were and whose.
pub fn losses_with_owners() -> Vec<Loss> {
    let pod = Some("pod:4c8f1e2d-0a1b-4c3d-8e5f-a1b2c3d4e5f6");
    let mut elsewhere = loss(false, 6);
    elsewhere.packet.netns = NetnsId::from_packed(WEB1);
    vec![
        of("nginx", Role::Sender, Some("unit:nginx.service"), loss(false, 6)),
        of("nginx", Role::Sender, Some("unit:nginx.service"), loss(false, 6)),
        of("nginx", Role::Sender, Some("unit:nginx.service"), loss(false, 6)),
        of("a-name-of-15-ch", Role::Listener, Some("docker:3f2a9c0b1d2e"), loss(true, 6)),
        of("a-name-of-15-ch", Role::Listener, Some("docker:3f2a9c0b1d2e"), loss(true, 6)),
        of_a_stranger(None, false, loss(true, 58)),
        of_a_stranger(pod, true, elsewhere.clone()),
        of("redis-cli", Role::Sender, pod, elsewhere),
    ]
}

fn tuple(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16) -> Tuple {
    Tuple { src: src.into(), dst: dst.into(), sport, dport }
}

/// An entry thrown out for a new flow, behind a service address.
pub fn evicted() -> Loss {
    let mut loss = loss(false, 6);
    loss.cause = Cause::Evicted;
    let original = tuple([10, 0, 0, 1], 42_901, [10, 96, 0, 1], 6379);
    loss.packet = Packet {
        tuple: Some(original),
        is_loopback: false,
        hook: None,
        device: Device { ifindex: 1, ..Device::default() },
        count: None,
        max: None,
        ..loss.packet
    };
    loss.entry = Some(EntryState {
        reply: Some(tuple([10, 0, 0, 9], 6379, [10, 0, 0, 1], 42_901)),
        status: 0b1010,
        tcp_state: Some(7),
        left_jiffies: 21_500,
    });
    loss.jiffies_per_s = Some(250);
    let pusher = Tuple { src: [10, 0, 0, 2].into(), ..original };
    loss.pushed_out_by = Some(Flow { proto: Protocol::TCP, tuple: pusher });
    loss
}

/// Some drops and an insert, as `--events=drop,insert` reports them.
pub fn events() -> Vec<Event> {
    let mut state = state(By::Flow);
    let mut blind = loss(false, 6);
    blind.packet = Packet {
        tuple: None,
        is_loopback: false,
        hook: None,
        device: Device { ifindex: 1, ..Device::default() },
        count: None,
        max: None,
        ..blind.packet
    };
    let packet = Packet { zone: Some(Zone::DEFAULT), ..loss(false, 6).packet };
    let insert = Insert { time: time(123), packet };
    let mut clash = evicted();
    clash.cause = Cause::Clash;
    clash.packet.zone = Zone::new(2, 0);
    clash.packet.hook = Some(Hook::LocalIn);
    clash.packet.device.name = Some(Name::new(b"v2"));
    clash.entry.as_mut().unwrap().reply = Some(tuple([10, 96, 0, 1], 6379, [10, 0, 0, 1], 42_901));
    let before = [
        of("nginx", Role::Sender, Some("unit:nginx.service"), loss(false, 6)),
        of("redis-server", Role::Listener, Some("docker:3f2a9c0b1d2e"), loss(true, 6)),
        of_a_stranger(Some("docker:3f2a9c0b1d2e"), true, loss(true, 58)),
        blind,
    ];
    let after = [evicted(), Loss { pushed_out_by: None, ..evicted() }, clash];
    let mut events: Vec<Event> = before.iter().filter_map(|loss| state.loss(loss)).collect();
    events.extend(state.insert(&insert));
    events.extend(after.iter().filter_map(|loss| state.loss(loss)));
    events
}

pub fn notice() -> Notice {
    Notice {
        time: time(0),
        code: "waiting_for_conntrack",
        text: "nf_conntrack is not loaded, so nothing is tracked and nothing can be lost to it; waiting until a \
               firewall rule or `modprobe nf_conntrack` loads it"
            .into(),
    }
}

pub fn check(works: bool) -> Check {
    let item = |name: &str, ok, found: &str, remedy: Option<&str>| CheckItem {
        name: name.to_owned(),
        ok,
        found: found.to_owned(),
        remedy: remedy.map(str::to_owned),
    };
    let privileges = if works {
        item("privileges", Some(true), "root with all capabilities", None)
    } else {
        item(
            "privileges",
            Some(false),
            "uid 1000 without CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, so the kernel refuses to load programs",
            Some("run it as root (sudo ctwatch …), or give the binary these capabilities with setcap"),
        )
    };
    Check {
        schema: SCHEMA,
        version: "0.1.0".to_owned(),
        kernel_release: "6.12.43+deb13-cloud-amd64".to_owned(),
        backend: works.then_some(Backend::Kprobe),
        backend_reason: None,
        items: vec![
            privileges,
            item("BTF", Some(true), "/sys/kernel/btf/vmlinux, 5.2 MB", None),
            item("nf_conntrack", None, "not loaded yet: drops will wait for it", None),
        ],
        programs: if works {
            vec![CheckProgram {
                name: "kfree_skb".to_owned(),
                ok: true,
                verified_instructions: Some(1_234),
                log: String::new(),
            }]
        } else {
            Vec::new()
        },
    }
}

/// What `ctwatch record` prints.
pub fn recording_lines() -> Vec<Line> {
    let file = std::path::PathBuf::from("/var/lib/ctwatch/host.ctw");
    let measured = Measured {
        netns: NetnsId::from_packed(4_026_531_840),
        name: Some("host".into()),
        count: Some(245_000),
        max: Some(262_144),
        fill: Some(0.9345),
        full_in_s: Some(12.5),
        packets_lost: 0,
        entries_lost: 0,
    };
    let end = state(By::Port).end(time(2_000));
    vec![
        Line::Recording {
            time: time(0),
            file: file.shown(),
            schema: ctwatch::record::SCHEMA,
            version: "0.1.0".into(),
            backend: Backend::Kprobe,
            backend_reason: None,
        },
        Line::Incident {
            time: time(1_000),
            file: file.shown(),
            incident: Some(3),
            condition: "fill>=90%".to_owned(),
            tick: 17,
            measured,
        },
        Line::Recorded {
            time: end.time,
            file: file.shown(),
            reason: "duration",
            bytes: 126_976,
            wal: Some(file.with_extension("ctw-wal").shown()),
            incidents: 1,
            duration_s: 2.0,
            counted: end.counted,
            kernel_counters: end.kernel_counters,
            lost_events: 0,
            unexplained: end.unexplained,
            unwritten_lines: 7,
        },
    ]
}
