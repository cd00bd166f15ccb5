//! Hosts for tests: files laid out in a temporary folder, some of them as real kernels had them.
//! Only tests use this.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::Host;
use crate::kernel::roots::Roots;

/// A host that lasts as long as this.
pub(super) struct Fixture {
    pub(super) host: Host,
    _folder: TempDir,
}

impl Fixture {
    /// These paths with these texts; a text "-> target" makes a link. Processes have the same root, unless another one is given,
    /// and are believed what they say.
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, text).unwrap(),
            }
        }
        for entry in fs::read_dir(folder.path().join("proc")).into_iter().flatten().flatten() {
            // Where there is a root already, or it is no folder.
            let _ = symlink("../..", entry.path().join("root"));
        }
        let roots = Roots { proc: folder.path().join("proc"), sys: folder.path().join("sys") };
        let host = Host { roots, root: folder.path().to_owned(), judge: |_, _| Ok(()) };
        Self { host, _folder: folder }
    }

    /// From a file that holds many: "== path" and its text, or "=> path target" for a link.
    pub(super) fn unpack(text: &str) -> Self {
        let mut files: Vec<(&str, String)> = Vec::new();
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("== ") {
                files.push((path, String::new()));
            } else if let Some((path, target)) =
                line.strip_prefix("=> ").and_then(|link| link.split_once(' '))
            {
                files.push((path, format!("-> {target}")));
            } else if let Some((_, text)) = files.last_mut() {
                // Arguments are separated by NUL, which no text file should hold.
                text.push_str(&line.replace('\u{1}', "\0"));
                text.push('\n');
            }
        }
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        Self::of(&files)
    }
}

/// Debian's cloud kernels with 2 GB and two CPUs, nginx with Lua and redis on them, just before the first redis answer.
pub(super) fn kernels() -> [(&'static str, Fixture); 3] {
    [
        ("5.10", include_str!("../../tests/machine/5.10.txt")),
        ("6.12", include_str!("../../tests/machine/6.12.txt")),
        ("7.3", include_str!("../../tests/machine/7.3.txt")),
    ]
    .map(|(name, text)| (name, Fixture::unpack(text)))
}
