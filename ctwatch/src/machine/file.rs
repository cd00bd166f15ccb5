//! Small files of /proc, /sys and /etc, each of which may be missing or unreadable.
//! What can't be read is `None`: nothing here fails, and nothing here knows what a file means.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

use crate::files::read_regular;
use crate::foreign::Foreign;

/// No file of settings is that long; a link may lead to any file.
const MOST: u64 = 1 << 20;

/// A regular file's text without the blanks around it.
pub(super) fn text(path: &Path) -> Option<String> {
    // Not every file of /etc is UTF-8, and one odd byte in a comment must not hide the rest.
    Some(Foreign::from_bytes(&read_regular(path, MOST).ok()?).raw().trim().to_owned())
}

/// A file that holds one value.
pub(super) fn value<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// The files of a folder whose names end so, in no order.
pub(super) fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.to_str().is_some_and(|path| path.ends_with(ending))).collect()
}

/// Whether a setting can be changed from here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writable {
    /// It can.
    Yes,
    /// Only in the initial netns (mode 0444 elsewhere: nf_conntrack_standalone_init_sysctl, net/netfilter/
    /// nf_conntrack_standalone.c, 5.10 to 7.3).
    OnlyInTheInitialNetns,
    /// The file system is mounted read-only, as in most containers.
    ReadOnlyMount,
    /// Not by this user.
    NotPermitted,
    /// There is no such file.
    Missing,
    /// Nothing above.
    #[default]
    Unknown,
}

impl Writable {
    /// Of the sysctl with this path.
    pub(super) fn of(path: &Path) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let Ok(metadata) = std::fs::metadata(path) else {
            return if path.exists() { Self::Unknown } else { Self::Missing };
        };
        if metadata.permissions().mode() & 0o200 == 0 {
            return Self::OnlyInTheInitialNetns;
        }
        match access(path, AccessFlags::W_OK) {
            Ok(()) => Self::Yes,
            Err(Errno::EROFS) => Self::ReadOnlyMount,
            Err(Errno::EACCES | Errno::EPERM) => Self::NotPermitted,
            Err(_) => Self::Unknown,
        }
    }
}
