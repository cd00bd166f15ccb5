//! A recording in which every text is hostile, through all that reads recordings.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use ctwatch::model::{Name, Owner, ProcessId, Role};
use ctwatch::record::Writer;
use ctwatch::record::rows::{Incident, Names, NetnsSetting, Notice, Run, Setting};
use ctwatch::testing::HOST;

use super::synthetic::{at, batch, incident, loss, run};
use super::{HOSTILE, ctwatch, shown};

/// Everything that has a name has this one.
fn write(path: &Path, name: &str) {
    let text = || name.into();
    let run = Run {
        host: Some(text()),
        boot_id: Some(text()),
        version: text(),
        kernel_release: text(),
        backend_reason: Some(text()),
        hooks: vec![(text(), text())],
        ..run()
    };
    let mut writer = Writer::open(path, &run).unwrap();
    for second in 1..=30 {
        let mut batch = batch(second);
        batch.events = (0..3)
            .map(|n| {
                let mut loss = loss(second);
                let process = ProcessId { pid: 7 + n, name: Name::new(name.as_bytes()), role: Role::Sender };
                loss.packet.device.name = Some(Name::new(name.as_bytes()));
                loss.owner = Some(Arc::new(Owner {
                    process: Some(process),
                    cgroup: Some(text()),
                    container: Some(text()),
                    unattributable: false,
                }));
                (loss, true)
            })
            .collect();
        if second == 1 {
            let names = Names { name: Some(text()), container: Some(text()) };
            batch.names = HashMap::from([(HOST, names)]);
        }
        if second == 12 {
            let setting = Setting { at: at(12), name: text(), value: Some(text()), before: Some(text()) };
            batch.netns_settings = vec![NetnsSetting { netns: HOST, setting: setting.clone() }];
            batch.settings = vec![setting];
            batch.notices = vec![Notice { at: at(12), code: text(), text: text() }];
            batch.incidents = vec![Incident { condition: text(), ..incident(12) }];
        }
        for facts in &mut batch.facts {
            facts.json = serde_json::json!({ "kernel_release": name, "notes": [name] }).to_string();
        }
        for rules in &mut batch.rules {
            let dump = serde_json::json!({ "dump": { "saves": [name], "nft_text": name } });
            rules.rules = Some(ctwatch::record::rules::Packed::new(&dump).unwrap());
        }
        writer.write(&batch).unwrap();
    }
}

/// The output of a command on this file that succeeds; what it says on stderr is harmless as well.
#[track_caller]
fn printed(file: &Path, command: &str, more: &[&str]) -> String {
    let arguments: Vec<&OsStr> =
        [OsStr::new(command), file.as_os_str()].into_iter().chain(more.iter().map(OsStr::new)).collect();
    let output = ctwatch(&arguments);
    let what = format!("{arguments:?}");
    let said = shown(&what, &output.stderr);
    assert!(output.status.success(), "{what}: {said}");
    shown(&what, &output.stdout)
}

/// Names of elements with the names of their attributes, in order, as a browser takes them.
fn tags(html: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), html);
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.split_once("-->").map_or("", |(_, rest)| rest);
            continue;
        }
        // A tag ends where no quote is open.
        let mut quote = None;
        let end = rest.char_indices().find(|(_, letter)| {
            match (quote, *letter) {
                (None, '"' | '\'') => quote = Some(*letter),
                (Some(open), close) if open == close => quote = None,
                (None, '>') => return true,
                _ => {}
            }
            false
        });
        let end = end.unwrap_or_else(|| panic!("a tag without an end: {rest}")).0;
        // Of attributes the names count; what is in them may differ.
        let tag: String = rest[..end].split(['"', '\'']).step_by(2).collect();
        // A long cell is of another class.
        found.push(tag.replace(" class=", ""));
        rest = &rest[end..];
    }
    found
}

/// A path may be called anything, too.
fn file_in(folder: &Path, name: &str) -> std::path::PathBuf {
    let name: String = name.replace('/', "_").chars().take(40).collect();
    folder.join(name + ".ctw")
}

