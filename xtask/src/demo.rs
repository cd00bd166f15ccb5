//! The project's story on a stock kernel: a full table, a suffering Redis, and ctwatch that names it.
//! Shows only what happens while it runs; nothing is recorded beforehand.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::progress::Steps;
use crate::vm::{GuestFile, Series, Vm};
use crate::{dist, workspace};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel series
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
    /// Go on with a shell in the guest, whose web server goes on, too
    #[arg(long)]
    keep: bool,
}

/// Who sits at a prompt may leave it alone for a while.
const STAY: Duration = Duration::from_secs(24 * 3600);

/// Runs `cargo xtask demo`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let scripts = workspace::root().join("tests/guest");
    ensure!(scripts.join("demo.sh").is_file(), "there is no {}", scripts.join("demo.sh").display());
    let steps = Steps::of(5);
    let mut vm = Vm::new(args.kernel);
    let ctwatch = steps.step("ctwatch as a static binary", dist::ctwatch)?;
    vm.files = vec![
        GuestFile { host: ctwatch, guest: "/ctw/ctwatch".to_owned() },
        GuestFile { host: scripts, guest: "/ctw".to_owned() },
    ];
    vm.fetch(&steps)?;
    vm.shell = args.keep;
    if args.keep && io::stdin().is_terminal() {
        vm.timeout = STAY;
    }
    let command = if args.keep { "STORY_GOES_ON=1 /ctw/demo.sh" } else { "/ctw/demo.sh" };
    let status = steps.step("the story, in a guest that takes about 10 s to boot", || {
        vm.run(&[command.to_owned()], &mut io::stdout(), &mut io::stderr())
    })?;
    Ok(status.exit_code())
}
