//! The order of the rooms, held by a test: each imports only rooms that stand before it, and of these only those it lists.
//! CONTRIBUTING's table of rooms is compared with it, so that both stay true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Bottom first: a room, and what it may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("foreign", &[]),
    ("error", &[]),
    ("memory", &[]),
    ("outlet", &[]),
    ("files", &["foreign"]),
    ("text", &["foreign"]),
    ("model", &["foreign"]),
    ("kernel", &["foreign"]),
    ("children", &[]),
    ("stderr", &["foreign", "outlet", "text"]),
    ("contract", &["foreign", "model"]),
    ("listing", &["model"]),
    ("process", &["foreign", "files", "model", "kernel"]),
    ("sandbox", &["kernel"]),
    ("firewall", &["foreign", "files", "text", "model", "kernel", "children"]),
    ("netns", &["foreign", "text", "model", "kernel", "children", "process"]),
    ("machine", &["foreign", "files", "text", "model", "kernel", "process"]),
    ("state", &["foreign", "model", "contract"]),
    ("conntrack", &["model", "kernel", "netns"]),
    ("probe", &["foreign", "stderr", "model", "kernel", "children", "netns"]),
    ("owner", &["foreign", "model", "kernel", "process", "netns"]),
    (
        "record",
        &["foreign", "error", "files", "text", "model", "kernel", "children", "contract", "listing", "state"],
    ),
    ("watch", &["memory", "model", "kernel", "netns", "conntrack", "probe", "owner"]),
    ("advise", &["foreign", "text", "model", "contract", "listing", "firewall", "machine", "record"]),
    ("export", &["foreign", "model", "contract", "state", "record"]),
    ("view", &["foreign", "text", "model", "contract", "state", "advise"]),
    (
        "postmortem",
        &["foreign", "error", "text", "model", "contract", "firewall", "state", "record", "advise", "view"],
    ),
    (
        "cli",
        &[
            "foreign",
            "stderr",
            "text",
            "model",
            "kernel",
            "state",
            "record",
            "advise",
            "export",
            "postmortem",
        ],
    ),
    (
        "command",
        &[
            "foreign",
            "error",
            "outlet",
            "stderr",
            "files",
            "text",
            "model",
            "kernel",
            "children",
            "contract",
            "listing",
            "firewall",
            "sandbox",
            "netns",
            "machine",
            "state",
            "conntrack",
            "probe",
            "record",
            "watch",
            "advise",
            "export",
            "view",
            "postmortem",
            "cli",
        ],
    ),
];

/// ctwatch-common is below all rooms.
const GROUND_FLOOR: usize = 2;
/// Rooms beside it: what everybody needs, whatever they do.
const BASEMENT: &[&str] = &["foreign"];

fn floors() -> BTreeMap<&'static str, usize> {
    let mut floors = BTreeMap::new();
    for (room, imports) in ROOMS {
        let floor = imports.iter().map(|import| floors[import] + 1).max();
        let ground = if BASEMENT.contains(room) { GROUND_FLOOR - 1 } else { GROUND_FLOOR };
        floors.insert(*room, floor.unwrap_or(ground));
    }
    floors
}

/// A source file without what only tests see.
struct Source {
    /// Below `src/`.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The modules it stands in, from the room on.
    fn module(&self) -> Vec<String> {
        let mut parts: Vec<String> =
            self.path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if parts.last().is_some_and(|last| last == "mod") {
            parts.pop();
        }
        parts
    }

    fn room(&self) -> String {
        self.module().swap_remove(0)
    }

    /// Each import of another room: its name, and the line.
    fn imports(&self) -> Vec<(String, usize)> {
        let depth = self.module().len();
        let mut found = Vec::new();
        for (number, line) in (1..).zip(self.text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            for start in ["crate::".to_owned(), "super::".repeat(depth)] {
                for (at, _) in code.match_indices(&start) {
                    let before = code[..at].chars().next_back();
                    let is_whole =
                        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':' && c != '$');
                    let rest = &code[at + start.len()..];
                    if is_whole && !rest.starts_with("super::") {
                        found.extend(self.names(rest, number).into_iter().map(|name| (name, number)));
                    }
                }
            }
        }
        found.retain(|(name, _)| *name != self.room());
        found
    }

    /// Whatever it names by `crate::` or `super::`, from the room on.
    fn paths(&self) -> Vec<Vec<String>> {
        let own = self.module();
        let code: Vec<&str> =
            self.text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
        let code = code.join("\n");
        let mut paths = Vec::new();
        for start in ["crate::", "super::"] {
            for (at, _) in code.match_indices(start) {
                if code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c)) {
                    continue;
                }
                let mut rest = &code[at..];
                let mut base = if start == "crate::" { Vec::new() } else { own.clone() };
                rest = rest.strip_prefix("crate::").unwrap_or(rest);
                while let Some(upper) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = upper;
                }
                leaves(&mut rest, &base, &mut paths);
            }
        }
        paths
    }

    /// The first names of a path, which may be a group over several lines.
    fn names(&self, rest: &str, number: usize) -> Vec<String> {
        let ident = |text: &str| {
            text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        };
        if !rest.starts_with('{') {
            return vec![ident(rest)];
        }
        let following: Vec<&str> = self.text.lines().skip(number).collect();
        let group = format!("{}\n{}", rest, following.join("\n"));
        let (mut depth, mut names, mut name) = (0, Vec::new(), String::new());
        for c in group.chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            match c {
                ',' | '}' if depth <= 1 => names.push(ident(&std::mem::take(&mut name))),
                '{' if depth == 1 => {}
                _ => name.push(c),
            }
            if depth == 0 {
                break;
            }
        }
        names.retain(|name| !name.is_empty() && name != "self");
        names
    }
}

