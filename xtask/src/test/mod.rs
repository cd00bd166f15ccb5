//! Everything that has to hold, in one run: format, lints, unit tests, docs, the eBPF object, real kernels.
//! A failed stage never stops the others, and none of them may count as passed without having run.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ebpf::{self, Check};
use crate::progress::{self, Steps};
use crate::vm::{GuestFile, Series, Status, Vm};
use crate::{apt, browser, deny, dist, sh, verify, workspace};
use summary::summarize;

mod count;
mod stream;
mod summary;

pub use count::Count;
pub use stream::{Kept, Prefixed};

/// Long enough for the slowest kernel under emulation on a busy machine.
const VM_LIMIT: Duration = Duration::from_secs(3600);

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Run only this stage (may be repeated)
    #[arg(long, value_name = "STAGE", value_parser = parse_stage)]
    only: Vec<Only>,
    /// In the guests, run only scenarios whose name contains this, or one of these: a,b
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// How many busy guests run at once; each has two CPUs, and takes up to 1 GB. With three, virtual CPUs wait so long for
    /// one of two real ones that scenarios in a storm may fail
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Fmt,
    Clippy,
    Unit,
    Docs,
    Browser,
    Ebpf,
    Dist,
    Verify,
    Guest(Series),
    /// Scenarios that mostly wait, in a guest of their own beside the others.
    Waiting(Series),
    Native,
    Deny,
}

/// What `--only` accepts: a stage, or all guests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Only {
    Stage(Stage),
    Guests,
}

const STAGES: [Stage; 17] = [
    Stage::Fmt,
    Stage::Clippy,
    Stage::Unit,
    Stage::Docs,
    Stage::Browser,
    Stage::Ebpf,
    Stage::Dist,
    Stage::Verify,
    Stage::Guest(Series::V5_10),
    Stage::Guest(Series::V6_1),
    Stage::Guest(Series::V6_12),
    Stage::Guest(Series::V7),
    Stage::Guest(Series::NoProcfs),
    Stage::Waiting(Series::V5_10),
    Stage::Waiting(Series::V6_12),
    Stage::Native,
    Stage::Deny,
];

impl Stage {
    /// The guest it runs in.
    fn series(self) -> Option<Series> {
        match self {
            Stage::Guest(series) | Stage::Waiting(series) => Some(series),
            _ => None,
        }
    }

    /// Whether it needs the static binaries alone, and may run beside others of its kind.
    fn runs_ctwatch(self) -> bool {
        self.series().is_some() || self == Stage::Native
    }

    /// Whether it runs when this is asked for: a kernel's guests belong together.
    fn is_asked_for_by(self, only: Only) -> bool {
        match only {
            Only::Guests => self.series().is_some(),
            Only::Stage(Stage::Guest(series)) => self.series() == Some(series),
            Only::Stage(stage) => self == stage,
        }
    }

    /// Which of its kernel's scenarios run in it: all, where there is no second guest.
    fn lane(self) -> Option<&'static str> {
        match self {
            Stage::Waiting(_) => Some("waiting"),
            Stage::Guest(series) if STAGES.contains(&Stage::Waiting(series)) => Some("busy"),
            _ => None,
        }
    }

    fn name(self) -> String {
        match self {
            Stage::Fmt => "fmt".to_owned(),
            Stage::Clippy => "clippy".to_owned(),
            Stage::Unit => "unit".to_owned(),
            Stage::Docs => "docs".to_owned(),
            Stage::Browser => "browser".to_owned(),
            Stage::Ebpf => "ebpf".to_owned(),
            Stage::Dist => "dist".to_owned(),
            Stage::Verify => "verify".to_owned(),
            Stage::Guest(series) => format!("vm-{series}"),
            Stage::Waiting(series) => format!("vm-{series}-waiting"),
            Stage::Native => "native".to_owned(),
            Stage::Deny => "deny".to_owned(),
        }
    }
}

fn parse_stage(text: &str) -> Result<Only, String> {
    if text == "vm" {
        return Ok(Only::Guests);
    }
    STAGES.into_iter().find(|stage| stage.name() == text).map(Only::Stage).ok_or_else(|| {
        let names: Vec<String> = STAGES.into_iter().map(Stage::name).collect();
        format!("the stages are {}, and vm for all guests", names.join(", "))
    })
}

/// Which guests have the most to do.
const LONGEST_FIRST: [Series; 5] = [Series::V6_12, Series::V7, Series::V5_10, Series::V6_1, Series::NoProcfs];

