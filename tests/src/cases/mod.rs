//! Rule sets as people have them, each with what is asked and the right answer (tests/cases), tried with real flows: what
//! is advised is done by its own commands, and all that passed must pass. On this machine, in netns of their own:
//!     cargo build -p ctwatch -p ctwatch-tests && target/debug/ctwatch-tests cases
//!     target/debug/ctwatch-tests cases 22 35-translated       # whose names begin so
//!     target/debug/ctwatch-tests cases --library              # asks the library, not the program: no window
//!     target/debug/ctwatch-tests cases --by-hand              # is a case's right answer right? nobody is asked
//! Another case is a folder with rules.nft (nft), rules.v4 and rules.v6 (iptables-restore) and a line in cases.json.

mod ask;
mod generate;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::lab::{self, Flow, Piece, Place, Plan, Proto, Seen, measure};
use crate::shell::{run, run_with_input};
use ask::Answer;
pub use ask::{Asker, target};

/// How long a flow may take that is expected to pass.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long one that must not pass is waited for.
const REFUSED_PATIENCE: Duration = Duration::from_millis(400);
/// Between two rounds of traffic while ctwatch looks.
const PAUSE: Duration = Duration::from_millis(60);

/// cases.json.
#[derive(Debug, Deserialize)]
struct Description {
    places: BTreeMap<String, Plan>,
    cases: BTreeMap<String, Case>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    place: String,
    flows: Vec<String>,
    /// Flows that don't pass today and may not pass then.
    #[serde(default)]
    refused: Vec<String>,
    asked: Vec<String>,
    right: Right,
    /// Where else something listens.
    #[serde(default)]
    listen: Vec<String>,
    /// A reason has to hold this.
    #[serde(default)]
    names: Option<String>,
    /// Seconds beyond the window, on real hardware.
    #[serde(default)]
    within: Option<u32>,
    #[serde(default)]
    generate: Option<generate::Rules>,
    /// Rules of iptables go into x_tables.
    #[serde(default)]
    legacy: bool,
    /// What is lost isn't seen by flows: a helper, a program that decides.
    #[serde(default)]
    unseen: bool,
    /// Shell lines on the host before its rules are loaded.
    #[serde(default)]
    prepare: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Right {
    Advised,
    Refused,
    /// Refused; or advised, and nothing breaks.
    Either,
    /// There is nothing to do.
    Nothing,
}

/// What became of a piece that was asked about.
struct Row {
    case: String,
    asked: String,
    right: String,
    got: String,
    wrong: Vec<String>,
}

/// What to run, and how.
pub struct Options<'a> {
    /// The folder of cases.json.
    pub folder: &'a Path,
    /// Cases whose name begins with one of these; all if there are none.
    pub only: &'a [String],
    /// How many at once.
    pub jobs: usize,
    /// Who is asked.
    pub asker: Asker,
    /// How many times slower than real hardware this machine may be.
    pub slowness: u32,
    /// These tools may be too old for some of the rules.
    pub other_tools: bool,
}

/// What came of all cases.
pub struct Outcome {
    /// So many answers were right.
    pub right: usize,
    /// A table of those that were not.
    pub wrong: String,
    /// Cases with rules that these tools don't take, and what they say.
    pub unloadable: Vec<String>,
}

/// Its rules can't be loaded.
#[derive(Debug)]
struct Unloadable;

impl std::fmt::Display for Unloadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("loading the rules")
    }
}

