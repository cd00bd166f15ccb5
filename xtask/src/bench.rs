//! What ctwatch costs the kernel, in instructions: the emulator runs one instruction per guest nanosecond.
//! Wall-clock time on this machine may not enter any number here.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};

use crate::dist;
use crate::vm::{GuestFile, Series, Vm};

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
}

/// Runs `cargo xtask bench`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let What::Overhead { kernels } = &args.what;
    let kernels =
        if kernels.is_empty() { &[Series::V5_10, Series::V6_12, Series::V7] } else { kernels.as_slice() };
    let files = vec![
        GuestFile { host: dist::ctwatch()?, guest: "/ctw/ctwatch".to_owned() },
        GuestFile { host: dist::tests()?, guest: "/ctw/ctwatch-tests".to_owned() },
    ];
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
