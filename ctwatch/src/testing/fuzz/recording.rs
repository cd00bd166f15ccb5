//! Recordings from anybody: files of any bytes, and files whose rows are sound and say anything. Whatever opens comes out in every
//! way there is.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use jiff::tz::TimeZone;

use super::source::Source;
use crate::advise::recorded::{Question, case};
use crate::advise::report;
use crate::contract::{End, SCHEMA, Start};
use crate::export::{Choice, Csv, ExportTable, Ndjson, Sink, export};
use crate::foreign::Foreign;
use crate::listing::Listing;
use crate::model::{
    Backend, Census, CensusKey, Device, Direction, EntryState, Flow, FlowOffset, Hook, KernelCounters, Loss,
    Name, NetnsId, Owner, PortDetail, ProcessId, Protocol, Role, TableEntry, TimeoutKind, Timeouts, Tuple,
};
use crate::postmortem::{self, ReportFormat, Request};
use crate::record::anonymize::Anonymizer;
use crate::record::reader::RecordedRun;
use crate::record::replay::Replay;
use crate::record::rows::{
    EndReason, Incident, MachineSnapshot, Names, NetnsSetting, Notice, Run, RunEnd, Setting, SnapshotReason,
    StoredListing,
};
use crate::record::rules::{Packed, StoredRules};
use crate::record::span::Span;
use crate::record::tick::{NetnsTick, Presence, Tick};
use crate::record::writer::Batch;
use crate::record::{Recording, Writer};
use crate::state::{By, Filter, State, StateConfig};
use crate::text::TextOptions;
use crate::view::json::JsonView;
use crate::view::text::TextView;
use crate::view::{View, sh};

use super::super::{HOST, slot};

