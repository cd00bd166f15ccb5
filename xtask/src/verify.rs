//! Has the kernel's verifier judge every program: on the running kernel and on the oldest supported one.
//! A program that only one of them accepts is a failure.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::vm::{GuestFile, Series, Vm};
use crate::{dist, sh};

const ARGUMENTS: [&str; 2] = ["check", "--verifier"];
/// What has the fewest helpers, the smallest instruction budget and the oldest verifier.
const OLDEST: Series = Series::V5_10;

/// Runs `cargo xtask verify`.
pub fn run() -> Result<ExitCode> {
    Ok(if verify(dist::ctwatch()?)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Verifies the programs inside `ctwatch`; true when every kernel took them all.
pub fn verify(ctwatch: PathBuf) -> Result<bool> {
    let here = if sh::is_root() {
        println!("this kernel:");
        sh::die_with_parent(Command::new(&ctwatch).args(ARGUMENTS))
            .status()
            .with_context(|| format!("starting {}", ctwatch.display()))?
            .success()
    } else {
        println!("this kernel: left out, loading programs needs root");
        true
    };
    println!("kernel {OLDEST}:");
    let mut vm = Vm::new(OLDEST);
    vm.files = vec![GuestFile { host: ctwatch, guest: "/ctw/ctwatch".to_owned() }];
    let command: Vec<String> = ["ctwatch"].into_iter().chain(ARGUMENTS).map(str::to_owned).collect();
    let there = vm.run(&command, &mut io::stdout(), &mut io::stderr())?.success();
    Ok(here && there)
}