/// Runs the cases.
pub fn run_all(options: &Options) -> Result<Outcome> {
    let path = options.folder.join("cases.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let description: Description = serde_json::from_str(&text).context("reading cases.json")?;
    let is_wanted = |name: &str| {
        options.only.is_empty() || options.only.iter().any(|start| name.starts_with(start.as_str()))
    };
    let wanted: Vec<_> = description.cases.iter().filter(|(name, _)| is_wanted(name)).collect();
    ensure!(!wanted.is_empty(), "no case's name begins with {}", options.only.join(" or "));
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let unloadable = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, wanted.len()) {
            scope.spawn(|| {
                while let Some((name, case)) = wanted.get(next.fetch_add(1, Relaxed)) {
                    let found = try_case(name, case, &description.places, options).unwrap_or_else(|error| {
                        if options.other_tools && error.is::<Unloadable>() {
                            let why = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
                            unloadable
                                .lock()
                                .expect("no thread panics with the lock")
                                .push(format!("{name}: {why}"));
                            return Vec::new();
                        }
                        vec![Row {
                            case: (*name).clone(),
                            asked: case.asked.join(" "),
                            right: format!("{:?}", case.right).to_lowercase(),
                            got: "no answer".to_owned(),
                            wrong: vec![format!("{error:#}")],
                        }]
                    });
                    rows.lock().expect("no thread panics with the lock").extend(found);
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no thread panics with the lock");
    rows.sort_by(|a, b| a.case.cmp(&b.case));
    let right = rows.iter().filter(|row| row.wrong.is_empty()).count();
    let unloadable = unloadable.into_inner().expect("no thread panics with the lock");
    Ok(Outcome { right, wrong: table(&rows), unloadable })
}

/// The wrong ones, widest columns last.
fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows.iter().filter(|row| !row.wrong.is_empty()) {
        let Row { case, asked, right, got, wrong } = row;
        let _ = writeln!(text, "WRONG {case:<40} {asked:<13} right: {right:<8} got: {got}");
        for line in wrong.iter().flat_map(|why| why.lines()) {
            let _ = writeln!(text, "    {line}");
        }
    }
    text
}

fn parse<T: std::str::FromStr<Err = anyhow::Error>>(list: &[String]) -> Result<Vec<T>> {
    list.iter().map(|text| text.parse()).collect()
}

/// A case that is built: who is there, which flows, what they look like today.
struct Scene {
    place: Place,
    flows: Vec<Flow>,
    refused: Vec<Flow>,
    today: Vec<Seen>,
    rules: String,
}

fn try_case(name: &str, case: &Case, places: &BTreeMap<String, Plan>, options: &Options) -> Result<Vec<Row>> {
    let folder = options.folder.join(name);
    if !options.asker.can(&folder) {
        return Ok(Vec::new());
    }
    let scene = set_up(&folder, case, places)?;
    let mut rows = Vec::new();
    for asked in &case.asked {
        let piece: Piece = asked.parse()?;
        let over = AtomicBool::new(false);
        let answer = thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                while !over.load(Relaxed) {
                    measure(&scene.place, &scene.flows, PATIENCE)?;
                    thread::sleep(PAUSE);
                }
                anyhow::Ok(())
            });
            let answer = options.asker.ask(&scene.place, &piece, &folder);
            over.store(true, Relaxed);
            traffic.join().expect("the traffic's thread panicked")?;
            answer
        })?;
        let mut row = Row {
            case: name.to_owned(),
            asked: asked.clone(),
            right: format!("{:?}", case.right).to_lowercase(),
            got: answer.to_string(),
            wrong: Vec::new(),
        };
        judge(case, &scene, &piece, &answer, &mut row, options)?;
        rows.push(row);
    }
    Ok(rows)
}

fn set_up(folder: &Path, case: &Case, places: &BTreeMap<String, Plan>) -> Result<Scene> {
    let plan = places.get(&case.place).with_context(|| format!("there is no place {}", case.place))?;
    let (flows, refused): (Vec<Flow>, Vec<Flow>) = (parse(&case.flows)?, parse(&case.refused)?);
    let all = || flows.iter().chain(&refused);
    let planned: Vec<_> = plan.wires.iter().flat_map(|wire| &wire.there).collect();
    let is_more = |address: &std::net::IpAddr| {
        !planned.iter().any(|known| known.split('/').next() == Some(&address.to_string()))
    };
    let more: Vec<_> = all()
        .filter(|flow| flow.who != lab::HOST)
        .filter_map(|flow| Some((flow.who.clone(), flow.from.filter(is_more)?)))
        .collect();
    let mut place = Place::build(plan, &more)?;
    let mut ports: Vec<(Proto, u16)> = all().map(|flow| (flow.proto, flow.to.port())).collect();
    for text in &case.listen {
        let (port, proto) = text.split_once('/').with_context(|| format!("{text} is no PORT/PROTO"))?;
        ports.push((Proto::from_name(proto).context("a protocol to listen by")?, port.parse()?));
    }
    ports.sort_unstable();
    ports.dedup();
    place.serve(&ports, &flows)?;
    place.host().run(|| {
        for line in &case.prepare {
            run(&["sh", "-c", line])?;
        }
        load(folder, case).context(Unloadable)
    })?;
    let today = measure(&place, &flows, PATIENCE)?;
    for (flow, seen) in flows.iter().zip(&today) {
        let answer = seen.answer.as_deref().with_context(|| format!("{flow} doesn't pass today"))?;
        if let Some(address) = flow.seen_as {
            ensure!(answer.ends_with(&format!(" sees {address}")), "{flow} today: {answer}");
        }
    }
    for (flow, seen) in refused.iter().zip(measure(&place, &refused, REFUSED_PATIENCE)?) {
        ensure!(seen.answer.is_none(), "{flow} passes today: {seen:?}");
    }
    let rules = place.host().run(rules)?;
    Ok(Scene { place, flows, refused, today, rules })
}

