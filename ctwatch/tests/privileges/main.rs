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

/// However lines are broken.
fn words_of(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// With as many filters as a process may have: one more fails (seccomp_attach_filter, kernel/seccomp.c: ENOMEM).
fn full_of_filters(line: &[&str]) -> Command {
    use std::os::unix::process::CommandExt as _;
    let allow = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(line).stdin(Stdio::null());
    let programs: Vec<Vec<libc::sock_filter>> = [4096, 256, 16].map(|length| vec![allow; length]).into();
    let fill = move || {
        for program in &programs {
            let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
            // SAFETY: the program lives, and the kernel copies it.
            let add = || unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter)
            };
            while add() == 0 {}
        }
        Ok(())
    };
    // SAFETY: between fork and exec this makes system calls only.
    unsafe { command.pre_exec(fill) };
    command
}

#[test]
fn a_confinement_that_fails_is_said_once_and_by_check() {
    let folder = folder();
    let path = folder.path().join("a.ctw");
    drop(synthetic::write(&path, 10));
    let file = path.to_str().unwrap();
    for line in [&["report", file][..], &["table"], &["check"]] {
        let said = |mut command: Command| {
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{line:?}: {}", text(&output.stderr));
            (text(&output.stdout), text(&output.stderr))
        };
        let mut plain = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
        plain.args(line).stdin(Stdio::null());
        let (_, errors) = said(plain);
        assert!(!errors.contains("not confined"), "{line:?}: {errors}");
        let (out, errors) = said(full_of_filters(line));
        assert_eq!(errors.matches("not confined: system calls").count(), 1, "{line:?}: {errors}");
        assert!(line != ["check"] || words_of(&out).contains("fails: seccomp"), "{out}");
    }
}

/// A folder in which nothing can be made any more; what root may do nevertheless (CAP_DAC_OVERRIDE) is given up.
#[test]
fn a_file_that_cannot_be_rotated_goes_on_with_every_tick() {
    use nix::sys::signal::{Signal, kill};
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    let path = folder.path().join("a.ctw");
    let mode = |mode| {
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(["record", "--backend", "counters", "--interval", "200ms", "-o"]).arg(&path);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let signal = |signal| kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < until, "nothing is recorded");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(600));
    mode(0o555);
    signal(Signal::SIGHUP);
    std::thread::sleep(Duration::from_millis(800));
    mode(0o755);
    signal(Signal::SIGTERM);
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("the file goes on, as no other could be begun").count(), 1, "{said}");
    let recording = ctwatch::record::Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let runs = recording.runs().unwrap();
    assert_eq!(runs.len(), 1);
    let notices = recording.notices(runs[0].id).unwrap();
    assert_eq!(notices.iter().filter(|one| one.code.raw() == "not_rotated").count(), 1);
    let ticks = recording.ticks(&runs[0], i64::MIN..=i64::MAX).unwrap().count();
    assert!(ticks >= 5, "{ticks}");
    let names = std::fs::read_dir(folder.path()).unwrap().map(|one| one.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["a.ctw"]);
}

/// A cgroup that limits threads, as TasksMax= does; it goes when this does.
struct Tasks(std::path::PathBuf);

impl Tasks {
    /// None where no cgroup can be made.
    fn new() -> Option<Self> {
        let name = format!("ctwatch-test-{}", std::process::id());
        ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].iter().find_map(|root| {
            let made = Self(Path::new(root).join(&name));
            std::fs::create_dir(&made.0).ok()?;
            made.0.join("pids.max").exists().then_some(made)
        })
    }

    fn set(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap();
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_limit_of_threads_that_is_reached_for_a_while_costs_no_tick_and_is_said() {
    use nix::sys::signal::{Signal, kill};
    let Some(tasks) = Tasks::new() else {
        println!("no cgroup can be made here: nothing was tested");
        return;
    };
    let folder = folder();
    let path = folder.path().join("a.ctw");
    let ran = folder.path().join("ran");
    let hook = format!("touch {}", ran.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(["record", "--backend", "counters", "--interval", "200ms", "-o"]).arg(&path);
    command.args(["--when", "fill>=0%", "--exec", &hook]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    tasks.set("cgroup.procs", &pid);
    let until = Instant::now() + Duration::from_secs(20);
    while !path.exists() || !ran.exists() {
        assert!(Instant::now() < until, "nothing is recorded");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(600));
    tasks.set("pids.max", "1");
    std::thread::sleep(Duration::from_millis(1500));
    tasks.set("pids.max", "max");
    std::thread::sleep(Duration::from_millis(800));
    kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(said.matches("no thread can be started now").count(), 1, "{said}");
    let recording = ctwatch::record::Recording::open(&path).unwrap();
    recording.verify().unwrap();
    let runs = recording.runs().unwrap();
    let notices = recording.notices(runs[0].id).unwrap();
    assert_eq!(notices.iter().filter(|one| one.code.raw() == "too_few_threads").count(), 1);
    let ticks: Vec<i64> = recording
        .ticks(&runs[0], i64::MIN..=i64::MAX)
        .unwrap()
        .map(|one| one.unwrap().tick.interval_us)
        .collect();
    // The one after it has all of it.
    assert!(ticks.iter().any(|us| *us > 1_000_000) && ticks.len() > 5, "{ticks:?}");
}

#[test]
fn a_hook_ends_with_a_recorder_that_is_killed() {
    let folder = folder();
    let file = folder.path().join("pid");
    let hook = format!("sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000'", file.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctwatch"));
    command.args(["record", "-o", "a.ctw", "--backend", "counters", "--when", "fill>=0%", "--exec", &hook]);
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !file.exists() {
        assert!(Instant::now() < until, "no hook runs");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = std::fs::read_to_string(&file).unwrap();
    let lives = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    assert!(lives());
    end(child);
    while lives() {
        assert!(Instant::now() < until, "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
}