/// Reads a path, of a group one for each of its leaves.
fn leaves(text: &mut &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = prefix.to_vec();
    loop {
        *text = text.trim_start();
        if let Some(group) = text.strip_prefix('{') {
            *text = group.trim_start();
            while !text.is_empty() && !text.starts_with('}') {
                leaves(text, &path, found);
                // Behind it may stand what it is called here.
                let end = text.find([',', '}']).unwrap_or(text.len());
                *text = text[end..].trim_start_matches(',').trim_start();
            }
            *text = text.strip_prefix('}').unwrap_or(text);
            return;
        }
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        path.push(text[..end].to_owned());
        *text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) => *text = rest,
            None => break,
        }
    }
    found.push(path);
}

/// Which files of a room import each other in a circle: each import that is part of one. What a file has with those in its own
/// folder, and they with it, is no circle: they are one piece in several files.
fn circles(sources: &[Source]) -> Vec<String> {
    let modules: BTreeSet<Vec<String>> = sources.iter().map(Source::module).collect();
    let mut edges: BTreeSet<(Vec<String>, Vec<String>)> = BTreeSet::new();
    for source in sources {
        let own = source.module();
        for path in source.paths() {
            let longest = (1..=path.len()).rev().map(|length| &path[..length]);
            let Some(other) = longest.into_iter().find(|path| modules.contains(*path)) else { continue };
            let is_one_piece = own.starts_with(other) || other.starts_with(&own);
            if other[0] == own[0] && !is_one_piece {
                edges.insert((own.clone(), other.to_vec()));
            }
        }
    }
    loop {
        let from: BTreeSet<_> = edges.iter().map(|(from, _)| from.clone()).collect();
        let to: BTreeSet<_> = edges.iter().map(|(_, to)| to.clone()).collect();
        let before = edges.len();
        edges.retain(|edge| from.contains(&edge.1) && to.contains(&edge.0));
        if edges.len() == before {
            break;
        }
    }
    edges.iter().map(|(from, to)| format!("{} imports {}", from.join("::"), to.join("::"))).collect()
}

/// All sources of the library but this one and those that only tests see.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let (mut sources, mut only_for_tests) = (Vec::new(), BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let below = path.strip_prefix(&root).unwrap().to_owned();
            let is_code = below.extension().is_some_and(|extension| extension == "rs");
            if !is_code
                || ["lib.rs", "main.rs", "rooms.rs", "testing.rs", "testing"]
                    .iter()
                    .any(|name| below.starts_with(name))
            {
                continue;
            }
            let (text, modules) = without_tests(&std::fs::read_to_string(&path).unwrap());
            let source = Source { path: below, text };
            let parent = source.module();
            only_for_tests.extend(modules.into_iter().map(|module| [parent.clone(), vec![module]].concat()));
            sources.push(source);
        }
    }
    sources.retain(|source| !only_for_tests.iter().any(|module| source.module().starts_with(module)));
    assert!(sources.len() > 100, "the sources are where they are looked for");
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// The text with each item behind `#[cfg(test)]` blanked, line by line, and the modules in files of their own among these.
fn without_tests(text: &str) -> (String, Vec<String>) {
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        kept.push(line);
        if line.trim() != "#[cfg(test)]" {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        for item in lines.by_ref() {
            kept.push("");
            let code = item.trim();
            if let Some(module) =
                code.trim_start_matches("pub ").strip_prefix("mod ").and_then(|m| m.strip_suffix(';'))
            {
                modules.push(module.to_owned());
            }
            let is_last = item.len() - item.trim_start().len() == indent
                && (code == "}" || code.ends_with(';') || code.ends_with("{}") || code.ends_with("},"));
            if is_last {
                break;
            }
        }
    }
    (kept.join("\n"), modules)
}

