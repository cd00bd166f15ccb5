//! The figures of a postmortem against what was written into the recording.

use super::*;
use crate::model::{
    Backend, Census, CensusKey, Device, Hook, Loss, Name, NetnsId, Owner, Packet, ProcessId, Protocol, Role,
    Tuple, WallMono, Zone,
};
use crate::record::Writer;
use crate::record::rows::{EndReason, Incident, Names, Notice, Run, RunEnd, Setting};
use crate::record::span::Moment;
use crate::record::tick::{NetnsTick, Tick};
use crate::record::writer::Batch;
use crate::testing;
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, SlotKey};
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

const HOST: NetnsId = NetnsId::from_packed(4_026_531_840);
const MAX: u32 = 10_000;

fn at(second: i64) -> WallMono {
    let time = Timestamp::from_second(1_700_000_000 + second).unwrap();
    WallMono { time, mono_us: second * 1_000_000 }
}

fn run(started: i64) -> Run {
    Run { started: at(started), ..testing::run() }
}

/// One second: so many entries in the table, so many packets of redis and of https refused.
fn tick(second: i64, count: u32, redis: i64, https: i64) -> Tick {
    let slot = |port, kind| SlotKey { netns: HOST.packed(), port, proto: 6, kind };
    let mut tick = Tick::quiet(at(second).time, at(second).mono_us, 1_000_000);
    let count = Some(count);
    let kernel = [redis + https, 0, 0, 0];
    tick.netns =
        vec![NetnsTick { id: HOST, count, peak: count, max: Some(MAX), kernel, ..NetnsTick::default() }];
    let full = Cause::TableFull as u8;
    let losses = [(slot(443, full), https), (slot(6379, full | KIND_LOOPBACK), redis)];
    tick.losses = losses.into_iter().filter(|(_, count)| *count > 0).collect();
    tick.flows = vec![(slot(443, KIND_FLOWS), [10, 5, 0]), (slot(6379, KIND_FLOWS), [100, 40, 1])];
    tick.events_seen = (redis + https).unsigned_abs();
    tick
}

fn loss(second: i64, port: u16) -> Loss {
    let address = IpAddr::from([127, 0, 0, 1]);
    let packet = Packet {
        at_ns: 1,
        netns: HOST,
        proto: Some(Protocol::TCP),
        tuple: Some(Tuple { src: address, dst: address, sport: 40_000, dport: port }),
        is_loopback: true,
        hook: Some(Hook::LocalOut),
        device: Device { ifindex: 1, ..Device::default() },
        length: 60,
        ..Packet::default()
    };
    let process = Some(ProcessId { pid: 812, name: Name::new(b"nginx"), role: Role::Sender });
    let owner = Owner { process, ..Owner::default() };
    Loss { owner: Some(Arc::new(owner)), ..Loss::new(at(second).time, Cause::TableFull, packet) }
}

fn names() -> HashMap<NetnsId, Names> {
    HashMap::from([(HOST, Names { name: Some("host".into()), container: None })])
}

fn census() -> Census {
    let key = |port, entries| CensusKey {
        proto: Protocol::TCP,
        port,
        entries,
        assured: entries,
        time_wait: entries / 2,
    };
    let base = |port, entries| crate::model::FlowOffset { proto: Protocol::TCP, port, entries };
    Census {
        netns: HOST,
        keys: vec![key(443, 1_500), key(6379, 6_500)],
        bases: vec![base(443, 1_500), base(6379, 6_500)],
        replaces_offsets: true,
        exact: true,
        ..Census::default()
    }
}

