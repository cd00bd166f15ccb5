//! An hour in a guest with record, drops and advise at work: too long for the test run, so a command of its own.
//! What is judged, and by which bounds, is in tests/src/scenario/soak.rs.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::vm::{Series, Vm};
use crate::{dist, test};

/// Booting, warming up and adding up, under emulation.
const BESIDES: Duration = Duration::from_secs(900);

/// Arguments of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel series
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
    /// How long, the first eight to warm up
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

/// Runs `cargo xtask soak`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut vm = Vm::new(args.kernel);
    // On a slow machine a round takes longer than its minute.
    vm.timeout = BESIDES + Duration::from_secs(2 * 60 * args.minutes);
    vm.files = test::guest_files(dist::ctwatch()?)?;
    let command = ["ctwatch-tests", "soak", "--minutes", &args.minutes.to_string()].map(str::to_owned);
    let status = vm.run(&command, &mut io::stdout(), &mut io::stderr())?;
    Ok(status.exit_code())
}
