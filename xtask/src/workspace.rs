//! Where the project and its build products are, whatever folder a task was started from.
//! Nothing here may write or run anything.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the cargo workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Cargo's target folder, also when it was moved by the environment.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}