/// Calm for 20 s, nearly full for 10 s, losses for 10 s, calm again.
fn incident(path: &Path) {
    let mut writer = Writer::open(path, &run(0)).unwrap();
    for second in 1..=60 {
        let (count, redis, https) = match second {
            1..=20 => (5_000, 0, 0),
            21..=30 => (9_500, 0, 0),
            31..=40 => (MAX, 30, 10),
            _ => (6_000, 0, 0),
        };
        let mut tick = tick(second, count, redis, https);
        let mut batch = Batch::default();
        if second == 1 {
            batch.names = names();
            tick.censuses = vec![census()];
        }
        if second == 25 {
            let name = "net.netfilter.nf_conntrack_max".into();
            let (before, value) = (Some("20000".into()), Some(MAX.to_string().into()));
            batch.settings = vec![Setting { at: at(25), name, value, before }];
        }
        if redis > 0 {
            batch.events = vec![(loss(second, 6379), true), (loss(second, 443), true)];
        }
        batch.tick = Some(tick);
        writer.write(&batch).unwrap();
    }
    let incident = Incident {
        condition: "drops>0".into(),
        tick: 31,
        at: at(31),
        measured: "{}".to_owned(),
        detail_from: 29,
        detail_to: 45,
        ceased: Some(at(41).time),
    };
    writer.write(&Batch { incidents: vec![incident], ..Batch::default() }).unwrap();
    writer.end(&RunEnd { at: at(60), reason: EndReason::Signal, last_tick: 60 }).unwrap();
}

fn request(path: &Path) -> Request {
    Request { files: vec![path.to_owned()], incident: None, from: None, to: None, anonymize: None }
}

fn one(request: &Request) -> Host {
    gather(request, "0.1.0", &TimeZone::UTC).unwrap().hosts.remove(0)
}

#[test]
fn every_figure_is_that_of_the_recording() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    incident(&path);
    let host = one(&request(&path));
    let story = &host.story;
    assert_eq!(story.first_sign, Some(at(21).time));
    assert_eq!(story.full_at, Some(at(31).time));
    assert_eq!((story.first_loss, story.last_loss), (Some(at(31).time), Some(at(40).time)));
    assert_eq!((story.lasted_s, story.losing_s), (10.0, 10.0));
    assert_eq!((story.packets_lost, story.entries_lost), (400, 0));
    assert_eq!(host.victims.ports[0].losses, 300);
    assert_eq!(host.victims.ports[0].loopback, Some(true));
    assert_eq!(host.victims.ports[1].losses, 100);
    // Two of forty events are kept in each tick: each stands for twenty.
    assert_eq!((host.certainty.events_kept, host.certainty.events_seen), (20, 400));
    assert_eq!((host.victims.processes[0].about, host.victims.processes[0].events), (400.0, 20));
    assert_eq!(host.victims.processes[0].what, "nginx (sender)");
    assert_eq!(host.victims.flows[0].what, "127.0.0.1 -> 127.0.0.1 443/tcp");
    let worst = host.worst.as_ref().unwrap();
    assert_eq!((worst.time, worst.lost_per_s, worst.exact), (at(31).time, 40.0, true));
    // What was there, and 31 ticks of inserts less deletes.
    assert_eq!(worst.occupants[0].entries, 6_500 + 31 * (100 - 1 - 40));
    assert_eq!(worst.occupants[1].entries, 1_500 + 31 * (10 - 5));
    assert_eq!(worst.occupants[0].time_wait, Some(0.5));
    let of_bands: Vec<_> = host.by_fill.iter().map(|band| (band.seconds, band.packets_lost)).collect();
    assert_eq!(of_bands, [(0.0, 0), (40.0, 0), (0.0, 0), (10.0, 0), (10.0, 400)]);
    assert_eq!(host.changes.len(), 1);
    assert_eq!((host.arrivals[0].before_per_s, host.arrivals[0].during_per_s), (Some(99.0), Some(99.0)));
    assert_eq!((host.kernel_counters.drop, host.in_kernel_terms.drop), (400, 400));
    assert!(host.certainty.gaps.is_empty() && host.certainty.unfinished_runs.is_empty());
    assert!(host.no_advice.as_ref().unwrap().contains("entry by entry"), "{:?}", host.no_advice);
}

