//! What is exported is what was recorded: in every format, in a span, and without what tells who is who.
//! Goldens are in golden/; `BLESS=1` writes them anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ctwatch::export::{Choice, ColumnType, ExportTable, Sink, Value, export};
use ctwatch::listing::Listing as Listed;
use ctwatch::model::{Census, CensusKey, Direction, Protocol, TableEntry as Entry, TimeoutKind};
use ctwatch::record::Recording;
use ctwatch::record::rows::{EndReason, RunEnd};
use ctwatch::record::span::Span;
use ctwatch::record::writer::Batch;
use ctwatch::testing::slot;
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, SlotKey};
use serde_json::Value as Json;

use super::synthetic::{HOST, at, batch, incident, tick, write};

/// Ten seconds, an incident, an end.
fn recording(folder: &Path, seconds: i64) -> PathBuf {
    let path = folder.join("a.ctw");
    let mut writer = write(&path, seconds);
    writer.write(&Batch { incidents: vec![incident(2)], ..Batch::default() }).unwrap();
    writer.end(&RunEnd { at: at(seconds), reason: EndReason::Signal, last_tick: seconds }).unwrap();
    path
}

fn ctwatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ctwatch")).arg("export").args(arguments).output().unwrap()
}

fn exported(arguments: &[&str]) -> String {
    let output = ctwatch(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/record/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == actual, "{name} has changed:\n{actual}");
}

/// Refuses what doesn't fit its column.
#[derive(Default)]
struct Checked {
    rows: BTreeMap<&'static str, usize>,
    losses: i64,
    finished: bool,
}

impl Sink for Checked {
    fn row(&mut self, table: ExportTable, values: &[Value]) -> anyhow::Result<()> {
        assert_eq!(values.len(), table.columns().len(), "{}", table.name());
        for ((name, kind), value) in table.columns().iter().zip(values) {
            let fits = match value {
                Value::Null => true,
                Value::Int(_) => *kind == ColumnType::Int,
                Value::Float(_) => *kind == ColumnType::Float,
                Value::Bool(_) => *kind == ColumnType::Bool,
                Value::Text(_) | Value::Sentence(_) | Value::Json(_) => *kind == ColumnType::Text,
                Value::Time(_) => *kind == ColumnType::Time,
            };
            assert!(fits, "{}.{name}: {value:?}", table.name());
            if let ("losses", Value::Int(losses)) = (*name, value) {
                self.losses += losses;
            }
        }
        *self.rows.entry(table.name()).or_default() += 1;
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.finished = true;
        Ok(())
    }
}

fn checked(path: &Path, span: Span) -> Checked {
    let mut sink = Checked::default();
    let choice = Choice { tables: ExportTable::ALL.to_vec(), span, anonymizer: None };
    export(&Recording::open(path).unwrap(), choice, &mut sink).unwrap();
    assert!(sink.finished);
    sink
}

#[test]
fn every_table_is_filled_and_every_value_fits_its_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 60);
    let all = checked(&path, Span::default());
    assert_eq!(all.rows.len(), ExportTable::ALL.len(), "{:?}", all.rows);
    let expected = [("ticks", 60), ("drops", 60), ("losses", 60), ("arrivals", 300), ("occupancy", 6)];
    for (table, rows) in expected {
        assert_eq!(all.rows[table], rows, "{table}");
    }
    assert_eq!(all.losses, (1..=60).map(|second| tick(second).losses[0].1).sum::<i64>());
}

#[test]
fn spans_side_by_side_have_all_of_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 60);
    let cut = Some(at(23).time);
    let parts = [Span { from: None, to: cut }, Span { from: cut, to: None }].map(|span| checked(&path, span));
    let all = checked(&path, Span::default());
    for table in ["ticks", "fills", "losses", "arrivals", "drops", "notices", "incidents"] {
        let of = |part: &Checked| part.rows.get(table).copied().unwrap_or(0);
        assert_eq!(of(&parts[0]) + of(&parts[1]), of(&all), "{table}");
    }
    assert_eq!(parts[0].losses + parts[1].losses, all.losses);
}

#[test]
fn ndjson_and_csv_hold_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 3);
    let file = path.to_str().unwrap();
    let ndjson = exported(&[file, "--to", "ndjson"]);
    golden("export.ndjson", &ndjson);
    golden("losses.csv", &exported(&[file, "--to", "csv", "--table", "losses"]));

    let out = folder.path().join("out");
    assert_eq!(exported(&[file, "--to", "csv", "-o", out.to_str().unwrap()]), "");
    let rows: Vec<Json> = ndjson.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for table in ExportTable::ALL {
        let mut reader = csv::Reader::from_path(out.join(format!("{}.csv", table.name()))).unwrap();
        let names: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
        let of_table = rows.iter().filter(|row| row["type"] == table.name());
        let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(of_table.clone().count(), records.len(), "{}", table.name());
        for (row, record) in of_table.zip(&records) {
            for (name, cell) in names.iter().zip(record) {
                let same = match &row[name] {
                    Json::Null => cell.is_empty(),
                    Json::String(text) => cell == text,
                    Json::Number(number) => cell.parse::<f64>().unwrap() == number.as_f64().unwrap(),
                    Json::Bool(yes) => cell == if *yes { "true" } else { "false" },
                    Json::Array(_) | Json::Object(_) => false,
                };
                assert!(same, "{}.{name}: {cell} is not {}", table.name(), row[name]);
            }
        }
    }
}

