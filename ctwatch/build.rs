//! Picks the eBPF object for the target and refuses one that is older than its sources.
//! It never builds eBPF code: stable Rust is all a user needs.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};

#[path = "build/source_hash.rs"]
mod source_hash;

fn main() -> Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    // A test of another toolchain's object points here; everyone else uses the committed one.
    println!("cargo:rerun-if-env-changed=CTWATCH_PREBUILT");
    let prebuilt = env::var_os("CTWATCH_PREBUILT").map_or_else(|| here.join("prebuilt"), PathBuf::from);
    let manifest_path = prebuilt.join("manifest.json");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed={}", prebuilt.display());
    let text =
        fs::read_to_string(&manifest_path).with_context(|| format!("reading {}", manifest_path.display()))?;
    let manifest: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("parsing {}", manifest_path.display()))?;

    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    let Some(file) = manifest["objects"][&arch]["file"].as_str() else {
        bail!(
            "there is no eBPF object for {arch} in {}; build one with `cargo xtask ebpf`",
            manifest_path.display()
        );
    };
    check_freshness(here.parent().unwrap_or(&here), &manifest)?;
    println!("cargo:rustc-env=CTWATCH_EBPF_OBJECT={}", prebuilt.join(file).display());
    Ok(())
}

/// In the workspace, the object must come from the sources beside it. A packaged crate has no sources to compare.
fn check_freshness(workspace: &Path, manifest: &serde_json::Value) -> Result<()> {
    if !source_hash::INPUTS.iter().all(|input| workspace.join(input).exists()) {
        return Ok(());
    }
    for input in source_hash::INPUTS {
        println!("cargo:rerun-if-changed={}", workspace.join(input).display());
    }
    let sources = source_hash::source_hash(workspace).context("hashing the eBPF sources")?;
    if manifest["source_hash"].as_str() != Some(&sources) {
        bail!(
            "the eBPF sources changed since ctwatch/prebuilt was built: run `cargo xtask ebpf` and commit the result"
        );
    }
    Ok(())
}