#[test]
fn equal_tuples_of_two_zones_are_two_flows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run(0)).unwrap();
    let mut in_zone = loss(1, 6379);
    in_zone.packet.zone = Zone::new(7, 7);
    let events = vec![(loss(1, 6379), true), (in_zone, true)];
    let tick = Some(tick(1, MAX, 30, 10));
    writer.write(&Batch { tick, events, ..Batch::default() }).unwrap();
    writer.end(&RunEnd { at: at(1), reason: EndReason::Signal, last_tick: 1 }).unwrap();
    let flows: Vec<String> =
        one(&request(&path)).victims.flows.into_iter().map(|flow| flow.what.to_string()).collect();
    let plain = "127.0.0.1 -> 127.0.0.1 6379/tcp".to_owned();
    assert_eq!(flows, [plain.clone(), plain + " zone 7"]);
}

#[test]
fn a_span_is_only_what_is_in_it_with_the_occupancy_of_all_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    incident(&path);
    let part = one(&Request {
        from: Some(Moment::At(at(35).time)),
        to: Some(Moment::At(at(50).time)),
        ..request(&path)
    });
    assert_eq!((part.span.unwrap().ticks, part.story.packets_lost), (15, 200));
    assert_eq!(part.worst.unwrap().occupants[0].entries, 6_500 + 36 * 59);
    assert_eq!((part.kernel_counters.drop, part.in_kernel_terms.drop), (200, 200));
    let of_incident = one(&Request { incident: Some(1), ..request(&path) });
    assert_eq!((of_incident.span.unwrap().ticks, of_incident.incidents.len()), (17, 1));
    let error =
        gather(&Request { incident: Some(7), ..request(&path) }, "0.1.0", &TimeZone::UTC).unwrap_err();
    assert_eq!(crate::error::exit(&error), crate::error::Exit::Usage);
    let error = error.to_string();
    assert!(error.contains("--incident 7") && error.contains("1 (drops>0"), "{error}");
    let quiet = one(&Request { to: Some(Moment::At(at(20).time)), ..request(&path) });
    let shown = render(&report_of(quiet), ReportFormat::Text, &TimeZone::UTC).unwrap();
    assert!(shown.contains("conntrack lost nothing"), "{shown}");
    let none = one(&Request { from: Some(Moment::At(at(500).time)), ..request(&path) });
    let shown = render(&report_of(none), ReportFormat::Html, &TimeZone::UTC).unwrap();
    assert!(shown.contains("there is nothing to report"), "{shown}");
}

#[test]
fn a_moment_means_the_same_in_all_files() {
    let folder = tempfile::tempdir().unwrap();
    let (early, late) = (folder.path().join("early.ctw"), folder.path().join("late.ctw"));
    incident(&early);
    // From second 40 to 45.
    let mut writer = Writer::open(&late, &run(40)).unwrap();
    for second in 41..=45 {
        writer.write(&Batch { tick: Some(tick(second, 1, 0, 0)), ..Batch::default() }).unwrap();
    }
    drop(writer);
    let both = |from: &str, to: &str| {
        let request = Request {
            files: vec![late.clone(), early.clone()],
            from: Some(from.parse().unwrap()),
            to: Some(to.parse().unwrap()),
            ..request(&early)
        };
        gather(&request, "0.1.0", &TimeZone::UTC)
    };
    let ticks = |from: &str, to: &str| {
        let hosts = both(from, to).unwrap().hosts;
        hosts.iter().map(|host| host.span.as_ref().map_or(0, |span| span.ticks)).collect::<Vec<_>>()
    };
    assert_eq!(ticks("+38s", "+43s"), [3, 5]);
    assert_eq!(ticks("+10s", "-40s"), [0, 10], "of one file nothing is in it");
    let clock = at(42).time.strftime("%H:%M:%S").to_string();
    assert_eq!(ticks(&clock, "-15s"), [3, 3]);
    assert!(both("+43s", "+38s").unwrap_err().to_string().contains("is not before"));
}

