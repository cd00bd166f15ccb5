//! What people and scripts see, pinned: help texts, the text view, the JSON lines.
//! The files are in golden/; `BLESS=1` writes them anew.

use crate::fixtures::{
    check, events, golden, loss, losses_with_owners, notice, quiet, scan, settings, start, state, storm,
    storm_beyond_reach, storm_with_occupants, storm_with_unknown_ports, time,
};
use ctwatch::model::Backend;
use ctwatch::state::{By, State, StateConfig};
use ctwatch::text::TextOptions;
use ctwatch::view::View;
use ctwatch::view::json::JsonView;
use ctwatch::view::text::TextView;
use jiff::tz::TimeZone;

pub fn text(color: bool, show: impl FnOnce(&mut dyn View)) -> String {
    let mut out = Vec::new();
    let mut view = TextView::new(&mut out, TextOptions { color, time_zone: TimeZone::UTC });
    show(&mut view);
    drop(view);
    String::from_utf8(out).expect("UTF-8")
}

pub fn json(show: impl FnOnce(&mut dyn View)) -> String {
    let mut out = Vec::new();
    let mut view = JsonView::new(&mut out);
    show(&mut view);
    drop(view);
    String::from_utf8(out).expect("UTF-8")
}

#[track_caller]
pub fn fits_80_columns(text: &str) {
    for line in text.lines() {
        let columns = line.chars().count();
        assert!(columns <= 80, "{columns} columns: {line}");
    }
}

/// A run: start, a quiet tick, two ticks of the storm, the summary.
fn run(by: By, backend: Backend, view: &mut dyn View) {
    let mut state = State::new(StateConfig { by, backend, ..settings(by) });
    view.start(&start(backend)).unwrap();
    view.tick(&state.sample(&quiet())).unwrap();
    for second in 1..=2 {
        if by == By::Flow {
            for (ipv6, proto) in [(false, 6), (false, 6), (true, 6), (true, 58)] {
                state.loss(&loss(ipv6, proto));
            }
        }
        if matches!(by, By::Process | By::Container) {
            for loss in losses_with_owners() {
                state.loss(&loss);
            }
        }
        let mut sample = storm(second);
        if backend == Backend::Counters {
            sample.slots.clear();
        }
        view.tick(&state.sample(&sample)).unwrap();
    }
    view.end(&state.end(time(2_000))).unwrap();
}

#[test]
fn what_a_scan_left_without_counter_or_row_is_said() {
    let shown = text(false, |view| {
        let mut state = state(By::Port);
        view.start(&start(Backend::Kprobe)).unwrap();
        view.tick(&state.sample(&scan(1))).unwrap();
        view.end(&state.end(time(1_000))).unwrap();
    });
    fits_80_columns(&shown);
    golden("scan.txt", &shown);
}

#[test]
fn help_texts() {
    for arguments in [
        &["--help"][..],
        &["drops", "--help"],
        &["replay", "--help"],
        &["export", "--help"],
        &["table", "--help"],
        &["advise", "--help"],
        &["record", "--help"],
        &["report", "--help"],
        &["check", "--help"],
    ] {
        let error = ctwatch::cli::parse(["ctwatch"].iter().chain(arguments)).expect_err("help is no config");
        let help = error.to_string();
        let name = if arguments.len() == 1 { "ctwatch" } else { arguments[0] };
        golden(&format!("help-{name}.txt"), &help);
        fits_80_columns(&help);
    }
}

/// What is said of one wrong value for each kind of flag, and of flags that don't go together.
#[test]
fn usage_errors() {
    let mut all = String::new();
    for arguments in [
        "top",
        "drops --prot tcp",
        "drops --by colour",
        "drops --port http",
        "drops --port 6010-6000",
        "drops --src 10.0.0/8",
        "drops --src 10.0.0.0/33",
        "drops --proto 300",
        "drops --cause full",
        "drops --netns /proc/1/ns/net",
        "drops --netns pid:x",
        "drops --loopback=maybe",
        "drops --events=all",
        "drops --interval 1",
        "drops --interval 10ms",
        "drops --duration 0s",
        "drops --top 0",
        "drops --format yaml",
        "drops --backend ebpf",
        "table --by colour",
        "table --by port,port",
        "table --by port,state,src",
        "advise --window 1s",
        "advise --times 0",
        "advise --what-if size=5",
        "advise --keep 22/icmp",
        "advise --keep 22/tcp/fwd",
        "advise --what-if max=lots",
        "advise --format yaml",
        "record",
        "record -o x --max-size 500",
        "record -o x --max-size 1kB",
        "record -o x --when load>1",
        "record -o x --once",
        "record -o x --when drops>0 --exec 'page",
        "record -o x --when drops>0 --shell",
        "record -o x --when full_in<60s --no-inserts",
        "replay",
        "replay x --speed fast",
        "replay x --from yesterday",
        "export x",
        "export x --to xml",
        "export x --to csv --table flows",
        "report x --format pdf",
        "report x --incident first",
    ] {
        let words = ["ctwatch"].into_iter().chain(arguments.split(' '));
        let error = ctwatch::cli::parse(words).expect_err(arguments);
        assert_eq!(error.exit_code(), 2, "{error}");
        all += &format!("$ ctwatch {arguments}\n{error}\n");
    }
    golden("usage-errors.txt", &all);
}

