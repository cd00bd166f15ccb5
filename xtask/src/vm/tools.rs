//! QEMU and the few programs that make its images, at versions known to work, run from the cache.
//! None of them may be installed on the host, and none may pick up the host's libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::apt::{PrivateApt, Suite};
use crate::{cache, progress};

/// With bookworm's own QEMU 7.2 half of the two-CPU boots of 6.12 panic early; 10 booted 20 times out of 20.
const RELEASE: &str = "bookworm-backports";
const SUITES: [Suite; 4] = [
    Suite::Archive("bookworm"),
    Suite::Archive("bookworm-updates"),
    Suite::Archive(RELEASE),
    Suite::Security("bookworm-security"),
];
const PACKAGES: [&str; 6] =
    ["qemu-system-x86", "seabios", "erofs-utils", "kmod", "xz-utils", "busybox-static"];

/// The unpacked programs.
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Takes the programs from the cache, fetching them when they are missing.
    pub fn get(update: bool) -> Result<Tools> {
        let root = cache::dir()?.join(format!("tools-{}", cache::key(&[RELEASE], &PACKAGES)));
        cache::ensure("tools", &root, update, |root| {
            progress::say("fetching QEMU and what makes its images");
            PrivateApt::open("tools", &SUITES)?.unpack_closure(&PACKAGES, Some(RELEASE), root)
        })?;
        ensure!(
            root.join("usr/bin/qemu-system-x86_64").is_file(),
            "{} holds no QEMU: remove the folder and try again",
            root.display()
        );
        Ok(Tools { root })
    }

    /// A command that runs `program` (a path inside the unpacked packages) with the libraries it was built for.
    pub fn command(&self, program: &str) -> Command {
        self.command_named(program, program)
    }

    /// The same for a program that acts by the name it is called with.
    pub fn command_named(&self, program: &str, name: &str) -> Command {
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|dir| self.root.join(dir));
        let libraries = libraries.map(|dir| dir.display().to_string()).join(":");
        let mut command = Command::new(self.root.join("lib64/ld-linux-x86-64.so.2"));
        command.args(["--argv0", name, "--library-path"]).arg(libraries).arg(self.root.join(program));
        command
    }

    /// QEMU with its firmware and modules.
    pub fn qemu(&self) -> Command {
        let mut command = self.command("usr/bin/qemu-system-x86_64");
        command.env("QEMU_MODULE_DIR", self.root.join("usr/lib/x86_64-linux-gnu/qemu"));
        for firmware in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
    }

    /// A shell and its usual commands in one static file.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// Makes a read-only filesystem image of `dir`, everything owned by root.
    pub fn make_image(&self, dir: &Path, image: &Path) -> Result<()> {
        // Uncompressed: inflating under emulation costs more than reading.
        crate::sh::run_quiet(
            self.command("usr/bin/mkfs.erofs").args(["--all-root", "-T0"]).arg(image).arg(dir),
        )
    }
}
