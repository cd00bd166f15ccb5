//! What docs/privileges.md says: each command runs with exactly the capabilities of its row, says what it lacks without one of
//! them, and keeps no other in any of its threads. Needs root and a kernel with nf_conntrack.

#[path = "../record/synthetic.rs"]
#[expect(dead_code, reason = "other tests make more of it")]
mod synthetic;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Of the table of commands.
const LISTS: &[&str] = &["net_admin", "sys_admin", "sys_ptrace"];
const WATCHES: &[&str] = &["net_admin", "sys_admin", "sys_ptrace", "syslog", "dac_read_search"];
const RUNS: &[&str] = &["net_admin", "sys_admin", "sys_ptrace", "syslog", "dac_read_search", "net_raw"];
/// The numbers of include/uapi/linux/capability.h.
const NUMBERS: [(&str, u32); 7] = [
    ("dac_read_search", 2),
    ("net_admin", 12),
    ("net_raw", 13),
    ("sys_ptrace", 19),
    ("sys_admin", 21),
    ("sys_resource", 24),
    ("syslog", 34),
];

/// As root, with these capabilities and no others to be had.
fn with(capabilities: &[&str], line: &[&str]) -> Command {
    let set: String = capabilities.iter().map(|one| format!(",+{one}")).collect();
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps", "-all", "--bounding-set", &format!("-all{set}")]);
    command.arg(env!("CARGO_BIN_EXE_ctwatch")).args(line).stdin(Stdio::null());
    command
}

/// As a user who has none.
fn as_nobody(line: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args("--reuid 65534 --regid 65534 --clear-groups --inh-caps -all --bounding-set -all".split(' '));
    command.arg(env!("CARGO_BIN_EXE_ctwatch")).args(line).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ends_well(what: &str, mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{what}: {}", text(&output.stderr));
    output
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), mode).unwrap();
    folder
}

fn readable_by_all(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(path, mode).unwrap();
}

/// The lines of /proc/PID/status that matter, of each thread.
fn threads(child: &Child) -> Vec<BTreeMap<String, String>> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).ok();
    let lines = |status: String| -> BTreeMap<String, String> {
        let line = |line: &str| line.split_once(':').map(|(name, value)| (name.into(), value.trim().into()));
        status.lines().filter_map(line).collect()
    };
    // A thread may end meanwhile.
    tasks.flatten().filter_map(status).map(lines).collect()
}

