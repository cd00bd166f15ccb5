//! The static binaries that run in any guest and on any host.
//! A binary that needs anything at run time (a libc, a loader) may not leave here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::{progress, sh, workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const CTWATCH: &str = "ctwatch";
/// The runner of the scenarios.
const TESTS: &str = "ctwatch-tests";

/// Runs `cargo xtask dist`.
pub fn run() -> Result<ExitCode> {
    both()?;
    for binary in [ctwatch()?, tests()?] {
        println!("{}", binary.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds ctwatch and the runner of the scenarios side by side: each ends with minutes on one CPU.
pub fn both() -> Result<()> {
    build(&[CTWATCH, TESTS], "dist", None)
}

/// Builds ctwatch.
pub fn ctwatch() -> Result<PathBuf> {
    build(&[CTWATCH], "dist", None).map(|()| place(CTWATCH, "dist"))
}

/// Builds a ctwatch that carries the eBPF objects of the folder `prebuilt` instead of the committed ones.
pub fn ctwatch_with(prebuilt: &Path) -> Result<PathBuf> {
    build(&[CTWATCH], "dist-rebuilt", Some(prebuilt))?;
    let path = place(CTWATCH, "dist-rebuilt");
    let program = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let object = prebuilt.join("ctwatch-ebpf.x86_64.o");
    let object = fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
    ensure!(
        program.windows(object.len()).any(|window| window == object),
        "{} doesn't carry the object of {}",
        path.display(),
        prebuilt.display()
    );
    Ok(path)
}

/// Builds the runner of the scenarios.
pub fn tests() -> Result<PathBuf> {
    build(&[TESTS], "dist", None).map(|()| place(TESTS, "dist"))
}

/// Where a binary is put.
fn place(binary: &str, folder: &str) -> PathBuf {
    workspace::target().join(folder).join(binary)
}

/// What this process has built; several guests ask for the same at once, and wait for the first of them.
static BUILT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Builds binaries, but for those that this very process has built before.
fn build(binaries: &[&str], folder: &str, prebuilt: Option<&Path>) -> Result<()> {
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut missing = binaries.to_vec();
    missing.retain(|binary| !built.contains(&place(binary, folder)));
    if !missing.is_empty() {
        build_now(&missing, folder, prebuilt)?;
        built.extend(missing.iter().map(|binary| place(binary, folder)));
    }
    Ok(())
}

fn build_now(binaries: &[&str], folder: &str, prebuilt: Option<&Path>) -> Result<()> {
    let target = workspace::target();
    // A folder of its own, or every other build with other flags would start anew.
    let target_dir = target.join("static");
    let mut command = Command::new("cargo");
    if let Some(prebuilt) = prebuilt {
        command.env("CTWATCH_PREBUILT", prebuilt);
    }
    let names = binaries.join(" and ");
    progress::say(&format!("building the static {names}"));
    sh::run(
        sh::without_toolchain(&mut command)
            .current_dir(workspace::root())
            // Both packages, whichever binary is wanted: alone, each has its dependencies built with other features, and
            // everything that depends on them once more.
            .args(["build", "--release", "--target", TARGET])
            .args(["--package", "ctwatch", "--package", "ctwatch-tests"])
            .args(binaries.iter().flat_map(|binary| ["--bin", binary]))
            // Nobody waits for the runner of the scenarios to be small; they wait for it to be built.
            .args(["--config", "profile.release.package.ctwatch-tests.codegen-units=16"])
            .arg("--target-dir")
            .arg(&target_dir)
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )
    .with_context(|| format!("building the static {names}"))?;
    for binary in binaries {
        let built = target_dir.join(TARGET).join("release").join(binary);
        let image = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
        ensure!(
            is_static(&image).with_context(|| format!("looking at {}", built.display()))?,
            "{} is not static: it asks for a dynamic loader",
            built.display()
        );
        let path = place(binary, folder);
        fs::create_dir_all(path.parent().expect("a file has a folder"))
            .with_context(|| format!("creating the folder of {}", path.display()))?;
        replace(&built, &path).with_context(|| format!("copying to {}", path.display()))?;
    }
    Ok(())
}

/// Replaces `to` in one step: another run may be reading it.
fn replace(from: &Path, to: &Path) -> std::io::Result<()> {
    let temp = tempfile::NamedTempFile::new_in(to.parent().expect("a file has a folder"))?;
    fs::copy(from, temp.path())?;
    temp.persist(to)?;
    Ok(())
}

/// Does this 64-bit little-endian ELF program do without a loader, that is, without a PT_INTERP segment?
fn is_static(image: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let field = |at: usize, size: usize| -> Result<u64> {
        let bytes = image.get(at..at + size).context("the file is cut short")?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if !image.starts_with(b"\x7fELF\x02\x01") {
        bail!("this is no 64-bit little-endian ELF program");
    }
    let (table, size, count) = (field(32, 8)? as usize, field(54, 2)? as usize, field(56, 2)? as usize);
    for index in 0..count {
        if field(table + index * size, 4)? == u64::from(PT_INTERP) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_not_static() {
        let shell = fs::read("/proc/self/exe").unwrap();
        assert!(!is_static(&shell).unwrap());
        assert!(is_static(b"#!/bin/sh").is_err());
    }
}
