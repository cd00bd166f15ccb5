//! Runs the scenarios inside a VM, the tracepoint backend on the host, and the cost table.
//! Arguments in, exit code out: everything else is in the library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ctwatch_tests::cases::{self, Asker, Options};
use ctwatch_tests::traffic::http;
use ctwatch_tests::{
    advice, bench, bench_record, census, difference, environments, lab, native, scenario, sys,
};

#[derive(Parser)]
#[command(name = "ctwatch-tests", about = "End-to-end tests of ctwatch on the running kernel")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the scenarios; only in a throw-away VM, for they fill tables, lower limits and unload modules
    Guest {
        /// The kernel this VM was asked for: 5.10, 6.1, 6.12 or 7
        #[arg(long)]
        kernel: String,
        /// Only scenarios whose name contains this, or one of these: a,b; a full name also on a kernel it isn't for
        #[arg(long, default_value = "")]
        only: String,
        /// Only those that keep the CPUs busy, or only those that mostly wait
        #[arg(long)]
        lane: Option<scenario::Lane>,
        /// Print the names of those that would run, and end
        #[arg(long)]
        list: bool,
        /// Run exactly this scenario in this process
        #[arg(long, hide = true)]
        one: Option<String>,
    },
    /// record, drops and advise at work under changing load, and whether they grow; only in a throw-away VM
    Soak {
        #[arg(long, default_value_t = 60)]
        minutes: u64,
    },
    /// Run each command in containers, pods and services as people have them, and print the rows of docs/troubleshooting.md; only
    /// in a throw-away VM
    Environments {
        /// Only those whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
    /// Run the tracepoint backend on this host in a private netns; touches no sysctl
    Native,
    /// Ask about the rule sets of tests/cases on this host in private netns, and try the answers with real flows
    Cases {
        /// Those whose names begin so [default: all]
        names: Vec<String>,
        /// Where they are
        #[arg(long, default_value = "tests/cases")]
        folder: PathBuf,
        /// Ask the library rather than the program
        #[arg(long)]
        library: bool,
        /// Ask nobody, and try whether the right answers are right
        #[arg(long, conflicts_with = "library")]
        by_hand: bool,
        /// How many at once
        #[arg(long, default_value_t = 6)]
        jobs: usize,
        /// How many times slower than real hardware this machine may be
        #[arg(long, default_value_t = 1)]
        slowness: u32,
        /// Rules that the tools on PATH don't take are told, and no failure: these are other versions than Debian 12's
        #[arg(long)]
        other_tools: bool,
    },
    /// Try what the judge says of random rule sets with flows on this host in private netns
    Rules {
        /// How many
        #[arg(long, default_value_t = 100)]
        count: u64,
        /// Which [default: others each time]
        #[arg(long)]
        seed: Option<u64>,
        /// Only the one with this number, made as small as it gets
        #[arg(long, requires = "seed")]
        only: Option<u64>,
        /// Tell which refusals were harmless
        #[arg(long)]
        harmless: bool,
        /// How many at once
        #[arg(long, default_value_t = 6)]
        jobs: usize,
    },
    /// Send HTTP requests at a fixed rate, whatever becomes of them, and print what did as JSON
    Load {
        /// http://ADDRESS[:PORT]/PATH; on IPv4 loopback each connection has a source of its own
        #[arg(long, default_value = "http://127.0.0.1/")]
        url: String,
        /// Requests a second
        #[arg(long)]
        rate: f64,
        /// How long
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
        /// Seconds until a request has failed
        #[arg(long, default_value_t = 3.0)]
        timeout: f64,
        /// Requests a connection carries
        #[arg(long, default_value_t = 1)]
        per_connection: u32,
    },
    /// Print the instruction table; only in a VM with -icount shift=0,sleep=off -smp 1
    BenchGuest {
        /// Measure once in this process
        #[arg(long, hide = true)]
        measure: bool,
    },
    /// Fill a table with a million entries and measure who lists it how fast; only in a throw-away VM
    BenchCensus {
        /// On this host in a private netns, with as many entries as its limit allows; touches no sysctl
        #[arg(long)]
        native: bool,
    },
    /// Record 24 hours of a busy host, as fast as it goes, and measure the file and the recorder
    BenchRecord {
        /// Where to put the file
        #[arg(long, default_value = "/var/tmp")]
        folder: PathBuf,
    },
    /// The story's host asks what would help; the answers go to /out; only in a throw-away VM
    AskAdvice,
    /// The same host does what it was told, under the same load; only in a throw-away VM
    ApplyAdvice(advice::Apply),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Guest { kernel, only, lane, list, one } => guest(&kernel, &only, lane, list, one.as_deref()),
        Task::Soak { minutes } => scenario::soak::run(minutes).map(|held| u8::from(!held)),
        Task::Environments { only } => environments::table(&only).map(|rows| {
            print!("{rows}");
            0
        }),
        Task::Native => native::run().map(|()| 0),
        Task::Cases { names, folder, library, by_hand, jobs, slowness, other_tools } => {
            let asker = match (library, by_hand) {
                (true, _) => Ok(Asker::Library),
                (_, true) => Ok(Asker::Hand),
                _ => beside("ctwatch").map(Asker::Program),
            };
            asker.and_then(|asker| cases(&names, &folder, asker, jobs, slowness, other_tools))
        }
        Task::Rules { count, seed, only, harmless, jobs } => rules(count, seed, only, harmless, jobs),
        Task::Load { url, rate, seconds, timeout, per_connection } => {
            load(&url, rate, seconds, timeout, per_connection).map(|()| 0)
        }
        Task::BenchGuest { measure: false } => bench::run().map(|()| 0),
        Task::BenchGuest { measure: true } => bench::measure().map(|()| 0),
        Task::BenchCensus { native: false } => census::bench().map(|()| 0),
        Task::BenchCensus { native: true } => census::bench_native().map(|()| 0),
        Task::BenchRecord { folder } => bench_record::run(&folder).map(|reached| u8::from(!reached)),
        Task::AskAdvice => advice::ask().map(|()| 0),
        Task::ApplyAdvice(what) => advice::apply(&what).map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cases(
    names: &[String],
    folder: &Path,
    asker: Asker,
    jobs: usize,
    slowness: u32,
    other_tools: bool,
) -> Result<u8> {
    lab::hide_files()?;
    sys::allow_open_files(65_536);
    // What is built for debugging is slow wherever it runs.
    let slowness = if cfg!(debug_assertions) { slowness * 8 } else { slowness };
    let found = cases::run_all(&Options { folder, only: names, jobs, asker, slowness, other_tools })?;
    print!("{}", found.wrong);
    found.unloadable.iter().for_each(|case| println!("UNLOADABLE {case}"));
    println!("{} answers are right", found.right);
    Ok(u8::from(!found.wrong.is_empty()))
}

fn rules(count: u64, seed: Option<u64>, only: Option<u64>, harmless: bool, jobs: usize) -> Result<u8> {
    lab::hide_files()?;
    sys::allow_open_files(65_536);
    let seed =
        seed.unwrap_or_else(|| u64::from(std::process::id()) ^ sys::monotonic().as_nanos() as u64 >> 10);
    Ok(u8::from(!difference::run(&difference::Options { count, seed, only, harmless, jobs })?))
}

/// A program in the folder of this one, else on PATH.
fn beside(program: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(program);
    Ok(if path.is_file() { path } else { PathBuf::from(program) })
}

fn load(url: &str, rate: f64, seconds: f64, timeout: f64, per_connection: u32) -> Result<()> {
    sys::allow_open_files(65_536);
    sys::run_first();
    let (to, path) = http::of_url(url)?;
    let timeout = Duration::try_from_secs_f64(timeout)?;
    let report =
        http::Load { to, path, rate, seconds, timeout, per_connection, begun: http::Begun::default() }
            .run()?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn guest(
    kernel: &str,
    only: &str,
    lane: Option<scenario::Lane>,
    list: bool,
    one: Option<&str>,
) -> Result<u8> {
    if list {
        for name in scenario::names(kernel, only, lane)? {
            println!("{name}");
        }
        return Ok(0);
    }
    if let Some(name) = one {
        return Ok(u8::try_from(scenario::run_one(kernel, name)?)?);
    }
    Ok(if scenario::run_all(kernel, only, lane)? { 0 } else { 1 })
}