/// What became of a stage.
struct Line {
    stage: Stage,
    count: Count,
    took: Duration,
}

/// Runs `cargo xtask test`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let began = Instant::now();
    let wanted: Vec<Stage> = STAGES
        .into_iter()
        .filter(|stage| args.only.is_empty() || args.only.iter().any(|only| stage.is_asked_for_by(*only)))
        .collect();
    let (beside, host): (Vec<Stage>, Vec<Stage>) = wanted.iter().partition(|stage| stage.runs_ctwatch());
    let guests: Vec<Series> = beside.iter().filter_map(|stage| stage.series()).collect();
    // What the guests need comes meanwhile.
    thread::spawn(move || fetch_ahead(&guests));
    let mut lines = run_stages(&host, &beside, args, &Steps::of(wanted.len()));
    lines.sort_by_key(|line| wanted.iter().position(|stage| *stage == line.stage));
    let held = summarize(&lines, began.elapsed());
    let idle = |line: &Line| line.stage.series().is_some() && line.count.ran.is_empty();
    if args.scenario.is_some() && held && lines.iter().all(idle) {
        bail!("no scenario ran");
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fills the cache; what goes wrong here goes wrong again, and is told, where it is needed.
fn fetch_ahead(guests: &[Series]) {
    for series in guests {
        if let Err(error) = Vm::new(*series).fetch_ahead() {
            progress::say(&format!("{error:#}"));
        }
    }
}

fn run_stage(
    stage: Stage,
    args: &Args,
    steps: &Steps,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Line {
    let started = Instant::now();
    let _step = steps.begin(&stage.name());
    let result = match stage {
        Stage::Fmt => cargo(&["fmt", "--all", "--check"], &[]),
        Stage::Clippy => cargo(
            &["clippy", "--workspace", "--exclude", "ctwatch-ebpf", "--all-targets", "--", "-D", "warnings"],
            &[],
        ),
        Stage::Unit => cargo_test(),
        Stage::Docs => cargo(
            &["doc", "--no-deps", "--workspace", "--exclude", "ctwatch-ebpf"],
            &[("RUSTDOCFLAGS", "-D warnings")],
        ),
        Stage::Browser => browser::open().map(|()| Count::one(true)),
        Stage::Ebpf => ebpf_object(),
        Stage::Dist => dist::both().map(|()| Count::one(true)),
        Stage::Verify => dist::ctwatch().and_then(verify::verify).map(Count::one),
        Stage::Guest(series) | Stage::Waiting(series) => {
            scenarios(series, stage.lane(), args.scenario.as_deref(), out, err)
        }
        Stage::Native => native(),
        Stage::Deny => deny::check().map(Count::one),
    };
    let count = result.unwrap_or_else(|error| {
        progress::say(&format!("{error:#}"));
        Count::one(false)
    });
    Line { stage, count, took: started.elapsed() }
}

/// The host's stages one after the other; beside them, as soon as the static binaries are there, one of those that run
/// ctwatch, and `--jobs` of them at a time when the host has nothing else to do. Guests that mostly wait run one after the other
/// beside all of these.
fn run_stages(host: &[Stage], beside: &[Stage], args: &Args, steps: &Steps) -> Vec<Line> {
    let (waiting, mut order): (Vec<Stage>, Vec<Stage>) =
        beside.iter().partition(|stage| args.jobs > 1 && matches!(stage, Stage::Waiting(_)));
    let busy = order.len();
    // The longest first, or it runs alone at the end. The shortest is no guest.
    order.sort_by_key(|stage| {
        LONGEST_FIRST.iter().position(|series| stage.series() == Some(*series)).unwrap_or(usize::MAX)
    });
    let queue = Mutex::new(order.into_iter());
    let waiting = Mutex::new(waiting.into_iter());
    let done = Mutex::new(Vec::new());
    let work_through = |queue: &Mutex<std::vec::IntoIter<Stage>>| {
        loop {
            let next = queue.lock().expect("no thread panics with the lock").next();
            let Some(stage) = next else { return };
            let name = stage.name();
            let mut out = Prefixed::new(&name, io::stdout());
            let mut err = Prefixed::new(&name, io::stderr());
            let line = run_stage(stage, args, steps, &mut out, &mut err);
            done.lock().expect("no thread panics with the lock").push(line);
        }
    };
    let work = || work_through(&queue);
    let jobs = args.jobs.min(busy);
    let early = jobs.min(1) * usize::from(args.jobs > 1 || host.is_empty());
    let mut lines = thread::scope(|scope| {
        let on_host = scope.spawn(|| {
            if early != 0 {
                sh::give_way();
            }
            let run = |stage: &Stage| run_stage(*stage, args, steps, &mut io::stdout(), &mut io::stderr());
            host.iter().map(run).collect::<Vec<Line>>()
        });
        if early != 0 || host.contains(&Stage::Dist) {
            // The last minutes of the static binaries take one CPU alone. What is told of a failure here is told again by
            // the stage, which tries it once more.
            scope.spawn(|| {
                let _ = dist::both();
                scope.spawn(|| work_through(&waiting));
                (0..early).for_each(|_| work());
            });
        } else {
            scope.spawn(|| work_through(&waiting));
        }
        let lines = on_host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        for _ in early..jobs {
            scope.spawn(work);
        }
        lines
    });
    lines.extend(done.into_inner().expect("no thread panics with the lock"));
    lines
}

fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Count> {
    let mut command = Command::new("cargo");
    command.args(arguments).envs(variables.iter().copied()).current_dir(workspace::root());
    let status = sh::die_with_parent(&mut command).status().context("starting cargo")?;
    Ok(Count::one(status.success()))
}

fn cargo_test() -> Result<Count> {
    if sh::is_root() {
        // Some load rules, in namespaces of their own.
        apt::install_on_host(&["nftables", "iproute2"], "the tests on the host")?;
    }
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace", "--exclude", "ctwatch-ebpf", "--no-fail-fast"]);
    command.current_dir(workspace::root()).stdout(Stdio::piped());
    sh::hears_sigint(&mut command);
    let mut child = sh::die_with_parent(&mut command).spawn().context("starting cargo test")?;
    let mut count = Count::default();
    for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines() {
        let line = line.context("reading what cargo test says")?;
        println!("{line}");
        count.add_test_result(&line);
    }
    let status = child.wait().context("waiting for cargo test")?;
    Ok(count.and_stage(status.success()))
}

fn ebpf_object() -> Result<Count> {
    match ebpf::check()? {
        Check::Identical => {
            println!("the committed eBPF object is what its sources give, byte for byte");
            Ok(Count { note: "byte for byte".to_owned(), ..Count::one(true) })
        }
        Check::OtherToolchain { recorded, here, prebuilt, .. } => {
            println!(
                "built with another toolchain, so the bytes may differ; the rebuilt object has to work instead"
            );
            println!("  recorded: {recorded}\n  here:     {here}");
            let ctwatch = dist::ctwatch_with(&prebuilt)?;
            let files = guest_files(ctwatch.clone())?;
            let loads = verify::verify(ctwatch)?;
            let scenario = ["ctwatch-tests", "guest", "--kernel", "6.12", "--only", "udp_loopback"];
            let works =
                run_vm(Series::V6_12, files, &scenario, &mut io::stdout(), &mut io::stderr())?.0.success();
            Ok(Count { note: "another toolchain: rebuilt and run".to_owned(), ..Count::one(loads && works) })
        }
    }
}

/// What a guest needs to run scenarios.
pub fn guest_files(ctwatch: std::path::PathBuf) -> Result<Vec<GuestFile>> {
    Ok(vec![
        GuestFile { host: ctwatch, guest: "/ctw/ctwatch".to_owned() },
        GuestFile { host: dist::tests()?, guest: "/ctw/ctwatch-tests".to_owned() },
        GuestFile { host: workspace::root().join("tests/guest"), guest: "/ctw".to_owned() },
        GuestFile { host: workspace::root().join("tests/cases"), guest: "/ctw/cases".to_owned() },
    ])
}

fn scenarios(
    series: Series,
    lane: Option<&str>,
    only: Option<&str>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<Count> {
    let kernel = series.to_string();
    let mut command = vec!["ctwatch-tests", "guest", "--kernel", &kernel];
    if let Some(lane) = lane {
        command.extend(["--lane", lane]);
    }
    if let Some(only) = only {
        command.extend(["--only", only]);
    }
    let (ctwatch, tests) = (dist::ctwatch()?, dist::tests()?);
    let list = sh::capture(Command::new(tests).args(&command[1..]).arg("--list"))?;
    if list.is_empty() {
        let note = "none of these is for this kernel; a full name runs on any".to_owned();
        return Ok(Count { note, ..Count::default() });
    }
    progress::say(&summary::scenarios(list.lines().count()));
    let (status, said) = run_vm(series, guest_files(ctwatch)?, &command, out, err)?;
    let mut count = Count::default();
    for line in said.lines() {
        count.add_scenario(line);
    }
    match status {
        Status::Died => count.note = "the guest died".to_owned(),
        Status::TimedOut => count.note = "time limit".to_owned(),
        Status::Exited(_) => {}
    }
    if status.success() && count.passed + count.failed + count.skipped == 0 {
        bail!("the guest ran no scenario");
    }
    Ok(count.and_stage(status.success()))
}

fn run_vm(
    series: Series,
    files: Vec<GuestFile>,
    command: &[&str],
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<(Status, String)> {
    let mut vm = Vm::new(series);
    vm.timeout = VM_LIMIT;
    vm.files = files;
    let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    let mut out = Kept::new(out);
    let status = vm.run(&command, &mut out, err)?;
    Ok((status, out.text()))
}

/// So many random rule sets are judged in each run, always the same: a fault that a change brings in is told from luck.
/// `cargo xtask rules` takes others.
const RULE_SETS: &str = "100";
pub const SEED: &str = "21";

/// On this very kernel, in network namespaces of its own: the tracepoint backend, and the judge of rule sets as people have them and
/// of random ones.
fn native() -> Result<Count> {
    if !sh::is_root() {
        println!("left out: a network namespace of its own and eBPF need root");
        return Ok(Count { skipped: 3, note: "needs root".to_owned(), ..Count::default() });
    }
    apt::install_on_host(&["nftables", "iproute2", "iptables"], "the native test")?;
    dist::ctwatch()?;
    let mut count = Count::default();
    // Guests may run beside it.
    let tasks: [(&str, &[&str]); 3] = [
        ("native", &["native"]),
        ("cases", &["cases", "--slowness", "3"]),
        ("rules", &["rules", "--count", RULE_SETS, "--seed", SEED]),
    ];
    for (name, arguments) in tasks {
        let said = on_host(arguments, None)?;
        if said.success {
            count.passed += 1;
        } else {
            count.failed += 1;
            count.failures.push(format!("ctwatch-tests {name}: {}", said.why()));
        }
    }
    Ok(count)
}

/// What a task on this host printed, and whether it ended well.
pub struct Said {
    pub lines: Vec<String>,
    pub success: bool,
    /// Its last words on stderr.
    last_error: String,
}

impl Said {
    /// What it found wrong, or why it couldn't go on.
    fn why(&self) -> String {
        let is_finding =
            |line: &&String| ["WRONG ", "COUNTEREXAMPLE "].iter().any(|start| line.starts_with(start));
        let found: Vec<&str> =
            self.lines.iter().filter(is_finding).chain([&self.last_error]).map(String::as_str).collect();
        found.join("; ")
    }
}

/// Runs a task of the scenarios' runner on this host, with its ctwatch first on PATH, or what is in the folder `before`.
pub fn on_host(arguments: &[&str], before: Option<&Path>) -> Result<Said> {
    let tests = dist::tests()?;
    let mut path = OsString::new();
    for folder in before.into_iter().chain(tests.parent()) {
        path.push(folder);
        path.push(":");
    }
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(&tests);
    command.args(arguments).env("PATH", path).current_dir(workspace::root());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = sh::die_with_parent(&mut command).spawn().context("starting the native test")?;
    let errors = child.stderr.take().expect("stderr is piped");
    let errors = thread::spawn(move || {
        let mut last = String::new();
        for line in BufReader::new(errors).lines().map_while(io::Result::ok) {
            eprintln!("{line}");
            last = line;
        }
        last
    });
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("stdout is piped")).lines() {
        let line = line.context("reading what the native test says")?;
        println!("{line}");
        lines.push(line);
    }
    let status = child.wait().context("waiting for the native test")?;
    let last_error = errors.join().expect("reading lines doesn't panic");
    Ok(Said { lines, success: status.success(), last_error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_go_by_their_names() {
        assert_eq!(parse_stage("vm-6.12"), Ok(Only::Stage(Stage::Guest(Series::V6_12))));
        assert_eq!(parse_stage("vm"), Ok(Only::Guests));
        let asked = |word| {
            let only = parse_stage(word).unwrap();
            STAGES
                .into_iter()
                .filter(|stage| stage.is_asked_for_by(only))
                .map(Stage::name)
                .collect::<Vec<_>>()
        };
        assert_eq!(asked("vm-6.12"), ["vm-6.12", "vm-6.12-waiting"]);
        assert_eq!(asked("vm-6.12-waiting"), ["vm-6.12-waiting"]);
        assert_eq!(asked("vm").len(), 7);
        assert!(parse_stage("nonsense").unwrap_err().contains("vm-5.10"));
    }
}