#[test]
fn side_by_side_nothing_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    incident(&path);
    let shown = |hosts: [(&str, &str, i64); 2]| {
        let hosts = hosts.map(|(name, file, day)| {
            let mut host = one(&request(&path));
            (host.host, host.file) = (Some(name.into()), file.into());
            for time in [&mut host.story.first_sign, &mut host.story.full_at, &mut host.story.last_loss] {
                *time = time.map(|time| time + jiff::SignedDuration::from_hours(24 * day));
            }
            host.story.packets_lost = 1_234_567;
            host.story.entries_lost = 7_654_321;
            host
        });
        let report = Postmortem { hosts: hosts.into(), ..report_of(one(&request(&path))) };
        let text = render(&report, ReportFormat::Text, &TimeZone::UTC).unwrap();
        // After the title and the headlines.
        let head: Vec<&str> = text.split("\n\n").nth(2).unwrap().lines().collect();
        assert!(head.iter().all(|line| line.chars().count() <= 80), "{head:#?}");
        let head = head.join("\n");
        assert_eq!(head.matches("1,234,567").count(), 2, "{head}");
        assert_eq!(head.matches("7,654,321").count(), 2, "{head}");
        head
    };
    let short = shown([("a", "a.ctw", 0), ("b", "b.ctw", 0)]);
    assert_eq!(short.lines().count(), 3, "{short}");
    let long = "ip-10-0-0-12.eu-central-1.compute.internal";
    let rotated = shown([(long, "/var/x/host.ctw", 0), (long, "/var/x/host-20231114T221320Z.ctw", 0)]);
    assert_eq!(rotated.lines().count(), 6, "{rotated}");
    assert!(rotated.contains(&format!("  {long} (host-20231114T221320Z.ctw)\n    2")), "{rotated}");
    let folders = shown([("a", "x/host.ctw", 0), ("a", "y/host.ctw", 0)]);
    assert!(folders.contains("a (x/host.ctw)") && folders.contains("a (y/host.ctw)"), "{folders}");
    let unknown = shown([("host-1", "recording", 0), ("host-1", "recording", 0)]);
    assert!(unknown.contains("host-1 (1)") && unknown.contains("host-1 (2)"), "{unknown}");
    let days = shown([("a", "a.ctw", 0), ("b", "b.ctw", 1)]);
    assert!(days.contains("onset 2023-11-1") && days.contains("7,654,321"), "{days}");
}

fn report_of(host: Host) -> Postmortem {
    Postmortem { kind: "report", schema: 1, version: "0.1.0", hosts: vec![host] }
}

#[test]
fn gaps_steps_and_killed_runs_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run(0)).unwrap();
    let mut stepped = tick(9, 1, 0, 0);
    stepped.time = at(109).time;
    for tick in [tick(1, 1, 0, 0), tick(2, 1, 0, 0), tick(8, 1, 0, 0), stepped] {
        writer.write(&Batch { tick: Some(tick), names: names(), ..Batch::default() }).unwrap();
    }
    drop(writer);
    let mut writer = Writer::open(&path, &run(200)).unwrap();
    writer.write(&Batch { tick: Some(tick(201, 1, 0, 0)), ..Batch::default() }).unwrap();
    drop(writer);
    let certainty = one(&request(&path)).certainty;
    let gaps: Vec<_> = certainty.gaps.iter().map(|gap| gap.seconds).collect();
    assert_eq!(gaps, [5.0, 91.0]);
    assert_eq!(certainty.clock_steps.len(), 1);
    assert_eq!(certainty.clock_steps[0].seconds, 100.0);
    assert!(certainty.unfinished_runs[0].contains("recorder or host stopped"));
    assert!(certainty.unfinished_runs[1].contains("still running"));
}

#[test]
fn an_anonymous_report_has_the_same_figures_and_none_of_the_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret.ctw");
    incident(&path);
    let report =
        gather(&Request { anonymize: Some(None), ..request(&path) }, "0.1.0", &TimeZone::UTC).unwrap();
    let shown = render(&report, ReportFormat::Json, &TimeZone::UTC).unwrap();
    for name in ["nginx", "web1", "secret"] {
        assert!(!shown.contains(name), "{name} in {shown}");
    }
    let host = &report.hosts[0];
    assert_eq!(host.host.as_ref().map(|text| text.raw()), Some("host-1"));
    assert_eq!((host.story.packets_lost, host.victims.ports[0].losses), (400, 300));
    assert_eq!(host.victims.processes[0].what, "process-1 (sender)");
}

