//! What was fetched or built once and is worth keeping: kernels, guest images, QEMU, bpf-linker. Lives outside git.
//! Nothing half-written may ever become visible in it, and two runs may not build the same entry at once.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::{progress, sh};

/// The cache folder: `$CTWATCH_CACHE`, else `$XDG_CACHE_HOME/ctwatch`, else `~/.cache/ctwatch`.
pub fn dir() -> Result<PathBuf> {
    let dir = if let Some(dir) = env::var_os("CTWATCH_CACHE") {
        PathBuf::from(dir)
    } else if let Some(dir) = env::var_os("XDG_CACHE_HOME") {
        Path::new(&dir).join("ctwatch")
    } else {
        let home = env::home_dir().context("finding the cache folder: set CTWATCH_CACHE or HOME")?;
        home.join(".cache/ctwatch")
    };
    fs::create_dir_all(&dir).with_context(|| {
        format!("creating the cache {}: set CTWATCH_CACHE to a writable folder", dir.display())
    })?;
    dir.canonicalize().with_context(|| format!("resolving the cache {}", dir.display()))
}

/// Holds the lock of one cache entry until dropped; waits for another run that holds it.
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

/// Takes the lock of the entry `name`.
pub fn lock(name: &str) -> Result<Lock> {
    let dir = dir()?.join("lock");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join(name);
    let file = File::create(&path).with_context(|| format!("creating the lock {}", path.display()))?;
    if file.try_lock().is_err() {
        progress::say(&format!("waiting for another run that prepares {name}"));
        file.lock().with_context(|| format!("locking {}", path.display()))?;
    }
    Ok(Lock(file))
}

/// A short name for what an entry is made of, so that a changed recipe gets an entry of its own.
pub fn key(settings: &[&str], items: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for word in settings.iter().chain(items) {
        hasher.update(word.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Makes sure that the folder `entry` exists, running `fill` on a fresh one if it is missing or to be updated.
/// An update that fails leaves the old entry in use.
pub fn ensure(name: &str, entry: &Path, update: bool, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let _lock = lock(name)?;
    if entry.is_dir() && !update {
        return Ok(());
    }
    match replace_dir(name, entry, fill) {
        Err(error) if entry.is_dir() => {
            progress::say(&format!("{name} could not be updated, going on with the cached one: {error}"));
            Ok(())
        }
        result => result,
    }
}

/// A program that cargo installs, built the first time without optimization: it runs for seconds, and waits longer to be built.
pub fn cargo_program(name: &str, version: &str, options: &[&str]) -> Result<PathBuf> {
    let root = dir()?.join(format!("{name}-{version}"));
    ensure(name, &root, false, |dir| {
        progress::say(&format!("building {name} {version}, once (a minute or two)"));
        let target = tempfile::tempdir().context("creating a temporary folder")?;
        let mut command = Command::new("cargo");
        sh::run(
            sh::without_toolchain(&mut command)
                .args(["install", name, "--locked", "--version", version, "--profile", "dev"])
                .args(["--config", "profile.dev.debug=false"])
                .args(options)
                .arg("--root")
                .arg(dir)
                .current_dir(target.path())
                .env("CARGO_TARGET_DIR", target.path()),
        )
        .with_context(|| format!("building {name}"))
    })?;
    let program = root.join("bin").join(name);
    ensure!(program.is_file(), "{} holds no {name}: remove the folder and try again", root.display());
    Ok(program)
}

/// Makes the folder `entry` appear in one step: `fill` writes into a temporary neighbour, which is then renamed.
/// The caller holds the lock `name` of the entry.
fn replace_dir(name: &str, entry: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = entry.parent().expect("a cache entry has a parent");
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let prefix = format!(".new-{name}-");
    // What a killed run left behind; the lock says that no living one is at work.
    for stale in fs::read_dir(parent).with_context(|| format!("listing {}", parent.display()))?.flatten() {
        if stale.file_name().to_string_lossy().starts_with(&prefix) {
            drop(fs::remove_dir_all(stale.path()));
        }
    }
    // Not in /tmp: a rename has to stay on one filesystem.
    let temp = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(parent)
        .with_context(|| format!("creating a temporary folder in {}", parent.display()))?;
    let content = temp.path().join("content");
    fs::create_dir(&content).with_context(|| format!("creating {}", content.display()))?;
    fill(&content)?;
    if entry.exists() {
        fs::rename(entry, temp.path().join("old"))
            .with_context(|| format!("moving the old {} away", entry.display()))?;
    }
    fs::rename(&content, entry)
        .with_context(|| format!("renaming the finished folder to {}", entry.display()))
}
