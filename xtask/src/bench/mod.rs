//! What ctwatch costs and what its advice is worth, measured in guests whose clock counts instructions.
//! Wall-clock time may only enter as a ratio of two times of one run.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args as ClapArgs, Subcommand};

use crate::vm::{GuestFile, Series, Vm};
use crate::{dist, sh};

mod advice;

/// Arguments of `cargo xtask bench`.
#[derive(ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Extra instructions for each packet, each new flow and each drop
    Overhead {
        /// Only this kernel series (may be repeated)
        #[arg(long = "kernel", value_enum)]
        kernels: Vec<Series>,
    },
    /// A million entries: `ctwatch table` against a reader that discards them, and against `conntrack -L`
    Census {
        /// On this kernel series
        #[arg(long, value_enum, default_value = "6.12")]
        kernel: Series,
        /// On this host instead, in a private netns, with as many entries as its limit allows
        #[arg(long)]
        native: bool,
    },
    /// 24 hours of a busy host with a storm, recorded as fast as it goes: the file, CPU and memory
    Record {
        /// Where to put the file
        #[arg(long, default_value = "/var/tmp")]
        folder: PathBuf,
    },
    /// What `ctwatch advise` promises against what comes of it: one boot asks, and one for each piece of advice obeys
    Advice(advice::Args),
}

/// Runs `cargo xtask bench`.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Overhead { kernels } => overhead(kernels),
        What::Census { native: true, .. } => census_here(),
        What::Census { kernel, native: false } => census(*kernel),
        What::Record { folder } => record(folder),
        What::Advice(args) => advice::run(args),
    }
}

fn files() -> Result<Vec<GuestFile>> {
    Ok(vec![
        GuestFile { host: dist::ctwatch()?, guest: "/ctw/ctwatch".to_owned() },
        GuestFile { host: dist::tests()?, guest: "/ctw/ctwatch-tests".to_owned() },
    ])
}

/// Ratios of wall-clock times within one run: those of an emulated machine count as well as any.
fn census(kernel: Series) -> Result<ExitCode> {
    let mut vm = Vm::new(kernel);
    vm.timeout = Duration::from_secs(3600);
    vm.files = files()?;
    let command = ["ctwatch-tests", "bench-census"].map(str::to_owned);
    Ok(vm.run(&command, &mut io::stdout(), &mut io::stderr())?.exit_code())
}

fn census_here() -> Result<ExitCode> {
    let mut path = dist::ctwatch()?.parent().expect("a file has a folder").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(dist::tests()?);
    command.args(["bench-census", "--native"]).env("PATH", path);
    let status = sh::die_with_parent(&mut command).status().context("starting the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On this host: it needs no kernel of its own.
fn record(folder: &Path) -> Result<ExitCode> {
    let mut command = Command::new(dist::tests()?);
    command.arg("bench-record").arg("--folder").arg(folder);
    let status = sh::die_with_parent(&mut command).status().context("starting the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn overhead(kernels: &[Series]) -> Result<ExitCode> {
    let kernels = if kernels.is_empty() { &[Series::V5_10, Series::V6_12, Series::V7] } else { kernels };
    let files = files()?;
    let mut failed = false;
    for kernel in kernels {
        println!("## Kernel {kernel}");
        let mut vm = Vm::new(*kernel);
        vm.icount = true;
        vm.timeout = Duration::from_secs(3600);
        vm.files = files.clone();
        let command = ["ctwatch-tests", "bench-guest"].map(str::to_owned);
        failed |= !vm.run(&command, &mut io::stdout(), &mut io::stderr())?.success();
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