/// A folder of its own for the file of one input, in memory where that is possible; it goes with what is returned.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Self {
        let shared = Path::new("/dev/shm");
        let place = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let thread = format!("{:?}", std::thread::current().id());
        let number = thread.trim_matches(|letter: char| !letter.is_ascii_digit());
        let folder = place.join(format!("ctwatch-fuzz-{}-{number}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir(&folder).expect("a folder for the input");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A file of these bytes.
pub(super) fn bytes(bytes: &[u8]) {
    let folder = Folder::new();
    let file = folder.0.join("input.ctw");
    std::fs::write(&file, bytes).expect("a file for the input");
    read(&file);
}

/// Reads a file in every way that a command does.
fn read(file: &Path) {
    let Ok(recording) = Recording::open(file) else { return };
    let is_sound = recording.verify().is_ok();
    if let Ok(runs) = recording.runs() {
        for run in &runs {
            for by in [By::Port, By::Flow, By::Process] {
                drop(replay(&recording, run, by));
            }
        }
    }
    for anonymizer in [None, Anonymizer::new(Some("key")).ok()] {
        for sink in [&mut Ndjson::new(io::sink()) as &mut dyn Sink, &mut csv()] {
            let anonymizer = anonymizer.as_ref().and_then(|_| Anonymizer::new(Some("key")).ok());
            let choice = Choice { tables: ExportTable::ALL.to_vec(), span: Span::default(), anonymizer };
            drop(export(&recording, choice, sink));
        }
    }
    advise(&recording);
    drop(recording);
    report(file);
    assert_eq!(
        is_sound,
        Recording::open(file).is_ok_and(|again| again.verify().is_ok()),
        "reading changed it"
    );
}

fn csv() -> Csv<io::Sink> {
    Csv::new(ExportTable::ALL.map(|table| (table, io::sink()))).expect("nothing is written")
}

fn replay(recording: &Recording, recorded: &RecordedRun, by: By) -> anyhow::Result<()> {
    let mut state = State::new(StateConfig {
        by,
        filter: Filter::default(),
        top: 5,
        drop_events: true,
        insert_events: false,
        count_flows: recorded.run.counts_flows,
        backend: recorded.run.backend,
    });
    let mut replay = Replay::new(recording, recorded, Span::default(), true)?;
    let start = Start {
        schema: SCHEMA,
        version: recorded.run.version.clone(),
        time: recorded.run.started.time,
        kernel_release: recorded.run.kernel_release.clone(),
        backend: recorded.run.backend,
        backend_reason: recorded.run.backend_reason.clone(),
        hooks: recorded.run.report_hooks(),
        since_boot: recorded.run.since_boot,
        kernel_counters_from: None,
    };
    show(|view| view.start(&start));
    let mut last = recorded.run.started.time;
    while let Some(step) = replay.step()? {
        last = step.sample.time;
        let events: Vec<_> = step.losses.iter().filter_map(|loss| state.loss(loss)).collect();
        let tick = state.sample(&step.sample);
        show(|view| {
            for notice in &step.notices {
                view.notice(notice)?;
            }
            for event in &events {
                view.event(event)?;
            }
            view.tick(&tick)
        });
    }
    let (notices, end): (_, End) = (replay.closing_notices(), state.end(last));
    show(|view| {
        for notice in &notices {
            view.notice(notice)?;
        }
        view.end(&end)
    });
    Ok(())
}

/// Draws something in both formats.
pub(super) fn show(mut draw: impl FnMut(&mut dyn View) -> io::Result<()>) {
    let look = || TextOptions { color: false, time_zone: TimeZone::UTC };
    draw(&mut JsonView::new(io::sink())).expect("JSON can be written");
    let mut text = Vec::new();
    {
        let mut view = TextView::new(&mut text, look());
        draw(&mut view).and_then(|()| view.flush()).expect("text can be written");
    }
    assert!(String::from_utf8(text).is_ok(), "what is drawn is no text");
}

fn advise(recording: &Recording) {
    let question =
        Question { netns: None, window_s: 60.0, ticks: i64::MIN..=i64::MAX, times: 2.0, bare: false };
    let Ok((case, source)) = case(recording, "0", &question) else { return };
    let advice = report::report(&case, source, None);
    show(|view| view.advice(&advice));
    let items: Vec<_> = advice.items.iter().collect();
    sh::write(io::sink(), &advice, &items).expect("a script can be written");
}

fn report(file: &Path) {
    for anonymize in [None, Some(Some("key".to_owned()))] {
        let request =
            Request { files: vec![file.to_owned()], incident: None, from: None, to: None, anonymize };
        let Ok(found) = postmortem::gather(&request, "0", &TimeZone::UTC) else { return };
        for format in [ReportFormat::Text, ReportFormat::Markdown, ReportFormat::Html, ReportFormat::Json] {
            drop(postmortem::render(&found, format, &TimeZone::UTC).expect("it can be rendered"));
        }
    }
}

/// A recording whose rows have the right checksums and hold what these bytes say.
pub(super) fn values(bytes: &[u8]) {
    let folder = Folder::new();
    let file = folder.0.join("input.ctw");
    let mut from = Source(bytes);
    while !from.is_empty() {
        let Ok(mut writer) = Writer::open(&file, &run(&mut from)) else { break };
        let batches = 1 + from.below(6);
        for number in 1..=batches {
            if writer.write(&batch(&mut from, number as i64)).is_err() {
                break;
            }
        }
        if from.flag() {
            let (at, last_tick) = (from.moment(), from.number());
            drop(writer.end(&RunEnd { at, reason: EndReason::Signal, last_tick }));
        }
        // A second and a third run show what happens between two.
        if from.below(3) == 0 {
            break;
        }
    }
    if file.exists() {
        read(&file);
    }
}

fn run(from: &mut Source<'_>) -> Run {
    let mut run = super::super::run();
    if from.flag() {
        run.started = from.moment();
        run.interval_us = from.number();
    }
    if from.flag() {
        run.since_boot = KernelCounters {
            drop: from.unsigned(),
            early_drop: from.unsigned(),
            insert_failed: from.unsigned(),
            chaintoolong: from.unsigned(),
        };
        run.counts_flows = from.flag();
        run.continues = from.flag();
        run.backend = Backend::ALL[from.below(3)];
    }
    if from.flag() {
        run.boot_id = from.optional(foreign);
        run.host = from.optional(foreign);
        run.kernel_release = foreign(from);
        run.backend_reason = from.optional(foreign);
        run.hooks = vec![(foreign(from), foreign(from))];
    }
    run
}

fn batch(from: &mut Source<'_>, number: i64) -> Batch {
    let mut batch = Batch { tick: Some(tick(from, number)), ..Batch::default() };
    if from.flag() {
        batch.names.insert(netns(from), names(from));
    }
    if from.flag() {
        batch.events = vec![(loss(from), from.flag())];
    }
    if from.flag() {
        batch.settings = vec![setting(from)];
        batch.netns_settings = vec![NetnsSetting { netns: netns(from), setting: setting(from) }];
    }
    if from.flag() {
        let json = if from.flag() { MACHINE.to_owned() } else { from.text() };
        batch.facts = vec![MachineSnapshot { at: from.moment(), reason: reason(from), json }];
        batch.listings = vec![listing(from)];
    }
    if from.flag() {
        batch.rules.extend(rules(from));
    }
    if from.flag() {
        batch.notices = vec![Notice { at: from.moment(), code: code(from).into(), text: foreign(from) }];
    }
    if from.flag() {
        batch.incidents = vec![incident(from)];
    }
    batch
}

/// What `record` wrote on 6.12 of a small host.
const MACHINE: &str = include_str!("../../../../tests/fuzz/corpus/machine.json");

fn foreign(from: &mut Source<'_>) -> Foreign {
    from.text().into()
}

fn code(from: &mut Source<'_>) -> String {
    let known = ["events_lost", "gap", "clock_step", "reloaded", "netns_unreadable", "disk_full"];
    if from.flag() { known[from.below(known.len())].to_owned() } else { from.text() }
}

fn reason(from: &mut Source<'_>) -> SnapshotReason {
    [SnapshotReason::Start, SnapshotReason::Trigger, SnapshotReason::Changed][from.below(3)]
}

fn names(from: &mut Source<'_>) -> Names {
    Names { name: from.optional(foreign), container: from.optional(foreign) }
}

/// One of a few, so that rows are about the same.
fn netns(from: &mut Source<'_>) -> NetnsId {
    match from.below(4) {
        0 | 1 => HOST,
        2 => NetnsId::from_packed(7),
        _ => NetnsId::from_packed(from.small()),
    }
}

fn setting(from: &mut Source<'_>) -> Setting {
    let known = [
        "net.netfilter.nf_conntrack_max",
        "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_tw_reuse",
    ];
    let name = if from.flag() { known[from.below(known.len())].to_owned() } else { from.text() };
    let value =
        |from: &mut Source<'_>| if from.flag() { from.number().to_string().into() } else { foreign(from) };
    Setting {
        at: from.moment(),
        name: name.into(),
        value: from.optional(value),
        before: from.optional(value),
    }
}

fn incident(from: &mut Source<'_>) -> Incident {
    Incident {
        condition: if from.flag() { "fill>=90%".into() } else { foreign(from) },
        tick: from.number(),
        at: from.moment(),
        measured: if from.flag() { "{\"fill\":0.93}".to_owned() } else { from.text() },
        detail_from: from.number(),
        detail_to: from.number(),
        ceased: from.optional(Source::time),
    }
}

fn rules(from: &mut Source<'_>) -> Option<StoredRules> {
    let save = format!("*raw\n:PREROUTING ACCEPT [0:0]\n{}\nCOMMIT\n", from.text());
    let rules = match from.below(3) {
        0 => Packed::new(&from.text()).ok(),
        1 => {
            let save =
                serde_json::json!({ "tool": "iptables-save", "ipv6": false, "legacy": false, "text": save });
            Packed::new(&serde_json::json!({ "dump": { "saves": [save] } })).ok()
        }
        _ => Some(Packed { size: from.unsigned(), bytes: from.text().into_bytes() }),
    };
    Some(StoredRules { netns: netns(from), at: from.moment(), reason: reason(from), rules })
}

fn listing(from: &mut Source<'_>) -> StoredListing {
    let timeouts = [(TimeoutKind::TimeWait, from.small()), (TimeoutKind::Udp, from.small())];
    let mut census = Listing::new(timeouts.into(), from.small());
    for _ in 0..from.below(8) {
        let entry = TableEntry {
            proto: Protocol(protocol(from)),
            port: port(from),
            tcp_state: from.byte(),
            left: from.small(),
            ..TableEntry::default()
        };
        let directions = [Direction::Loopback, Direction::In, Direction::Out, Direction::Forwarded];
        census.add(&entry, directions[from.below(4)]);
    }
    StoredListing {
        netns: netns(from),
        reason: reason(from),
        at: from.moment(),
        took_us: from.number(),
        entries: from.unsigned(),
        duplicates: from.unsigned(),
        interrupted: from.flag(),
        census,
    }
}

fn protocol(from: &mut Source<'_>) -> u8 {
    match from.below(6) {
        0..3 => 6,
        3 => 17,
        4 => 1,
        _ => from.byte(),
    }
}

fn port(from: &mut Source<'_>) -> u16 {
    if from.flag() { 6379 } else { from.small() as u16 }
}

fn tick(from: &mut Source<'_>, number: i64) -> Tick {
    let at = super::super::at(number);
    let mut tick = super::super::tick(at, 1000, 1000);
    tick.netns[0].kernel = [1; 4];
    if from.flag() {
        tick.time = from.time();
        tick.mono_us = from.number();
        tick.interval_us = from.number();
    }
    tick.restarted = from.below(8) == 7;
    for _ in 0..from.below(4) {
        let presence = Presence::from_number(from.below(4) as i64).unwrap_or_default();
        let count = from.optional(Source::small);
        tick.netns.push(NetnsTick {
            id: netns(from),
            presence,
            complete: from.flag(),
            count,
            peak: from.optional(Source::small),
            max: from.optional(Source::small),
            kernel: [from.number(), from.number(), from.number(), from.number()],
            width: [from.number(), 0, 0, from.number()],
        });
    }
    tick.netns.sort_by_key(|netns| netns.id);
    tick.netns.dedup_by_key(|netns| netns.id);
    for _ in 0..from.below(4) {
        let kind = 1 + from.byte() % 7;
        let with = [0, KIND_LOOPBACK, KIND_UNATTRIBUTED][from.below(3)];
        tick.losses.push((key(from, kind | with), from.number()));
    }
    tick.losses.sort_by_key(|(key, _)| *key);
    tick.losses.dedup_by_key(|(key, _)| *key);
    for _ in 0..from.below(4) {
        tick.flows.push((key(from, KIND_FLOWS), [from.number(), from.number(), from.number()]));
    }
    tick.flows.sort_by_key(|(key, _)| *key);
    tick.flows.dedup_by_key(|(key, _)| *key);
    if from.flag() {
        for place in tick.overflow.iter_mut().chain(&mut tick.lost_events) {
            *place = from.number();
        }
        (tick.ambiguous, tick.flows_overflow) = (from.number(), from.number());
        tick.unexplained = [from.number(), from.number(), from.number(), from.number()];
    }
    tick.events_seen = if from.flag() { from.unsigned() } else { 1 };
    if from.flag() {
        tick.censuses = vec![census(from)];
    }
    tick
}

fn key(from: &mut Source<'_>, kind: u8) -> SlotKey {
    if from.flag() {
        slot(6379, kind)
    } else {
        SlotKey { netns: netns(from).packed(), port: port(from), proto: protocol(from), kind }
    }
}

fn census(from: &mut Source<'_>) -> Census {
    let mut detail = PortDetail::new(Protocol::TCP, Some(6379));
    for _ in 0..from.below(4) {
        detail.add(from.byte() % 16, from.flag(), from.small());
    }
    let timeouts: Timeouts = [(TimeoutKind::TimeWait, from.small()), (TimeoutKind::Udp, from.small())].into();
    Census {
        netns: netns(from),
        keys: vec![CensusKey {
            proto: Protocol(protocol(from)),
            port: port(from),
            entries: from.small(),
            assured: from.small(),
            time_wait: from.small(),
        }],
        details: vec![detail],
        bases: vec![FlowOffset { proto: Protocol::TCP, port: port(from), entries: from.number() }],
        replaces_offsets: from.flag(),
        timeouts,
        exact: from.flag(),
    }
}

fn address(from: &mut Source<'_>, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::from(from.array::<16>().unwrap_or_default())
    } else {
        IpAddr::from(from.array::<4>().unwrap_or_default())
    }
}

fn tuple(from: &mut Source<'_>, v6: bool) -> Tuple {
    Tuple { src: address(from, v6), dst: address(from, v6), sport: from.small() as u16, dport: port(from) }
}

fn loss(from: &mut Source<'_>) -> Loss {
    let v6 = from.flag();
    let mut loss = super::super::loss(from.time());
    loss.cause = ctwatch_common::Cause::ALL[from.below(ctwatch_common::Cause::ALL.len())];
    loss.packet.at_ns = from.unsigned();
    loss.packet.netns = netns(from);
    loss.packet.proto = Some(Protocol(protocol(from)));
    loss.packet.tuple = from.optional(|from| tuple(from, v6));
    loss.packet.icmp = [from.byte(), from.byte()];
    loss.packet.hook = Hook::from_number(from.byte());
    loss.packet.device = Device {
        name: from.optional(|from| Name::new(from.text().as_bytes())),
        ifindex: from.small(),
        is_output: from.flag(),
    };
    (loss.packet.count, loss.packet.max) = (from.optional(Source::small), from.optional(Source::small));
    loss.packet.length = from.small();
    loss.entry = from.optional(|from| EntryState {
        reply: from.optional(|from| tuple(from, v6)),
        status: from.small(),
        tcp_state: from.optional(Source::byte),
        left_jiffies: from.number() as i32,
    });
    loss.jiffies_per_s = from.optional(Source::small);
    loss.pushed_out_by =
        from.optional(|from| Flow { proto: Protocol(protocol(from)), tuple: tuple(from, v6) });
    loss.owner = from.optional(|from| {
        let role = if from.flag() { Role::Sender } else { Role::Listener };
        Arc::new(Owner {
            process: from.optional(|from| ProcessId {
                pid: from.small(),
                name: Name::new(from.text().as_bytes()),
                role,
            }),
            cgroup: from.optional(foreign),
            container: from.optional(foreign),
            unattributable: from.flag(),
        })
    });
    loss
}
