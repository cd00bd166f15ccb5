//! cargo-deny: the licences of all dependencies, where they come from, and those that are not wanted (deny.toml).
//! It asks no network: advisories, whose database is a download, are not looked at.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{cache, progress, sh, workspace};

const VERSION: &str = "0.20.2";

/// The program; built into the cache the first time, a minute on two CPUs.
pub fn program() -> Result<PathBuf> {
    cache::cargo_program("cargo-deny", VERSION, &["--no-default-features"])
}

/// Whether all holds that deny.toml says.
pub fn check() -> Result<bool> {
    let program = program()?;
    progress::say("licences, bans, sources; no advisories, which need a network");
    let mut command = Command::new(program);
    command.args(["--offline", "--workspace", "--locked", "check", "licenses", "bans", "sources"]);
    command.current_dir(workspace::root());
    Ok(sh::die_with_parent(&mut command).status()?.success())
}
