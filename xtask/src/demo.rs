//! The project's story on a stock kernel: a full table, a suffering Redis, and ctwatch that names it.
//! Shows only what happens while it runs; nothing is recorded beforehand.

use std::io;
use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::vm::{GuestFile, Series, Vm};
use crate::{dist, workspace};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Kernel series
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
}

/// Runs `cargo xtask demo`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let scripts = workspace::root().join("tests/guest");
    ensure!(scripts.join("demo.sh").is_file(), "there is no {}", scripts.join("demo.sh").display());
    let mut vm = Vm::new(args.kernel);
    vm.files = vec![
        GuestFile { host: dist::ctwatch()?, guest: "/ctw/ctwatch".to_owned() },
        GuestFile { host: scripts, guest: "/ctw".to_owned() },
    ];
    let status = vm.run(&["/ctw/demo.sh".to_owned()], &mut io::stdout(), &mut io::stderr())?;
    Ok(status.exit_code())
}
