//! Where nothing can be written, nothing has succeeded.

use std::fs::File;

use crate::{ctwatch, folder, said};

#[test]
fn a_full_disk_behind_stdout_is_a_failure_of_every_command() {
    let folder = folder();
    let recording = crate::any_recording(folder.path());
    let proc = folder.path().join("proc");
    std::fs::create_dir(&proc).unwrap();
    let recorded = folder.path().join("b.ctw");
    let recorded = recorded.to_str().unwrap();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help"],
        &["help", "drops"],
        &["drops", "--help"],
        &["report", &recording],
        &["report", &recording, "--format", "json"],
        &["report", &recording, "--format", "html", "-o", "-"],
        &["replay", &recording, "--speed", "max"],
        &["replay", &recording, "--speed", "max", "--format", "json"],
        &["export", &recording, "--to", "ndjson"],
        &["export", &recording, "--to", "csv", "--table", "ticks"],
        &["check", "--proc-root", proc.to_str().unwrap()],
        &["table"],
        &["table", "--format", "json"],
        &["drops", "--backend", "counters", "--duration", "1s"],
        &["drops", "--backend", "counters", "--duration", "1s", "--format", "json"],
        &["advise", "--window", "3s"],
        &["advise", "--window", "3s", "--format", "json"],
        &["record", "--backend", "counters", "--duration", "1s", "-o", recorded],
        &[
            "record",
            "--backend",
            "counters",
            "--duration",
            "1s",
            "--when",
            "drops>0",
            "--once",
            "-o",
            recorded,
        ],
    ] {
        let mut command = ctwatch(arguments);
        command.stdout(File::options().write(true).open("/dev/full").unwrap());
        let (code, _, stderr) = said(command);
        assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("No space left"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_recording_is_whole_whether_or_not_its_reader_stays() {
    let folder = folder();
    let path = folder.path().join("a.ctw");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let recorded = path.to_str().unwrap();
    let mut command = ctwatch(&["record", "--backend", "counters", "--duration", "1s", "-o", recorded]);
    command.stdout(writer);
    let (code, _, stderr) = said(command);
    assert_eq!(code, Some(0), "{stderr}");
    let (code, _, stderr) = said(ctwatch(&["report", recorded]));
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn a_reader_of_help_that_went_has_what_it_wanted() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = ctwatch(&["drops", "--help"]);
    command.stdout(writer);
    let (code, _, stderr) = said(command);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}