#[test]
fn a_room_imports_only_the_rooms_it_lists_and_all_of_these() {
    let rooms: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut faults = Vec::new();
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for source in sources() {
        let room = source.room();
        let Some(allowed) = rooms.get(room.as_str()) else {
            faults.push(format!("{}: the room {room} is not listed", source.path.display()));
            continue;
        };
        for (import, line) in source.imports() {
            if !allowed.contains(&import.as_str()) {
                faults.push(format!("{}:{line}: {room} may not import {import}", source.path.display()));
            }
            used.insert((room.clone(), import));
        }
    }
    for (room, imports) in ROOMS {
        for import in *imports {
            if !used.contains(&((*room).to_owned(), (*import).to_owned())) {
                faults.push(format!("{room} lists {import} and doesn't use it"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_room_stands_after_all_that_it_imports() {
    for (index, (room, imports)) in ROOMS.iter().enumerate() {
        for import in *imports {
            let is_before = ROOMS[..index].iter().any(|(other, _)| other == import);
            assert!(is_before, "{room} imports {import}, which doesn't stand before it");
        }
    }
}

#[test]
fn files_of_a_room_import_each_other_in_one_direction() {
    let faults = circles(&sources());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_circle_of_files_is_found_in_every_spelling() {
    let source = |path: &str, text: &str| Source { path: PathBuf::from(path), text: text.to_owned() };
    let base = source("record/base.rs", "use super::SCHEMA;\nuse crate::model::At;\n");
    let reader =
        source("record/reader.rs", "use super::{\n    base::{self, Row as Line},\n    limits,\n};\n");
    let ticks = source("record/reader/ticks.rs", "use super::Reader;\nfn f() { super::super::base::g() }\n");
    let limits = |text: &str| source("record/limits.rs", text);
    let all = |last: Source| {
        let at = |one: &Source| Source { path: one.path.clone(), text: one.text.clone() };
        circles(&[at(&base), at(&reader), at(&ticks), last])
    };
    assert_eq!(all(limits("use super::base;\n// use super::reader;\n")), Vec::<String>::new());
    for text in ["use super::{base, reader::Reader};\n", "fn f() { crate::record::reader::g() }\n"] {
        let found = all(limits(text));
        assert_eq!(found, ["record::limits imports record::reader", "record::reader imports record::limits"]);
    }
}

#[test]
fn what_only_one_room_may_do_is_done_there_alone() {
    let pure = ["model", "contract", "listing", "state"];
    let mut faults = Vec::new();
    for source in sources() {
        let room = source.room();
        for (number, line) in (1..).zip(source.text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            let has = |word: &str| code.contains(word);
            let at = format!("{}:{number}", source.path.display());
            if room != "probe" && (has("aya::") || has("use aya")) {
                faults.push(format!("{at}: aya is probe's alone"));
            }
            if room != "cli" && (has("clap::") || has("use clap")) {
                faults.push(format!("{at}: clap is cli's alone"));
            }
            let is_clock = source.path == Path::new("model/clock.rs");
            if room != "foreign" && (has(".display()") || has("from_utf8_lossy") || has("to_string_lossy")) {
                faults.push(format!(
                    "{at}: text from outside is crate::foreign's: `shown()`, `Foreign::from_bytes`"
                ));
            }
            if pure.contains(&room.as_str()) && !is_clock && (has("std::fs") || has("Instant::now")) {
                faults.push(format!("{at}: {room} does no I/O and reads no clock"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_table_of_rooms_in_contributing_is_this_one() {
    let text = include_str!("../../CONTRIBUTING.md");
    let rows: Vec<(usize, String, Vec<String>)> = text
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, floor, room, _, imports, _] = cells[..] else { return None };
            let imports = imports.split(", ").filter(|import| *import != "–").map(str::to_owned).collect();
            Some((floor.parse().ok()?, room.trim_matches('`').to_owned(), imports))
        })
        .collect();
    let floors = floors();
    let listed: Vec<(usize, String, Vec<String>)> = ROOMS
        .iter()
        .map(|(room, imports)| {
            (floors[room], (*room).to_owned(), imports.iter().map(|import| (*import).to_owned()).collect())
        })
        .collect();
    assert_eq!(rows, listed);
}

#[test]
fn imports_are_found_in_every_spelling() {
    let text = "use crate::{model::{NetnsId, Loss}, netns};\nuse crate::text::wrap;\n// crate::cli\nfn f() { crate::view::x() }\n\
                use super::super::probe::Probe;\nuse super::sibling;\n#[cfg(test)]\nmod tests {\n    use crate::record::R;\n}\n";
    let (text, modules) =
        without_tests(&format!("{text}#[cfg(test)]\nmod fixture;\nuse crate::error::Exit;\n"));
    assert_eq!(modules, ["fixture"]);
    let source = Source { path: PathBuf::from("watch/events.rs"), text };
    let mut imports = source.imports();
    imports.sort();
    let expected = [("error", 13), ("model", 1), ("netns", 1), ("probe", 5), ("text", 2), ("view", 4)];
    assert_eq!(imports, expected.map(|(name, line)| (name.to_owned(), line)));
}
