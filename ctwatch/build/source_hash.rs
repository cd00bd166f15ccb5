//! Ties the committed eBPF object to the sources it was built from; used by `cargo xtask ebpf` and by ctwatch's build.rs.
//! It may look at nothing but the eBPF sources: a hash that moves with anything else would refuse a good object.

use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

/// The files and folders, relative to the workspace, that decide what the eBPF object contains.
pub const INPUTS: [&str; 4] =
    ["ctwatch-ebpf/Cargo.toml", "ctwatch-ebpf/src", "ctwatch-common/Cargo.toml", "ctwatch-common/src"];

/// SHA-256 (hex) over the sorted relative paths, sizes and contents of the eBPF sources.
pub fn source_hash(workspace_root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(&workspace_root.join(input), input, &mut files)?;
    }
    files.sort();
    let mut hasher = Sha256::new();
    for (name, path) in files {
        let content = fs::read(path)?;
        // Lengths first, so that no two file sets can run together into one byte stream.
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update((content.len() as u64).to_le_bytes());
        hasher.update(&content);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(path: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    if !path.is_dir() {
        files.push((name.to_owned(), path.to_owned()));
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let file_name = file_name.to_string_lossy();
        let is_dir = entry.file_type()?.is_dir();
        // An editor's backup or swap file is no source.
        if is_dir || (file_name.ends_with(".rs") && !file_name.starts_with('.')) {
            collect(&entry.path(), &format!("{name}/{file_name}"), files)?;
        }
    }
    Ok(())
}
