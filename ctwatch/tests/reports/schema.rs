//! Every record follows its schema in docs/schema/, and has no field that the schema doesn't describe.
//! A small checker: it knows the keywords these schemas use, and refuses any other.

use std::collections::BTreeMap;
use std::path::Path;

use crate::fixtures::{
    check, events, loss, losses_with_owners, notice, quiet, scan, settings, start, state, storm_beyond_reach,
    storm_with_occupants, storm_with_unknown_ports, time,
};
use ctwatch::contract::End;
use ctwatch::model::{Backend, Hook, NetnsId, NetnsSample};
use ctwatch::state::{By, State, StateConfig};
use ctwatch::view::View;
use ctwatch::view::json::JsonView;
use ctwatch_common::Cause;
use serde_json::Value;

const EVERY_BY: [By; 9] =
    [By::Port, By::Flow, By::Src, By::Dst, By::Proto, By::Cause, By::Netns, By::Process, By::Container];

struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    fn read() -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema");
        let files = std::fs::read_dir(directory).expect("docs/schema").map(|entry| entry.unwrap().path());
        Self(
            files
                .map(|path| {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                    (name, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}")))
                })
                .collect(),
        )
    }

    fn resolve(&self, reference: &str) -> &Value {
        let (file, pointer) = reference.split_once('#').expect("file#/pointer");
        self.0[file].pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    /// Appends what is wrong with `value` to `wrong`.
    fn check(&self, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
        let schema = schema.as_object().expect("a schema is an object");
        for (keyword, rule) in schema {
            let ok = match keyword.as_str() {
                "$schema" | "$defs" | "title" | "description" => true,
                "$ref" => {
                    self.check(self.resolve(rule.as_str().unwrap()), value, at, wrong);
                    true
                }
                "type" => match rule {
                    Value::Array(types) => types.iter().any(|wanted| is(value, wanted)),
                    wanted => is(value, wanted),
                },
                "const" => value == rule,
                "enum" => rule.as_array().unwrap().contains(value),
                "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
                // Two patterns exist: a time and a name.
                "pattern" if rule.as_str().unwrap().contains('T') => {
                    value.as_str().unwrap().parse::<jiff::Timestamp>().is_ok()
                }
                "pattern" => value.as_str().unwrap().bytes().all(|b| b == b'_' || b.is_ascii_lowercase()),
                "required" => {
                    let missing = |name: &&Value| value.get(name.as_str().unwrap()).is_none();
                    value.is_null() || !rule.as_array().unwrap().iter().any(|name| missing(&name))
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, item, &format!("{at}[{index}]"), wrong);
                    }
                    true
                }
                "properties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        match rule.get(name) {
                            Some(rule) => self.check(rule, value, &format!("{at}.{name}"), wrong),
                            None => wrong.push(format!("{at}.{name} is not described")),
                        }
                    }
                    true
                }
                unknown => panic!("this checker doesn't know the keyword {unknown}"),
            };
            if !ok {
                wrong.push(format!("{at}: {value} breaks {keyword}: {rule}"));
            }
        }
    }

    fn check_record(&self, record: &Value) -> Vec<String> {
        let kind = record["type"].as_str().expect("a record has a type");
        let schema = &self.0[&format!("{kind}.json")];
        let mut wrong = Vec::new();
        self.check(schema, record, kind, &mut wrong);
        wrong
    }
}

fn is(value: &Value, wanted: &Value) -> bool {
    match wanted.as_str().expect("the name of a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        unknown => panic!("no type {unknown}"),
    }
}

/// The same in another netns.
fn in_netns(inode: u32, like: &NetnsSample) -> NetnsSample {
    NetnsSample { id: NetnsId::from_inode(inode), ..like.clone() }
}

