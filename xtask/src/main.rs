//! Developer and user tasks of the project: `cargo xtask --help`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod browser;
mod cache;
mod demo;
mod deny;
mod dist;
mod ebpf;
mod environments;
mod fuzz;
mod kernels;
mod markers;
mod progress;
mod rules;
mod sh;
mod soak;
mod test;
mod tools;
mod verify;
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
    /// Load every eBPF program on this kernel and on the oldest supported one
    Verify,
    /// Watch a full table hurt a web server, on a stock kernel
    Demo(demo::Args),
    /// Open the HTML report in a browser: light, dark and on paper
    Browser,
    /// Run everything that has to hold
    Test(test::Args),
    /// Run the exactness scenarios on every kernel that Debian offers, and write docs/kernels.md
    Kernels(kernels::Args),
    /// Run each command in containers, pods and services as people have them, and write docs/troubleshooting.md's table
    Environments(environments::Args),
    /// Ask about random rule sets, or about those of tests/cases, on this host, and try the answers with flows
    Rules(rules::Args),
    /// Ask about the cases and random rule sets with the nft and iptables of every release of Debian, and write docs/advice.md's table
    Tools(tools::Args),
    /// Measure what ctwatch costs
    Bench(bench::Args),
    /// Fuzz what reads foreign bytes, and tell the figures
    Fuzz(fuzz::Args),
    /// Record, drops and advise at work in a guest for an hour, under load and while namespaces come and go
    Soak(soak::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Ebpf(args) => ebpf::run(&args),
        Task::Dist => dist::run(),
        Task::Vm(args) => vm::run(args),
        Task::Verify => verify::run(),
        Task::Demo(args) => demo::run(&args),
        Task::Browser => browser::run(),
        Task::Test(args) => test::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::Environments(args) => environments::run(&args),
        Task::Rules(args) => rules::run(&args),
        Task::Tools(args) => tools::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Soak(args) => soak::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
