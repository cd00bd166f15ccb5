//! Where /proc and /sys are, so that tests can show ctwatch another kernel.
//! Only paths; reading is up to those who know the format.

use std::path::{Path, PathBuf};

/// The roots of the two kernel file systems.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Usually /proc.
    pub proc: PathBuf,
    /// Usually /sys.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc"), sys: PathBuf::from("/sys") }
    }
}

impl Roots {
    /// A path below /proc.
    #[must_use]
    pub fn proc(&self, path: impl AsRef<Path>) -> PathBuf {
        self.proc.join(path)
    }

    /// A path below /sys.
    #[must_use]
    pub fn sys(&self, path: impl AsRef<Path>) -> PathBuf {
        self.sys.join(path)
    }

    /// The kernel's release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> String {
        std::fs::read_to_string(self.proc("sys/kernel/osrelease"))
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    }
}
