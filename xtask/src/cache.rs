//! What was fetched or built once and is worth keeping: kernels, guest images, QEMU, bpf-linker. Lives outside git.
//! Nothing half-written may ever become visible in it, and two runs may not build the same entry at once.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
        eprintln!("xtask: waiting for another run that prepares {name}");
        file.lock().with_context(|| format!("locking {}", path.display()))?;
    }
    Ok(Lock(file))
}

/// Makes the folder `entry` appear in one step: `fill` writes into a temporary neighbour, which is then renamed.
/// The caller holds the lock of the entry.
pub fn replace_dir(entry: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = entry.parent().expect("a cache entry has a parent");
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let temp = tempfile::Builder::new()
        .prefix(".new-")
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

/// Makes the file `entry` appear in one step, like [`replace_dir`].
pub fn replace_file(entry: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let parent = entry.parent().expect("a cache entry has a parent");
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let mut temp = tempfile::NamedTempFile::new_in(parent)
        .with_context(|| format!("creating a temporary file in {}", parent.display()))?;
    fill(temp.as_file_mut())?;
    temp.persist(entry).with_context(|| format!("renaming the finished file to {}", entry.display()))?;
    Ok(())
}
