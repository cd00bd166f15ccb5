//! The table of environments in docs/troubleshooting.md: what each command does in containers, pods, services and user namespaces.
//! All of them are made in one guest, by tests/src/environments.

use std::fs;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::vm::{Series, Vm};
use crate::{dist, progress, test, workspace};

const FILE: &str = "docs/troubleshooting.md";
const BEGIN: &str = "<!-- cargo xtask environments: begin -->";
const END: &str = "<!-- cargo xtask environments: end -->";
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
        let path = workspace::root().join(FILE);
        let document = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        fs::write(&path, replace(&document, &rows)?)
            .with_context(|| format!("writing {}", path.display()))?;
        progress::say(&format!("{FILE} has the table"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts rows in the place of those between the markers.
fn replace(document: &str, rows: &str) -> Result<String> {
    ensure!(
        rows.lines().count() > 1 && rows.lines().all(|row| row.starts_with("| ")),
        "these are no rows: {rows}"
    );
    let (before, rest) = document.split_once(BEGIN).with_context(|| format!("{FILE} has no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{FILE} has no line {END}"))?;
    Ok(format!("{before}{BEGIN}\n\n{HEAD}{rows}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_the_place_of_rows_and_nothing_else() {
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = replace(&document, "| x | y |\n| z | w |\n").unwrap();
        assert!(
            new.starts_with("a\n")
                && new.ends_with("b\n")
                && !new.contains("old")
                && new.contains("| z | w |")
        );
        assert_eq!(replace(&new, "| x | y |\n| z | w |\n").unwrap(), new);
        assert!(replace(&document, "Error: no runc\n").is_err());
        assert!(replace("no markers", "| x |\n| y |\n").is_err());
    }
}