#[test]
fn whatever_format_a_recording_is_shown_in() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.ctw");
    write(&plain, "plain");
    let html = tags(&printed(&plain, "report", &["--format", "html"]));
    let markdown = |file: &Path| tags(&rendered(&printed(file, "report", &["--format", "md"])));
    let expected = markdown(&plain);
    assert!(html.len() > 100 && expected.len() > 50, "{html:?} {expected:?}");
    for name in HOSTILE {
        let file = file_in(folder.path(), name);
        write(&file, name);
        same(&tags(&printed(&file, "report", &["--format", "html"])), &html, name);
        same(&markdown(&file), &expected, name);
        printed(&file, "report", &[]);
        is_json(&printed(&file, "report", &["--format", "json"]));
        for by in ["port", "flow", "netns", "process", "container"] {
            printed(&file, "replay", &["--speed", "max", "--by", by, "--events"]);
        }
        is_json(&printed(&file, "replay", &["--speed", "max", "--format", "json", "--events"]));
        is_json(&printed(&file, "export", &["--to", "ndjson"]));
        for table in
            ["runs", "fills", "losses", "drops", "settings", "incidents", "notices", "machine", "rules"]
        {
            no_formulas(&printed(&file, "export", &["--to", "csv", "--table", table]));
        }
    }
}

#[track_caller]
fn same(tags: &[String], expected: &[String], name: &str) {
    let differ = tags.iter().zip(expected).position(|(tag, expected)| tag != expected);
    let around = |tags: &[String], at: usize| tags[at.saturating_sub(3)..tags.len().min(at + 4)].join(" ");
    if let Some(at) = differ {
        panic!("{name:?} made markup: {} instead of {}", around(tags, at), around(expected, at));
    }
    assert_eq!(tags.len(), expected.len(), "{name:?}");
}

fn is_json(lines: &str) {
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

/// As GitHub renders it, with HTML let through: what a name smuggled in would show.
fn rendered(markdown: &str) -> String {
    let mut options = comrak::Options::default();
    let extension = &mut options.extension;
    (extension.table, extension.strikethrough, extension.autolink) = (true, true, true);
    (extension.tasklist, extension.math_dollars, extension.footnotes) = (true, true, true);
    options.render.r#unsafe = true;
    comrak::markdown_to_html(markdown, &options)
}

/// No cell is one, split at commas as CSV is, or at what other spreadsheets take.
fn no_formulas(csv: &str) {
    let mut reader = csv::ReaderBuilder::new().has_headers(true).from_reader(csv.as_bytes());
    for record in reader.records() {
        for cell in record.unwrap().iter().flat_map(|cell| cell.split([';', '|', '\t'])) {
            let starts =
                cell.trim_start_matches([' ', '"']).starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
            assert!(!starts || cell.parse::<f64>().is_ok(), "{cell:?}");
        }
    }
}

#[test]
fn errors_repeat_nothing_that_acts() {
    let folder = tempfile::tempdir().unwrap();
    for name in HOSTILE {
        let file = file_in(folder.path(), name);
        write(&file, name);
        let name = name.replace('\0', "");
        let gone = folder.path().join(format!("gone-{}", name.replace('/', "_")));
        let (file, gone) = (file.as_os_str(), gone.as_os_str());
        let name = OsStr::new(&name);
        let calls = [
            [words(&["report"]), vec![file], words(&["--incident", "99"])].concat(),
            [words(&["replay"]), vec![file], words(&["--netns", "elsewhere"])].concat(),
            [words(&["replay"]), vec![gone]].concat(),
            [words(&["export"]), vec![gone], words(&["--to", "csv"])].concat(),
            [words(&["advise", "--recording"]), vec![file]].concat(),
            [words(&["export"]), vec![file], words(&["--to", "csv", "-o"]), vec![file]].concat(),
            [words(&["replay"]), vec![file, name]].concat(),
            [words(&["drops", "--by"]), vec![name]].concat(),
            [words(&["drops", "--netns"]), vec![name]].concat(),
            [words(&["record", "-o"]), vec![OsStr::new("/nowhere/x")], words(&["--when"]), vec![name]]
                .concat(),
            vec![name],
        ];
        for call in calls {
            let output = ctwatch(&call);
            assert!(!output.status.success(), "{call:?}");
            let said = shown(&format!("{call:?}"), &output.stderr);
            assert!(!said.trim().is_empty(), "{call:?}");
        }
    }
}

#[test]
fn rows_keep_their_columns_whatever_alphabet_a_name_is_in() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.ctw");
    write(&file, "データ🦀");
    let text = printed(&file, "replay", &["--speed", "max", "--by", "process"]);
    let row = |line: &&str| line.contains("データ🦀[");
    let ends: Vec<usize> = text.lines().filter(row).map(ctwatch::text::width).collect();
    assert!(ends.len() > 10, "{text}");
    assert!(ends.iter().all(|end| *end == 80), "{ends:?}\n{text}");
}

fn words(words: &[&'static str]) -> Vec<&'static OsStr> {
    words.iter().map(|word| OsStr::new(*word)).collect()
}