#[test]
fn an_empty_recording_and_what_is_none_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    drop(Writer::open(&path, &run(0)).unwrap());
    for format in [ReportFormat::Text, ReportFormat::Markdown, ReportFormat::Html] {
        let shown =
            render(&gather(&request(&path), "0.1.0", &TimeZone::UTC).unwrap(), format, &TimeZone::UTC)
                .unwrap();
        assert!(shown.contains("nothing to report"), "{shown}");
    }
    let other = folder.path().join("b.ctw");
    std::fs::write(&other, "x".repeat(4096)).unwrap();
    let error = gather(&request(&other), "0.1.0", &TimeZone::UTC).unwrap_err().to_string();
    assert!(error.contains("not a ctwatch recording"), "{error}");
}

#[test]
fn what_a_process_is_called_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run(0)).unwrap();
    let mut evil = loss(1, 6379);
    let name = Name::new(b"<b>|\x1b[2J&*");
    let process = Some(ProcessId { pid: 1, name, role: Role::Sender });
    evil.owner = Some(Arc::new(Owner { process, ..Owner::default() }));
    let events = vec![(evil, true)];
    for second in 1..=2 {
        let events = if second == 1 { events.clone() } else { Vec::new() };
        writer
            .write(&Batch { tick: Some(tick(second, MAX, 5, 0)), events, names: names(), ..Batch::default() })
            .unwrap();
    }
    drop(writer);
    let report = gather(&request(&path), "0.1.0", &TimeZone::UTC).unwrap();
    let shown = |format| render(&report, format, &TimeZone::UTC).unwrap();
    assert!(!shown(ReportFormat::Text).contains('\u{1b}'));
    assert!(!shown(ReportFormat::Html).contains("<b>") && !shown(ReportFormat::Html).contains("<script"));
    assert!(
        shown(ReportFormat::Markdown).contains("&lt;b>\\|\\\\x1b\\[2J&amp;\\* (sender)"),
        "{}",
        shown(ReportFormat::Markdown)
    );
}

/// Everything that a figure may have to show: many services, gaps, and settings that change at once.
fn crowded(path: &Path) {
    let mut writer = Writer::open(path, &run(0)).unwrap();
    let slot = |port, kind| SlotKey { netns: HOST.packed(), port, proto: 6, kind };
    for second in (1..=600).filter(|second| !(300..340).contains(second)) {
        let storms = (400..500).contains(&second);
        let mut tick =
            tick(second, if storms { MAX } else { 5_000 + second as u32 * 4 }, i64::from(storms) * 30, 0);
        tick.flows.extend((0..12).map(|n| (slot(8_000 + n, KIND_FLOWS), [20 + i64::from(n), 19, 0])));
        tick.flows.sort_by_key(|(key, _)| *key);
        if storms {
            tick.losses.push((slot(8_011, Cause::Evicted as u8), 7));
            tick.losses.push((slot(8_010, Cause::TableFull as u8), 9));
            tick.losses.sort_by_key(|(key, _)| *key);
            tick.overflow[Cause::TableFull as usize] = 4;
            tick.netns[0].kernel = [43, 7, 0, 0];
        }
        if second == 450 {
            tick.censuses = vec![census()];
        }
        let names = if second == 1 { names() } else { HashMap::new() };
        let mut batch = Batch { tick: Some(tick), names, ..Batch::default() };
        if [1, 120, 124, 126, 250, 599].contains(&second) {
            let (before, value) = (Some("60".into()), Some(second.to_string().into()));
            let name = "net.netfilter.nf_conntrack_tcp_timeout_time_wait".into();
            batch.settings = vec![Setting { at: at(second), name, value, before }];
        }
        writer.write(&batch).unwrap();
    }
    writer.end(&RunEnd { at: at(600), reason: EndReason::Signal, last_tick: 560 }).unwrap();
}