fn load(folder: &Path, case: &Case) -> Result<()> {
    let tool =
        |plain: &str| if case.legacy { plain.replace("tables", "tables-legacy") } else { plain.to_owned() };
    let read = |name: &str| -> Option<String> { fs::read_to_string(folder.join(name)).ok() };
    let mut loaded = false;
    for (text, command) in [
        (read("rules.v4"), vec![tool("iptables-restore"), "-w".to_owned()]),
        (read("rules.v6"), vec![tool("ip6tables-restore"), "-w".to_owned()]),
        (case.generate.as_ref().map(generate::Rules::text), vec![tool("iptables-restore"), "-w".to_owned()]),
        (read("rules.nft"), vec!["nft".to_owned(), "-f".to_owned(), "-".to_owned()]),
    ] {
        if let Some(text) = text {
            run_with_input(&command.iter().map(String::as_str).collect::<Vec<_>>(), &text)?;
            loaded = true;
        }
    }
    ensure!(loaded, "{} holds no rules", folder.display());
    Ok(())
}

/// All rules of the thread's netns, to the letter but for counters and what packets put into sets.
pub fn rules() -> Result<String> {
    let mut text = without_dynamic_elements(&run(&["nft", "-s", "list", "ruleset"])?);
    for (names, save) in [
        ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
        ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
    ] {
        if fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty()) {
            for line in run(&[save])?.lines().filter(|line| !line.starts_with('#')) {
                // A chain's counters go on.
                text += line.split(" [").next().unwrap_or(line);
                text += "\n";
            }
        }
    }
    Ok(text)
}

fn without_dynamic_elements(text: &str) -> String {
    let (mut kept, mut is_dynamic, mut inside) = (String::new(), false, false);
    for line in text.split_inclusive('\n') {
        let bare = line.trim();
        if bare.starts_with("set ") || bare.starts_with("map ") {
            is_dynamic = false;
        }
        is_dynamic |= bare.starts_with("flags ") && bare.contains("dynamic");
        inside |= is_dynamic && bare.starts_with("elements = {");
        if !inside {
            kept += line;
        }
        inside &= !bare.ends_with('}');
    }
    kept
}

fn judge(
    case: &Case,
    scene: &Scene,
    piece: &Piece,
    answer: &Answer,
    row: &mut Row,
    options: &Options,
) -> Result<()> {
    let wrong = &mut row.wrong;
    if let (Some(most), Some(took)) = (case.within, answer.took()) {
        let most = Duration::from_secs(u64::from(most * options.slowness));
        if took > most {
            wrong.push(format!("it took {:.1} s beyond the window", took.as_secs_f64()));
        }
    }
    match answer {
        Answer::Advised { now, undo, .. } => {
            let harm = tried(scene, piece, now, undo)?;
            if let Asker::Hand = options.asker {
                // Then the case is judged, not the answer.
                match case.right {
                    Right::Advised => wrong.extend(harm),
                    Right::Refused if harm.is_empty() && !case.unseen => {
                        wrong.push("exempt by hand, nothing is lost".to_owned());
                    }
                    _ => {}
                }
                return Ok(());
            }
            if matches!(case.right, Right::Refused | Right::Nothing) {
                wrong.push("it is advised".to_owned());
            }
            wrong.extend(harm);
        }
        Answer::Refused { reasons, .. } => {
            if matches!(case.right, Right::Advised | Right::Nothing) {
                wrong.extend(reasons.iter().map(|reason| format!("refused: {reason}")));
            } else if let Some(name) = &case.names
                && !reasons.iter().any(|reason| reason.contains(name))
            {
                wrong.push(format!("no reason names {name}: {}", reasons.join("; ")));
            }
        }
        Answer::Nothing { said, .. } => {
            if case.right != Right::Nothing {
                wrong.push(format!("neither commands nor a reason: {said}"));
            }
        }
    }
    Ok(())
}

