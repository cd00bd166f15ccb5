//! Developer and user tasks of the project: `cargo xtask --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod cache;
mod ebpf;
mod sh;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the ctwatch project", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF object that is committed in ctwatch/prebuilt
    Ebpf(ebpf::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Ebpf(args) => ebpf::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