#[test]
fn a_service_has_one_colour_in_all_panels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    crowded(&path);
    let report = gather(&request(&path), "0.1.0", &TimeZone::UTC).unwrap();
    let html = render(&report, ReportFormat::Html, &TimeZone::UTC).unwrap();
    let mut colours: HashMap<&str, Vec<&str>> = HashMap::new();
    for shape in html.split("<path class=\"").skip(1).filter(|shape| shape.contains("<title>")) {
        let class = shape.split('"').next().unwrap();
        let name = shape.split_once("<title>").unwrap().1.split('<').next().unwrap();
        colours.entry(name).or_default().push(class);
        assert_eq!(html.matches(&format!("<span class=\"key {class}\">{name}</span>")).count(), 1, "{name}");
    }
    for (name, classes) in &colours {
        assert!(classes.iter().all(|class| class == &classes[0]), "{name}: {classes:?}");
    }
    let mut different: Vec<_> = colours.values().map(|classes| classes[0]).collect();
    different.sort_unstable();
    different.dedup();
    assert_eq!((different.len(), colours.len()), (8, 8), "{colours:?}");
    assert_eq!(colours["6379/tcp redis"].len(), 3, "lost, held, new");
    // Ticks that are missing are no zero, and marks share a label before they overlap.
    assert!(html.contains("not recorded") && html.contains("#2–4"), "{html}");
}

#[test]
fn states_come_from_the_nearest_census_even_if_it_came_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    crowded(&path);
    let worst = one(&request(&path)).worst.unwrap();
    assert_eq!((worst.listed_at, worst.listed_s_before), (Some(at(450).time), Some(-50.0)));
    assert!(worst.as_listed && !worst.exact);
    assert_eq!(worst.occupants[0].time_wait, Some(0.5));
    let shown = render(&report_of(one(&request(&path))), ReportFormat::Text, &TimeZone::UTC).unwrap();
    assert!(shown.contains("as listed at 22:20:50, 50.0 s after the worst moment"), "{shown}");
    incident(&path.with_extension("b"));
    let before = one(&request(&path.with_extension("b"))).worst.unwrap();
    assert_eq!((before.listed_s_before, before.as_listed), (Some(30.0), false));
}