/// Records of every kind, with every oddity a field can have.
fn records() -> Vec<Value> {
    let mut out = Vec::new();
    let mut view = JsonView::new(&mut out);
    for backend in [Backend::Kprobe, Backend::Tracepoint, Backend::Counters] {
        view.start(&start(backend)).unwrap();
        for by in EVERY_BY {
            let mut state = State::new(StateConfig { backend, ..settings(by) });
            view.tick(&state.sample(&quiet())).unwrap();
            for (ipv6, proto) in [(false, 6), (true, 58), (true, 47)] {
                state.loss(&loss(ipv6, proto));
            }
            for loss in losses_with_owners() {
                state.loss(&loss);
            }
            let mut odd = storm_with_unknown_ports(1);
            odd.overflow[Cause::Clash as usize] = 3;
            odd.lost_events[Cause::TableFull as usize] = 2;
            odd.netns[1].gone = true;
            odd.netns[2].max = Some(0);
            odd.netns[2].after.drop = 2;
            odd.netns[2].before.drop = 1;
            view.tick(&state.sample(&odd)).unwrap();
            view.end(&state.end(time(2_000))).unwrap();
        }
    }
    let mut handicapped = start(Backend::Kprobe);
    handicapped.hooks[0].missing = Some("Invalid argument".into());
    handicapped.hooks[0].costs = Some("evictions are not counted".into());
    view.start(&handicapped).unwrap();
    let mut state_with_occupants = state(By::Port);
    view.tick(&state_with_occupants.sample(&storm_with_occupants(1))).unwrap();
    view.end(&state_with_occupants.end(time(2_000))).unwrap();
    let mut after_a_scan = state(By::Port);
    view.tick(&after_a_scan.sample(&scan(1))).unwrap();
    view.end(&after_a_scan.end(time(2_000))).unwrap();
    let mut unnamed = quiet();
    unnamed.netns[0].name = None;
    unnamed.netns[0].count = None;
    view.tick(&state(By::Port).sample(&unnamed)).unwrap();
    let mut crowd = quiet();
    crowd.netns = (0..1_100).map(|number| in_netns(4_026_540_000 + number, &crowd.netns[0])).collect();
    view.tick(&state(By::Port).sample(&crowd)).unwrap();
    let mut beyond_reach = state(By::Port);
    view.tick(&beyond_reach.sample(&storm_beyond_reach(1))).unwrap();
    // Nobody read some of it in time.
    view.end(&End { unwritten_lines: 7, ..beyond_reach.end(time(2_000)) }).unwrap();
    for event in events() {
        view.event(&event).unwrap();
    }
    view.notice(&notice()).unwrap();
    view.check(&check(true)).unwrap();
    view.check(&check(false)).unwrap();
    for report in crate::census::reports() {
        view.table(&report).unwrap();
    }
    for report in crate::advice::all() {
        view.advice(&report).unwrap();
    }
    drop(view);
    let lines = crate::fixtures::recording_lines();
    let recorded = lines.iter().map(|line| serde_json::to_value(line).unwrap());
    out.extend(crate::postmortem::json().bytes());
    let printed = String::from_utf8(out).unwrap();
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).chain(recorded).collect()
}

#[test]
fn every_record_follows_its_schema() {
    let schemas = Schemas::read();
    let wrong: Vec<String> = records().iter().flat_map(|record| schemas.check_record(record)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_described_field_is_seen() {
    let schemas = Schemas::read();
    let records = records();
    for (file, schema) in &schemas.0 {
        let Some(kind) = schema.pointer("/properties/type/const").and_then(Value::as_str) else { continue };
        for name in schema["properties"].as_object().unwrap().keys() {
            // No fixture fires GRE's missing ports at every record; one of a kind must show each field.
            let seen = records.iter().any(|record| record["type"] == kind && record.get(name).is_some());
            let insert_only_tcp = kind == "insert" && (name.starts_with("icmp") || name == "unattributed");
            assert!(seen || insert_only_tcp, "{file}: no record has {name}");
        }
    }
}

#[test]
fn every_hook_is_described_and_is_known_by_its_number() {
    let schemas = Schemas::read();
    let described = schemas.0["drop.json"].pointer("/properties/hook/enum").unwrap();
    let names: Vec<Value> = Hook::ALL.iter().map(|hook| hook.name().into()).chain([Value::Null]).collect();
    assert_eq!(described, &Value::Array(names));
    assert!(Hook::ALL.into_iter().all(|hook| Hook::from_number(hook as u8) == Some(hook)));
    let known = (0..=u8::MAX).filter(|number| Hook::from_number(*number).is_some());
    assert_eq!(known.count(), Hook::ALL.len());
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let schemas = Schemas::read();
    let good = records().into_iter().find(|record| record["type"] == "tick").unwrap();
    assert!(schemas.check_record(&good).is_empty());
    let mut bad = good.clone();
    bad["extra"] = 1.into();
    bad["interval_s"] = "one".into();
    bad["rows"] = serde_json::json!([{ "unit": "bytes" }]);
    bad.as_object_mut().unwrap().remove("counted");
    assert_eq!(schemas.check_record(&bad).len(), 5);
}