#[test]
fn icmp_has_a_type_and_a_code_and_no_port_in_each_table() {
    const ECHO: u16 = 8 << 8 | 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ctw");
    let mut writer = write(&path, 0);
    let mut batch = batch(1);
    let key = SlotKey { proto: 1, ..slot(ECHO, KIND_FLOWS) };
    let tick = batch.tick.as_mut().unwrap();
    tick.flows = vec![(key, [3, 1, 0])];
    tick.losses = vec![(SlotKey { kind: Cause::TableFull as u8 | KIND_LOOPBACK, ..key }, 2)];
    let keys = vec![CensusKey { proto: Protocol::ICMP, port: ECHO, entries: 9, assured: 0, time_wait: 0 }];
    tick.censuses = vec![Census { netns: HOST, keys, exact: true, ..Census::default() }];
    let entry = Entry { proto: Protocol::ICMP, port: ECHO, left: 9, ..Entry::default() };
    batch.listings[0].census = Listed::new([(TimeoutKind::Icmp, 30)].into(), 15);
    batch.listings[0].census.add(&entry, Direction::In);
    let (loss, _) = &mut batch.events[0];
    loss.pushed_out_by.as_mut().unwrap().proto = Protocol(1);
    loss.pushed_out_by.as_mut().unwrap().tuple.dport = ECHO;
    writer.write(&batch).unwrap();
    writer.end(&RunEnd { at: at(1), reason: EndReason::Signal, last_tick: 1 }).unwrap();
    let rows: Vec<Json> = exported(&[path.to_str().unwrap(), "--to", "ndjson"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for table in ["losses", "arrivals", "occupancy", "listings"] {
        let row = rows.iter().find(|row| row["type"] == table).unwrap_or_else(|| panic!("no {table}"));
        assert_eq!((&row["port"], &row["service"]), (&Json::Null, &Json::Null), "{row}");
        assert_eq!((row["icmp_type"].as_u64(), row["icmp_code"].as_u64()), (Some(8), Some(1)), "{row}");
    }
    let drop = rows.iter().find(|row| row["type"] == "drops").unwrap();
    let by = ["by_icmp_type", "by_icmp_code", "by_icmp_id", "by_dport"].map(|name| drop[name].as_u64());
    assert_eq!(by, [Some(8), Some(1), Some(5), None], "{drop}");
}

#[test]
fn parquet_holds_the_same() {
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use parquet::record::Field;
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 30);
    let file = path.to_str().unwrap();
    let out = folder.path().join("out");
    assert_eq!(exported(&[file, "--to", "parquet", "-o", out.to_str().unwrap()]), "");
    let ndjson = exported(&[file, "--to", "ndjson"]);
    let rows: Vec<Json> = ndjson.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for table in ExportTable::ALL {
        let part = std::fs::File::open(out.join(format!("{}.parquet", table.name()))).unwrap();
        let reader = SerializedFileReader::new(part).unwrap();
        let stored: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        let of_table: Vec<&Json> = rows.iter().filter(|row| row["type"] == table.name()).collect();
        assert_eq!(stored.len(), of_table.len(), "{}", table.name());
        for (stored, row) in stored.iter().zip(of_table) {
            assert_eq!(stored.get_column_iter().count(), table.columns().len());
            for (name, field) in stored.get_column_iter() {
                let value = match field {
                    Field::Null => Json::Null,
                    Field::Bool(value) => (*value).into(),
                    Field::Long(value) => (*value).into(),
                    Field::Double(value) => (*value).into(),
                    Field::Str(value) => value.as_str().into(),
                    Field::TimestampMicros(value) => {
                        format!("{:.6}", jiff::Timestamp::from_microsecond(*value).unwrap()).into()
                    }
                    other => panic!("{}.{name}: {other:?}", table.name()),
                };
                assert_eq!(value, row[name], "{}.{name}", table.name());
            }
        }
    }
    let output = ctwatch(&[file, "--to", "parquet", "--table", "losses"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn anonymized_it_tells_nobody_and_still_fits_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 12);
    let file = path.to_str().unwrap();
    let plain = exported(&[file, "--to", "ndjson"]);
    let known =
        ["10.1.0.", "fdfd:fdfd", "2020:2020", "nginx", "web1", "host1", "f00", "cpus", "acme", "203.0.113.9"];
    assert!(known.iter().all(|word| plain.contains(word)));
    let hidden = exported(&[file, "--to", "ndjson", "--anonymize=a key"]);
    for word in known {
        assert!(!hidden.contains(word), "{word}: {hidden}");
    }
    for word in
        ["process-1", "container-1", "host-1", "netns-1", "/cgroup-1", "\"redis\"", "table_full", "6379"]
    {
        assert!(hidden.contains(word), "{word}");
    }
    assert_eq!(hidden, exported(&[file, "--to", "ndjson", "--anonymize=a key"]), "a key makes it repeatable");
    assert_ne!(
        hidden,
        exported(&[file, "--to", "ndjson", "--anonymize"]),
        "without one it can't be repeated"
    );
    let drops = |text: &str, field: &str| -> Vec<String> {
        let rows = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        rows.filter(|row| row["type"] == "drops").map(|row| row[field].to_string()).collect()
    };
    // That there were rules stays, without a word of them.
    let rules = |text: &str| -> Vec<Json> {
        let rows = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        rows.filter(|row| row["type"] == "rules").collect()
    };
    assert!(rules(&plain)[0]["rules"].as_str().is_some_and(|text| text.contains("acme-1")));
    assert_eq!(
        (&rules(&hidden)[0]["rules"], rules(&hidden)[0]["bytes"].as_i64().is_some()),
        (&Json::Null, true)
    );
    assert_eq!(drops(&plain, "time"), drops(&hidden, "time"));
    // All IPv4 sources are in one /24, before and after.
    let networks = |text: &str| {
        let v4 = drops(text, "src").into_iter().filter(|src| src.contains('.'));
        v4.map(|src| src.rsplit_once('.').unwrap().0.to_owned())
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert_eq!((networks(&plain), networks(&hidden)), (1, 1));
}

#[test]
fn nothing_is_written_over_and_wrong_usage_says_what_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 3);
    let file = path.to_str().unwrap();
    let taken = folder.path().join("taken.csv");
    std::fs::write(&taken, "mine").unwrap();
    let says = |arguments: &[&str], code: i32, words: &str| {
        let output = ctwatch(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            (output.status.code(), error.contains(words)),
            (Some(code), true),
            "{arguments:?}: {error}"
        );
    };
    let taken_name = taken.to_str().unwrap();
    says(&[file, "--to", "csv", "--table", "losses", "-o", taken_name], 2, "nothing is written over");
    says(&[file, "--to", "ndjson", "-o", file], 2, "nothing is written over");
    for format in ["csv", "parquet"] {
        says(&[file, "--to", format, "-o", taken_name], 2, "taken.csv is there already and no folder");
    }
    assert_eq!(std::fs::read_to_string(&taken).unwrap(), "mine");
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("ticks.csv"), "mine").unwrap();
    says(&[file, "--to", "csv", "-o", out.to_str().unwrap()], 2, "ticks.csv");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1, "no file beside the one in the way");
    says(&[file, "--to", "csv"], 2, "--table");
    says(&[file, "--to", "xml"], 2, "ndjson");
    says(&[file], 2, "--to");
    says(&[file, "--to", "csv", "--table", "tuples"], 2, "arrivals");
    says(&[file, "--to", "csv", "--table", "ticks", "--from", "+1h"], 2, "the recording covers");
    says(&["/dev/null", "--to", "ndjson"], 1, "not a regular file");
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 4000);
    let out = folder.path().join("out");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.arg("export").arg(&path).args(["--to", "csv", "-o"]).arg(&out);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !out.join("ticks.csv.partial").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it began");
    }
    assert!(!out.join("ticks.csv").exists(), "a file has its name before it is complete");
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.contains("interrupted")), (Some(1), true), "{error}");
    assert!(!out.exists(), "the folder was made for it");
}

#[test]
fn damage_is_said_and_a_closed_pipe_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 2000);
    let file = path.to_str().unwrap();
    for format in ["csv", "ndjson"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        command.args(["export", file, "--table", "arrivals", "--to", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{format}");
    }
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute("UPDATE tick_loss SET losses = losses + 1 WHERE tick = 1500", [])
        .unwrap();
    let output = ctwatch(&[file, "--to", "csv", "--table", "losses"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), error.contains("tick 1500: checksum mismatch")),
        (Some(1), true),
        "{error}"
    );
    for (format, name) in [("csv", "losses.csv"), ("parquet", "losses.parquet"), ("ndjson", "losses.ndjson")]
    {
        let out = folder.path().join(name);
        let output = ctwatch(&[file, "--to", format, "--table", "losses", "-o", out.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|left| !left.to_str().unwrap().starts_with("losses")), "half a {name}");
    }
}