/// The clock is set at 25 s, by a year and more, and set again while packets are lost: what is near stays near.
#[test]
fn a_clock_that_is_set_changes_labels_and_nothing_else() {
    let report = |days: [i64; 2]| {
        let clock = |second: i64| {
            let by = match second {
                ..25 => 0,
                25..36 => days[0],
                _ => days[1],
            };
            WallMono { time: at(second).time + jiff::SignedDuration::from_hours(by * 24), ..at(second) }
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ctw");
        let mut writer = Writer::open(&path, &run(0)).unwrap();
        for second in 1..=60 {
            let (count, redis) =
                if (31..=40).contains(&second) { (MAX, 30 + i64::from(second == 33)) } else { (5_000, 0) };
            let mut tick = Tick { time: clock(second).time, ..tick(second, count, redis, 0) };
            let mut batch = Batch::default();
            if second == 1 {
                batch.names = names();
            }
            if [20, 58].contains(&second) {
                tick.censuses = vec![census()];
            }
            if [22, 34, 50].contains(&second) {
                let name = "net.netfilter.nf_conntrack_max".into();
                let (before, value) = (Some("1".into()), Some(second.to_string().into()));
                batch.settings = vec![Setting { at: clock(second), name, value, before }];
                let text = format!("at {second}").into();
                batch.notices = vec![Notice { at: clock(second), code: "events_lost".into(), text }];
            }
            batch.tick = Some(tick);
            writer.write(&batch).unwrap();
        }
        let incident = Incident {
            condition: "drops>0".into(),
            tick: 31,
            at: clock(31),
            measured: "{}".to_owned(),
            detail_from: 21,
            detail_to: 45,
            ceased: Some(clock(41).time),
        };
        writer.write(&Batch { incidents: vec![incident], ..Batch::default() }).unwrap();
        let reason = EndReason::Signal;
        writer.end(&RunEnd { at: clock(60), reason, last_tick: 60 }).unwrap();
        let host = one(&Request { incident: Some(1), ..request(&path) });
        let labels = (clock(33).time, at(20).time);
        (host, labels)
    };
    for days in [[0, 0], [400, 0], [-400, -400], [400, -400], [-400, 400]] {
        let (host, (worst_at, listed_at)) = report(days);
        let worst = host.worst.as_ref().unwrap();
        assert_eq!(
            (worst.time, worst.listed_at, worst.listed_s_before),
            (worst_at, Some(listed_at), Some(13.0))
        );
        assert_eq!((host.story.lasted_s, host.story.losing_s, host.story.packets_lost), (10.0, 10.0, 301));
        // Of three the last is after the incident's end.
        let values = host.changes.iter().map(|one| one.value.as_ref().unwrap().raw().to_owned());
        assert_eq!(values.collect::<Vec<_>>(), ["22", "34"], "{days:?}");
        let notices = host.certainty.notices.iter().map(|one| one.text.raw().to_owned());
        assert_eq!(notices.collect::<Vec<_>>(), ["at 22", "at 34"], "{days:?}");
        assert!(host.certainty.gaps.is_empty(), "{:?}", host.certainty.gaps);
        let steps = usize::from(days[0] != 0) + usize::from(days[0] != days[1]);
        assert_eq!(host.certainty.clock_steps.len(), steps);
        let shown = render(&report_of(host), ReportFormat::Text, &TimeZone::UTC).unwrap();
        let of_change = |line: &&str| line.contains("#1") || line.contains("#2");
        assert!(shown.lines().filter(of_change).count() >= 2, "both are in the timeline: {shown}");
        assert!(shown.contains("Duration: 10.0 s"), "{shown}");
    }
}

#[test]
fn no_listing_is_said_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run(0)).unwrap();
    for second in 1..=3 {
        let tick = Some(tick(second, MAX, 5, 0));
        writer.write(&Batch { tick, names: names(), ..Batch::default() }).unwrap();
    }
    drop(writer);
    let host = one(&request(&path));
    assert_eq!(
        host.headline,
        "From 22:13:20 or earlier until at least 22:13:23 UTC, 15 packets to 6379/tcp (redis, loopback) were refused \
         because the table was full; what filled the table is unknown, as the recording has no listing of it."
    );
    let shown = render(&report_of(host), ReportFormat::Text, &TimeZone::UTC).unwrap();
    assert!(shown.contains("What filled it is unknown"), "{shown}");
}

/// A table beside the host's at the end of this second.
fn beside(tick: &mut Tick, id: u32, count: u32, max: u32) {
    let (id, count) = (NetnsId::from_packed(id), Some(count));
    tick.netns.push(NetnsTick { id, count, peak: count, max: Some(max), ..NetnsTick::default() });
    tick.netns.sort_by_key(|netns| netns.id);
}

#[test]
fn each_table_in_trouble_is_told_at_its_own_worst_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run(0)).unwrap();
    for second in 1..=9 {
        let mut tick = tick(second, 4_000, if second == 4 { 5 } else { 0 }, 0);
        beside(&mut tick, 7, if second == 6 { 8_000 } else { 6_000 }, MAX);
        beside(&mut tick, 8, 1_000, MAX);
        beside(&mut tick, 9, 50_000, 0);
        writer.write(&Batch { tick: Some(tick), names: names(), ..Batch::default() }).unwrap();
    }
    drop(writer);
    let host = one(&request(&path));
    let told: Vec<_> = host.tables.iter().map(|table| (table.netns.raw(), table.time, table.count)).collect();
    assert_eq!(told, [("host", at(4).time, Some(4_000)), ("net:[7]", at(6).time, Some(8_000))]);
    assert_eq!(host.more_tables, 0);
    let shown = render(&report_of(host), ReportFormat::Text, &TimeZone::UTC).unwrap();
    assert!(shown.contains("Other tables that lost something or were at least half full"), "{shown}");
    assert!(shown.contains("8,000 of 10,000 entries") && shown.contains("never listed"), "{shown}");
    assert!(!shown.contains("net:[8]"), "{shown}");
}

