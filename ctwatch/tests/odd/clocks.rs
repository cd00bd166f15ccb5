//! The hour that comes twice, and the one that never comes. TZ as a POSIX string, so that no zoneinfo is needed.

use std::path::Path;
use std::process::Command;

use crate::{ctwatch, folder, recording, said};

const NEW_YORK: &str = "EST5EDT,M3.2.0,M11.1.0";

fn in_new_york(arguments: &[&str]) -> Command {
    let mut command = ctwatch(arguments);
    command.env("TZ", NEW_YORK);
    command
}

/// From 01:59:50 EDT to 01:00:15 EST.
fn over_the_end_of_summer(folder: &Path) -> String {
    recording(folder, "2026-11-01T05:59:50Z", 25).to_str().unwrap().to_owned()
}

/// The first tick that is shown.
fn first_tick(recording: &str, from: &str) -> String {
    let command = in_new_york(&["replay", recording, "--speed", "max", "--format", "json", "--from", from]);
    let (code, stdout, stderr) = said(command);
    assert_eq!(code, Some(0), "{from}: {stderr}");
    let tick = stdout.lines().find(|line| line.contains("\"type\":\"tick\"")).unwrap();
    let time = tick.split_once("\"time\":\"").unwrap().1;
    time[..19].to_owned()
}

#[test]
fn a_time_of_day_is_the_first_such_time_that_was_recorded() {
    let folder = folder();
    let recording = over_the_end_of_summer(folder.path());
    for (from, first) in [
        ("01:59:58", "2026-11-01T05:59:59"),
        ("01:00:05", "2026-11-01T06:00:06"),
        ("01:00", "2026-11-01T06:00:01"),
        ("2026-11-01 01:00:05", "2026-11-01T06:00:06"),
        ("2026-11-01T01:00:05-05:00", "2026-11-01T06:00:06"),
        ("2026-11-01T06:00:05Z", "2026-11-01T06:00:06"),
    ] {
        assert_eq!(first_tick(&recording, from), first, "{from}");
    }
}

#[test]
fn an_error_answers_in_the_zone_of_the_question() {
    let folder = folder();
    let recording = over_the_end_of_summer(folder.path());
    for (from, covers) in [
        ("03:00", "2026-11-01 01:59:50 EDT to 2026-11-01 01:00:15 EST"),
        ("2026-12-01T00:00:00Z", "2026-11-01T05:59:50Z to 2026-11-01T06:00:15Z"),
        ("2026-12-01T00:00:00+02:00", "2026-11-01T07:59:50+02:00 to 2026-11-01T08:00:15+02:00"),
    ] {
        let (code, _, stderr) = said(in_new_york(&["replay", &recording, "--from", from]));
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(covers), "{from}: {stderr}");
    }
    // 02:30 never came in the night in which summer began.
    let folder = self::folder();
    let spring = self::recording(folder.path(), "2026-03-08T06:59:50Z", 25).to_str().unwrap().to_owned();
    let (code, _, stderr) = said(in_new_york(&["replay", &spring, "--from", "2026-03-08 02:30"]));
    assert!(code == Some(2) && stderr.contains("clocks were put forward by 60 min"), "{stderr}");
}

#[test]
fn what_clocks_showed_twice_has_the_zone_beside_it() {
    let folder = folder();
    let recording = over_the_end_of_summer(folder.path());
    let (code, report, stderr) = said(in_new_york(&["report", &recording]));
    assert_eq!(code, Some(0), "{stderr}");
    let timeline = report.split("TIMELINE").nth(1).unwrap().split("\n\n").next().unwrap();
    assert!(timeline.contains("01:59:59 EDT") || timeline.contains("01:59:58 EDT"), "{timeline}");
    assert!(timeline.contains("01:00:01 EST") || timeline.contains("01:00:02 EST"), "{timeline}");
    assert!(report.contains("From 01:59:50 EDT to 01:00:15 EST"), "{report}");
    let (_, replayed, _) = said(in_new_york(&["replay", &recording, "--speed", "max"]));
    let said_once = replayed.matches("clocks were put back").count();
    assert_eq!(said_once, 1, "{replayed}");
    // Of one that begins in the second of both hours, the first time says in which.
    let late = self::folder();
    let late = self::recording(late.path(), "2026-11-01T06:00:05Z", 20).to_str().unwrap().to_owned();
    let (_, replayed, stderr) = said(in_new_york(&["replay", &late, "--speed", "max"]));
    assert_eq!(replayed.matches("clocks show this hour twice today").count(), 1, "{replayed}{stderr}");
    assert!(replayed.contains(" EST"), "{replayed}");
    // As it is printed, it is taken.
    let (code, _, stderr) = said(in_new_york(&["report", &recording, "--from", "01:00:05 EST"]));
    assert_eq!(code, Some(0), "{stderr}");
    // Where nothing is ambiguous, nothing is added.
    let folder = self::folder();
    let noon = crate::any_recording(folder.path());
    let (_, report, _) = said(in_new_york(&["report", &noon]));
    assert!(report.contains("From 08:00:00 to 08:00:20 EDT"), "{report}");
}
