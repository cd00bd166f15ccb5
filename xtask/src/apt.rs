//! Debian packages: those the host needs are installed, those a guest needs are only fetched and unpacked.
//! No mirror may be named here (it comes from the machine's own sources), and only root's own request changes the host.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh;

/// Installs the missing ones of `packages` on this machine, or says how to.
pub fn install_on_host(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let remedy = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !sh::is_root() {
        bail!("{purpose} needs Debian packages; run as root: {remedy}");
    }
    eprintln!("xtask: {purpose}: {remedy}");
    sh::run_quiet(Command::new("apt-get").arg("update")).or_else(|error| {
        // The lists on disk may be good enough; the installation itself will tell.
        eprintln!("xtask: {error:#}");
        anyhow::Ok(())
    })?;
    sh::run_quiet(
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .with_context(|| format!("installing what {purpose} needs; try by hand: {remedy}"))
}

fn is_installed(package: &str) -> bool {
    sh::capture(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status.trim() == "installed")
}
