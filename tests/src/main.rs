//! Runs the scenarios inside a VM, the tracepoint backend on the host, and the cost table.
//! Arguments in, exit code out: everything else is in the library.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ctwatch_tests::{bench, census, native, scenario};

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
        /// Only scenarios whose name contains this, or one of these: a,b
        #[arg(long, default_value = "")]
        only: String,
        /// Print the names and end
        #[arg(long)]
        list: bool,
        /// Run exactly this scenario in this process
        #[arg(long, hide = true)]
        one: Option<String>,
    },
    /// Run the tracepoint backend on this host in a private netns; touches no sysctl
    Native,
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
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Guest { kernel, only, list, one } => guest(&kernel, &only, list, one.as_deref()),
        Task::Native => native::run().map(|()| 0),
        Task::BenchGuest { measure: false } => bench::run().map(|()| 0),
        Task::BenchGuest { measure: true } => bench::measure().map(|()| 0),
        Task::BenchCensus { native: false } => census::bench().map(|()| 0),
        Task::BenchCensus { native: true } => census::bench_native().map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn guest(kernel: &str, only: &str, list: bool, one: Option<&str>) -> Result<u8> {
    if list {
        for name in scenario::names() {
            println!("{name}");
        }
        return Ok(0);
    }
    if let Some(name) = one {
        return Ok(u8::try_from(scenario::run_one(kernel, name)?)?);
    }
    Ok(if scenario::run_all(kernel, only)? { 0 } else { 1 })
}