/// Does what is advised and undoes it; returns what is wrong with that.
fn tried(scene: &Scene, piece: &Piece, now: &[String], undo: &[String]) -> Result<Vec<String>> {
    let (place, host) = (&scene.place, scene.place.host());
    let mut wrong = Vec::new();
    let shell = |what: &str, lines: &[String], wrong: &mut Vec<String>| {
        for line in lines {
            if let Err(error) = host.run(|| run(&["sh", "-c", line])) {
                wrong.push(format!("{what}: {error:#}"));
            }
        }
    };
    shell("now", now, &mut wrong);
    host.run(lab::flush)?;
    let then = measure(place, &scene.flows, PATIENCE)?;
    // Before they are read, what is under way has to arrive.
    let left = host.run(lab::entries)?;
    for ((flow, before), after) in scene.flows.iter().zip(&scene.today).zip(&then) {
        if after.answer != before.answer {
            let words = |seen: &Seen| seen.answer.clone().unwrap_or_else(|| "no answer".to_owned());
            wrong.push(format!("after the commands, {flow}: {} (before: {})", words(after), words(before)));
        }
        let Some(from) = after.from.filter(|_| flow.is_of(piece, place.own())) else { continue };
        for entry in left.iter().filter(|entry| flow.has(entry, from)) {
            wrong
                .push(format!("after the commands, {flow} has an entry from {} to {}", entry.src, entry.dst));
        }
    }
    for (flow, seen) in scene.refused.iter().zip(measure(place, &scene.refused, REFUSED_PATIENCE)?) {
        if let Some(answer) = seen.answer {
            wrong.push(format!("after the commands, {flow} passes, which was refused: {answer}"));
        }
    }
    shell("undo", undo, &mut wrong);
    let rules = host.run(rules)?;
    if rules != scene.rules {
        wrong.push(format!("after undo the rules are others:\n{}", difference(&scene.rules, &rules)));
    }
    if !wrong.is_empty() {
        wrong.extend(now.iter().map(|line| format!("now: {line}")));
    }
    if rules != scene.rules {
        wrong.extend(undo.iter().map(|line| format!("undo: {line}")));
    }
    Ok(wrong)
}

/// Lines that only one of them has.
pub fn difference(before: &str, after: &str) -> String {
    let only = |these: &str, those: &str, sign: char| -> Vec<String> {
        let mut rest: Vec<&str> = those.lines().collect();
        let mut found = Vec::new();
        for line in these.lines() {
            match rest.iter().position(|other| *other == line) {
                Some(at) => drop(rest.remove(at)),
                None => found.push(format!("{sign} {}", line.trim())),
            }
        }
        found
    };
    let mut lines = only(before, after, '-');
    lines.extend(only(after, before, '+'));
    if lines.is_empty() {
        lines.push("the same lines in another order".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_packets_put_into_sets_is_not_compared() {
        let text = "table inet f {\n\tset s {\n\t\ttype ipv4_addr\n\t\tflags dynamic\n\t\telements = { 192.0.2.2,\n\t\t\t     \
                    192.0.2.3 }\n\t}\n\tset t {\n\t\ttype ipv4_addr\n\t\telements = { 192.0.2.4 }\n\t}\n}\n";
        let kept = without_dynamic_elements(text);
        assert!(!kept.contains("192.0.2.2") && !kept.contains("192.0.2.3"), "{kept}");
        assert!(kept.contains("192.0.2.4") && kept.matches('}').count() == 4, "{kept}");
    }

    #[test]
    fn every_case_is_well_described() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let text = fs::read_to_string(folder.join("cases.json")).unwrap();
        let description: Description = serde_json::from_str(&text).unwrap();
        for (name, case) in &description.cases {
            assert!(description.places.contains_key(&case.place), "{name}: {}", case.place);
            assert!(folder.join(name).join("case.md").is_file(), "{name} has no case.md");
            parse::<Flow>(&case.flows).expect(name);
            parse::<Flow>(&case.refused).expect(name);
            assert!(!parse::<Piece>(&case.asked).expect(name).is_empty(), "{name} asks nothing");
        }
    }

    #[test]
    fn differences_are_lines_of_one_side() {
        assert_eq!(difference("a\nb\n", "a\nc\nb\n"), "+ c");
        assert_eq!(difference("a\nb\n", "b\n"), "- a");
    }
}
