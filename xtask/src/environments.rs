//! The table of environments in docs/troubleshooting.md: what each command does in containers, pods, services and user namespaces.
//! All of them are made in one guest, by tests/src/environments.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::vm::{Series, Vm};
use crate::{dist, markers, test};

const FILE: &str = "docs/troubleshooting.md";
const NAME: &str = "environments";
const HEAD: &str =
    "| environment | made by | check | drops | table | advise | record |\n|---|---|---|---|---|---|---|\n";
/// Seventeen times five commands, under emulation.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Arguments of `cargo xtask environments`.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel series
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
    /// Only those whose name contains this; prints their rows, and writes nothing
    #[arg(long)]
    only: Option<String>,
}

/// Runs `cargo xtask environments`.
pub fn run(args: &Args) -> Result<ExitCode> {
    dist::both()?;
    let mut vm = Vm::new(args.kernel);
    vm.timeout = PATIENCE;
    vm.files = test::guest_files(dist::ctwatch()?)?;
    let only = args.only.as_deref().unwrap_or_default();
    let command = ["ctwatch-tests", "environments", "--only", only].map(str::to_owned);
    let mut rows = Vec::new();
    let status = vm.run(&command, &mut rows, &mut io::stderr())?;
    let rows = String::from_utf8(rows).context("what the guest wrote")?;
    print!("{rows}");
    if !status.success() {
        return Ok(status.exit_code());
    }
    if args.only.is_none() {
        markers::put_rows(FILE, NAME, HEAD, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}
