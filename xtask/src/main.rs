//! Developer and user tasks of the project: `cargo xtask --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod cache;
mod dist;
mod ebpf;
mod sh;
mod vm;
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
    /// Build the static binaries into target/dist
    Dist,
    /// Run a command in a guest with a stock Debian kernel
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Ebpf(args) => ebpf::run(&args),
        Task::Dist => dist::run(),
        Task::Vm(args) => vm::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