#[test]
fn text_of_a_run_by_each_key() {
    for (by, name) in [
        (By::Port, "port"),
        (By::Flow, "flow"),
        (By::Src, "src"),
        (By::Proto, "proto"),
        (By::Cause, "cause"),
        (By::Netns, "netns"),
        (By::Process, "process"),
        (By::Container, "container"),
    ] {
        let text = text(false, |view| run(by, Backend::Kprobe, view));
        fits_80_columns(&text);
        golden(&format!("text-by-{name}.txt"), &text);
    }
}

#[test]
fn text_of_the_other_backends() {
    for backend in [Backend::Tracepoint, Backend::Counters] {
        let text = text(false, |view| run(By::Port, backend, view));
        fits_80_columns(&text);
        golden(&format!("text-{}.txt", backend.name()), &text);
    }
}

/// Two ticks of the storm while it is known who fills the tables, and the summary.
fn occupied(view: &mut dyn View) {
    let mut state = state(By::Port);
    for second in 1..=2 {
        view.tick(&state.sample(&storm_with_occupants(second))).unwrap();
    }
    view.end(&state.end(time(2_000))).unwrap();
}

#[test]
fn text_of_victims_beside_culprits() {
    let text = text(false, occupied);
    fits_80_columns(&text);
    assert!(text.contains("top occupants: 6379/tcp 71 % (97 % TIME_WAIT)"), "{text}");
    golden("text-occupants.txt", &text);
}

#[test]
fn text_admits_what_is_not_exact() {
    let text = text(false, |view| {
        let mut state = state(By::Flow);
        state.loss(&loss(false, 6));
        let mut sample = storm(1);
        sample.lost_events[1] = 1_500;
        sample.netns[0].before.drop += 3;
        sample.netns[0].after.drop += 3;
        view.tick(&state.sample(&sample)).unwrap();
        view.end(&state.end(time(1_000))).unwrap();
    });
    fits_80_columns(&text);
    assert!(text.contains("≥1"));
    assert!(text.contains("differ by +3"));
    golden("text-inexact.txt", &text);
}

#[test]
fn text_of_a_netns_that_cannot_be_entered() {
    let text = text(false, |view| {
        let mut state = state(By::Port);
        view.tick(&state.sample(&storm_beyond_reach(1))).unwrap();
        view.end(&state.end(time(1_000))).unwrap();
    });
    fits_80_columns(&text);
    assert!(!text.contains("deleted"), "{text}");
    golden("text-not-readable.txt", &text);
}

#[test]
fn text_of_losses_of_unknown_port() {
    let text = text(false, |view| {
        let mut state = state(By::Port);
        view.tick(&state.sample(&storm_with_unknown_ports(1))).unwrap();
        view.end(&state.end(time(1_000))).unwrap();
    });
    fits_80_columns(&text);
    golden("text-unknown-port.txt", &text);
}

#[test]
fn text_of_events_notices_and_check() {
    let text = text(false, |view| {
        for event in events() {
            view.event(&event).unwrap();
        }
        view.notice(&notice()).unwrap();
        view.check(&check(true)).unwrap();
        view.check(&check(false)).unwrap();
    });
    fits_80_columns(&text);
    golden("text-others.txt", &text);
}

#[test]
fn colour_adds_nothing_but_colour() {
    let plain = text(false, |view| run(By::Port, Backend::Kprobe, view));
    let mut coloured = text(true, |view| run(By::Port, Backend::Kprobe, view));
    assert_ne!(plain, coloured);
    while let Some(start) = coloured.find('\u{1b}') {
        let end = start + coloured[start..].find('m').expect("an escape code ends in m");
        coloured.replace_range(start..=end, "");
    }
    assert_eq!(plain, coloured);
}

#[test]
fn json_of_a_run() {
    let text = json(|view| {
        run(By::Port, Backend::Kprobe, view);
        run(By::Flow, Backend::Tracepoint, view);
        run(By::Process, Backend::Kprobe, view);
        run(By::Container, Backend::Kprobe, view);
        occupied(view);
        for event in events() {
            view.event(&event).unwrap();
        }
        view.notice(&notice()).unwrap();
        view.check(&check(false)).unwrap();
    });
    golden("run.ndjson", &text);
}