/// Waits until filters are in force, and then for the threads to come; all must have exactly these capabilities.
fn keeps_only(what: &str, child: &mut Child, capabilities: &[&str], at_least: usize) {
    let number = |name: &&str| NUMBERS.iter().find(|(known, _)| known == name).unwrap().1;
    let wanted = capabilities.iter().fold(0_u64, |bits, name| bits | 1 << number(name));
    let until = Instant::now() + Duration::from_secs(30);
    let all = loop {
        assert!(child.try_wait().unwrap().is_none(), "{what}: it ended");
        let all = threads(child);
        if all.len() >= at_least && all.iter().all(|one| one["Seccomp"] == "2") {
            break all;
        }
        assert!(Instant::now() < until, "{what}: {all:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    for thread in all {
        let name = &thread["Name"];
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let has = u64::from_str_radix(&thread[set], 16).unwrap();
            assert_eq!(has, wanted, "{what}, {name}, {set}: {has:x}, not {wanted:x}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(thread[set], "0000000000000000", "{what}, {name}, {set}");
        }
        assert_eq!(thread["NoNewPrivs"], "1", "{what}, {name}");
    }
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn readers(path: &str) -> [(&'static str, Vec<String>); 4] {
    let line = |words: &str| words.split(' ').map(|word| word.replace("FILE", path)).collect();
    [
        ("report", line("report FILE")),
        ("replay", line("replay FILE --speed max")),
        ("export", line("export FILE --to ndjson --anonymize")),
        ("advise --recording", line("advise --recording FILE")),
    ]
}

fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

#[test]
fn readers_need_no_capability_and_no_user() {
    let folder = folder();
    let path = folder.path().join("a.ctw");
    let line = ["record", "-o", path.to_str().unwrap(), "--backend", "tracepoint", "--duration", "4s"];
    ends_well("record", with(RUNS, &line));
    readable_by_all(&path);
    for (name, line) in readers(path.to_str().unwrap()) {
        let as_root = ends_well(name, with(&[], &words(&line)));
        let nobody = ends_well(name, as_nobody(&words(&line)));
        assert!(!as_root.stdout.is_empty(), "{name}");
        if name == "replay" {
            assert_eq!(text(&as_root.stdout), text(&nobody.stdout));
        }
    }
    // New files, in the folder that they are for.
    for (name, line) in [("report", "report FILE -o OUT"), ("export", "export FILE --to csv -o OUT")] {
        let out = folder.path().join(name);
        let line: Vec<String> = line
            .split(' ')
            .map(|word| word.replace("FILE", path.to_str().unwrap()).replace("OUT", out.to_str().unwrap()))
            .collect();
        ends_well(name, with(&[], &words(&line)));
        assert!(out.exists(), "{name}");
    }
}

#[test]
fn no_thread_of_a_reader_keeps_anything() {
    let folder = folder();
    let path = folder.path().join("a.ctw");
    drop(synthetic::write(&path, 3000));
    for (name, line) in readers(path.to_str().unwrap()) {
        if name.starts_with("advise") {
            // It is over before anybody looks; it calls what the others call.
            continue;
        }
        // Nobody takes what they write: they wait, with all their threads.
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        let mut child = command.args(&line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        keeps_only(name, &mut child, &[], 1);
        end(child);
    }
}

#[test]
fn each_live_command_runs_with_exactly_the_capabilities_of_its_row() {
    let folder = folder();
    let output = folder.path().join("a.ctw");
    let output = output.to_str().unwrap();
    let record = ["record", "-o", output, "--backend", "tracepoint", "--duration", "2s"];
    let drops = ["drops", "--backend", "tracepoint", "--duration", "1s"];
    let counters = ["drops", "--backend", "counters", "--duration", "1s"];
    for (line, rights) in [
        (&["table"][..], LISTS),
        (&counters, LISTS),
        (&drops, WATCHES),
        (&["check"], WATCHES),
        (&["advise", "--window", "3s"], RUNS),
        (&record, RUNS),
    ] {
        ends_well(&line.join(" "), with(rights, line));
        // With all there is, as sudo starts it.
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        command.args(line).stdin(Stdio::null());
        ends_well(&line.join(" "), command);
    }
}

#[test]
fn what_is_missing_is_said_as_documented() {
    let drops: &[&str] = &["drops", "--backend", "tracepoint", "--duration", "1s"];
    let any: &[&str] = &["drops", "--duration", "1s"];
    for (line, rights, missing, code, word) in [
        (&["table"][..], LISTS, "net_admin", 3, "CAP_NET_ADMIN"),
        (drops, WATCHES, "sys_admin", 3, "CAP_SYS_ADMIN; docker, podman: --cap-add SYS_ADMIN"),
        (drops, WATCHES, "net_admin", 3, "missing CAP_NET_ADMIN"),
        (drops, WATCHES, "syslog", 3, "only zeroes: CAP_SYSLOG is missing"),
    ] {
        let rest: Vec<&str> = rights.iter().copied().filter(|one| *one != missing).collect();
        let output = with(&rest, line).output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line:?} without {missing}: {said}");
        assert!(said.contains(word), "{line:?} without {missing}: {said}");
    }
    // It goes on with less, and says so.
    for (line, rights, missing, word) in [
        (&["table"][..], LISTS, "sys_admin", "CAP_SYS_ADMIN"),
        (&["check"], WATCHES, "sys_ptrace", "CAP_SYS_PTRACE"),
        (&["check"], WATCHES, "sys_admin", "CAP_PERFMON, CAP_SYS_ADMIN"),
        // A backend that was not asked for by name gives way to the kernel's counters.
        (any, WATCHES, "sys_admin", "CAP_PERFMON, CAP_SYS_ADMIN; totals only"),
        (any, WATCHES, "net_admin", "missing CAP_NET_ADMIN; totals only"),
        (any, WATCHES, "syslog", "CAP_SYSLOG is missing; totals only"),
    ] {
        let rest: Vec<&str> = rights.iter().copied().filter(|one| *one != missing).collect();
        let output = ends_well(&format!("{line:?} without {missing}"), with(&rest, line));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(said.contains(word), "{line:?} without {missing}: {said}");
    }
}

#[test]
fn no_thread_of_a_live_command_keeps_more() {
    let folder = folder();
    let path = folder.path().join("a.ctw");
    let output = path.to_str().unwrap();
    for (line, rights) in [
        (&["drops", "--backend", "tracepoint", "--by", "process"][..], WATCHES),
        (&["table", "--watch", "1s"], LISTS),
        (&["record", "-o", output, "--backend", "tracepoint"], RUNS),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        command.args(line).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // Three of them: the loop's, and those that keep the counters and write.
        keeps_only(&line.join(" "), &mut child, rights, if line[0] == "table" { 1 } else { 3 });
        end(child);
    }
}

#[test]
fn a_hook_has_what_the_recorder_has_and_no_more() {
    let folder = folder();
    let status = folder.path().join("status");
    let hook =
        format!("sh -c 'cat /proc/self/status > {}; unshare -m true || echo refused >&2'", status.display());
    let line = [
        "record",
        "-o",
        "a.ctw",
        "--backend",
        "tracepoint",
        "--duration",
        "4s",
        "--when",
        "fill>=0%",
        "--exec",
        &hook,
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(line).current_dir(folder.path()).stdin(Stdio::null());
    let output = ends_well("a recorder with a hook", command);
    let said = text(&output.stderr);
    let status =
        std::fs::read_to_string(&status).unwrap_or_else(|error| panic!("no hook ran ({error}): {said}"));
    let line =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    let has = u64::from_str_radix(&line("CapEff:"), 16).unwrap();
    let wanted = RUNS
        .iter()
        .fold(0_u64, |bits, name| bits | 1 << NUMBERS.iter().find(|(known, _)| known == name).unwrap().1);
    assert_eq!(has, wanted, "{has:x}");
    assert!(said.contains("refused"), "{said}");
}