#[test]
fn no_limit_is_none_and_no_fill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = Writer::open(&path, &run(0)).unwrap();
    for second in 1..=9 {
        let mut tick = tick(second, 400 + second as u32, 0, 0);
        tick.netns[0].max = Some(0);
        writer.write(&Batch { tick: Some(tick), names: names(), ..Batch::default() }).unwrap();
    }
    drop(writer);
    let host = one(&request(&path));
    assert!(host.story.peak.is_none() && host.by_fill.iter().all(|band| band.seconds == 0.0));
    assert_eq!(host.story.unlimited.as_ref().map(|most| (most.count, most.time)), Some((409, at(9).time)));
    assert_eq!(host.no_fill.as_ref().map(|none| none.seconds), Some(9.0));
    assert_eq!(host.worst.as_ref().map(|worst| worst.count), Some(Some(409)), "where there were most");
    for format in [ReportFormat::Text, ReportFormat::Markdown, ReportFormat::Html] {
        let shown = render(&report_of(one(&request(&path))), format, &TimeZone::UTC).unwrap();
        // Text breaks its lines where they are full.
        let unbroken = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(unbroken.contains("409 entries, no limit") && unbroken.contains("had no limit"), "{shown}");
        for wrong in [" of 0", "0 to 50 %", "unknown full"] {
            assert!(!shown.contains(wrong), "{wrong}: {shown}");
        }
    }
}

#[test]
fn where_no_program_was_the_kernels_counts_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer =
        Writer::open(&path, &Run { backend: Backend::Counters, counts_flows: false, ..run(0) }).unwrap();
    for second in 1..=9 {
        let mut tick = tick(second, MAX, if second == 4 { 5 } else { 0 }, 0);
        (tick.losses, tick.flows) = (Vec::new(), Vec::new());
        writer.write(&Batch { tick: Some(tick), names: names(), ..Batch::default() }).unwrap();
    }
    drop(writer);
    let host = one(&request(&path));
    assert!(
        host.headline
            .starts_with("From 22:13:23 to 22:13:24 UTC, the kernel counted 5 packets dropped and 0 table"),
        "{}",
        host.headline
    );
    let shown = render(&report_of(host), ReportFormat::Text, &TimeZone::UTC).unwrap();
    assert!(!shown.contains("Losses: none") && shown.contains("drop 5, early_drop 0"), "{shown}");
    assert!(shown.contains("kernel's counters alone") && !shown.contains("Counts are exact"), "{shown}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn sums_are_those_of_the_ticks_whatever_they_are(
        ticks in prop::collection::vec((0..=MAX, 0..50i64, 0..50i64), 1..80),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ctw");
        let mut writer = Writer::open(&path, &run(0)).unwrap();
        for (second, (count, redis, https)) in (1..).zip(&ticks) {
            let tick = Some(tick(second, *count, *redis, *https));
            writer.write(&Batch { tick, ..Batch::default() }).unwrap();
        }
        drop(writer);
        let host = one(&request(&path));
        let lost: i64 = ticks.iter().map(|(_, redis, https)| redis + https).sum();
        prop_assert_eq!(host.story.packets_lost, lost.unsigned_abs());
        prop_assert_eq!(host.by_fill.iter().map(|band| band.packets_lost).sum::<u64>(), lost.unsigned_abs());
        prop_assert_eq!(host.by_fill.iter().map(|band| band.seconds).sum::<f64>(), ticks.len() as f64);
        prop_assert_eq!(host.victims.ports.iter().map(|row| row.losses).sum::<u64>(), lost.unsigned_abs());
        let drawn: i64 = host.timeline.iter().flat_map(|point| point.lost.values()).sum();
        prop_assert_eq!(drawn, lost);
        for format in [ReportFormat::Text, ReportFormat::Markdown, ReportFormat::Html, ReportFormat::Json] {
            prop_assert!(!render(&report_of(one(&request(&path))), format, &TimeZone::UTC).unwrap().is_empty());
        }
    }
}
