//! What a process says it is counts only if it could be: anybody may call a process kube-proxy or sshd, and give it arguments.
//! Believed is who is root in the initial user namespace, could change this host's network, and runs a program of root's.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::handle::Process;
use crate::files::root_owned::{is_roots_alone, root_owned};
use crate::foreign::Shown as _;
use crate::kernel::capabilities::{Capabilities, Capability};
use crate::kernel::standing::INITIAL_USER_NAMESPACE;

/// Why a process isn't what it calls itself, as far as can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It runs as a user other than root, or was started by one.
    User(u32),
    /// It is root only among its own.
    UserNamespace,
    /// It may not change anything of the network.
    Powerless,
    /// Its program is not of that name, or others than root may have put it there.
    Program(String),
    /// It ran another program when it was asked than when it was judged.
    Changed,
    /// It may not be looked at.
    Hidden(String),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "it runs as uid {uid}"),
            Self::UserNamespace => f.write_str("it is root in a user namespace of its own only"),
            Self::Powerless => f.write_str("it lacks CAP_NET_ADMIN"),
            Self::Program(why) => f.write_str(why),
            Self::Changed => f.write_str("it became another program meanwhile"),
            Self::Hidden(why) => write!(f, "it can't be looked at: {why}"),
        }
    }
}

/// What a process says it is by its name.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// What that is called.
    pub name: &'static str,
    /// How the files of such programs are called.
    pub programs: &'static [&'static str],
    /// Users run it, too.
    pub is_users: bool,
}

impl Claim {
    /// Of something that only root runs.
    #[must_use]
    pub const fn of_root(name: &'static str, programs: &'static [&'static str]) -> Self {
        Self { name, programs, is_users: false }
    }
}

/// How it is decided; tests have their own way.
pub type Judge = fn(&Process, &Claim) -> Result<(), Doubt>;

/// Whether this process may be what its name says. May hang as long as a file system pleases.
///
/// # Errors
/// Why not.
pub fn is_believed(process: &Process, claim: &Claim) -> Result<(), Doubt> {
    let hidden = |error: io::Error| Doubt::Hidden(error.to_string());
    if !claim.is_users {
        // First what can't hang: whose file system it is then matters less.
        power(&process.status().map_err(hidden)?)?;
        if process.link("ns/user").map_err(hidden)? != Path::new(INITIAL_USER_NAMESPACE) {
            return Err(Doubt::UserNamespace);
        }
    }
    of_root(process, claim.programs)
}

/// Of these ids and capabilities.
fn power(status: &str) -> Result<(), Doubt> {
    // Real, effective, saved and of files: the real one is the user who started a set-uid program.
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let ids: Vec<u32> = ids.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect();
    match ids.iter().find(|id| **id != 0) {
        Some(uid) => return Err(Doubt::User(*uid)),
        None if ids.len() != 4 => return Err(Doubt::Hidden("its ids are unknown".to_owned())),
        None => {}
    }
    let capabilities = Capabilities::in_status(status);
    if capabilities.is_some_and(|capabilities| capabilities.has(Capability::NetAdmin)) {
        Ok(())
    } else {
        Err(Doubt::Powerless)
    }
}

/// Whether its program has one of these names, and only root may have put it there.
fn of_root(process: &Process, programs: &[&str]) -> Result<(), Doubt> {
    let hidden = |error: io::Error| Doubt::Hidden(error.to_string());
    let seen = process.link("exe").map_err(hidden)?;
    // Replaced while it runs, as an upgrade does: the folder tells, and the file itself.
    const GONE: &[u8] = b" (deleted)";
    let bytes = seen.as_os_str().as_bytes();
    let (path, is_gone) = match bytes.strip_suffix(GONE) {
        Some(path) => (path, true),
        None => (bytes, false),
    };
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let name = path.file_name().unwrap_or_default().shown().into_raw();
    if !programs.iter().any(|program| is_called(&name, program)) {
        return Err(Doubt::Program(format!("its program is {}", path.shown())));
    }
    let file = process.program_file().and_then(|file| file.metadata()).map_err(hidden)?;
    if !is_roots_alone(&file) {
        return Err(Doubt::Program("its program is not root's alone".to_owned()));
    }
    let of_root = |root: &dyn std::os::fd::AsFd| -> Result<(), String> {
        let sought = if is_gone { path.parent().unwrap_or(Path::new("/")) } else { path };
        let found = root_owned(root.as_fd(), sought).and_then(|found| found.metadata());
        let found = found.map_err(|error| error.to_string())?;
        let is_it = is_gone || (found.dev(), found.ino()) == (file.dev(), file.ino());
        if is_it { Ok(()) } else { Err("it is another file by now".to_owned()) }
    };
    // The path is that of its own root, or of ours where it was only given a part of that (chroot).
    let in_its_own = process.root().map_err(|error| error.to_string()).and_then(|root| of_root(&root));
    in_its_own
        .or_else(|why| {
            let ours = std::fs::File::open("/").map_err(|error| error.to_string());
            ours.and_then(|root| of_root(&root)).map_err(|_| why)
        })
        .map_err(|why| Doubt::Program(format!("its program {} is not root's alone: {why}", path.shown())))
}

/// "kube-proxy", "kube-proxy-v1.31", but not "kube-proxyfoo".
fn is_called(name: &str, program: &str) -> bool {
    name.strip_prefix(program)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| !c.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::roots::Roots;

    const ALL: &str = "CapEff:\t000001ffffffffff\n";

    #[test]
    fn root_is_whoever_is_root_in_every_way_and_has_power_over_the_network() {
        let of = |uid: &str, capabilities: &str| power(&format!("Name:\tx\nUid:\t{uid}\n{capabilities}"));
        assert_eq!(of("0\t0\t0\t0", ALL), Ok(()));
        assert_eq!(of("1000\t1000\t1000\t1000", ALL), Err(Doubt::User(1000)));
        // A set-uid program, called by the name of a link: its real id is its user's.
        assert_eq!(of("1000\t0\t0\t0", ALL), Err(Doubt::User(1000)));
        // What an ordinary container has.
        assert_eq!(of("0\t0\t0\t0", "CapEff:\t00000000a80425fb\n"), Err(Doubt::Powerless));
        assert_eq!(of("0\t0\t0\t0", ""), Err(Doubt::Powerless));
        assert!(matches!(of("", ALL), Err(Doubt::Hidden(_))));
    }

    #[test]
    fn a_program_may_have_a_version_behind_its_name() {
        for (name, is) in
            [("k3s", true), ("k3s-server", true), ("k3s_1", true), ("k3sx", false), ("k3", false)]
        {
            assert_eq!(is_called(name, "k3s"), is, "{name}");
        }
    }

    #[test]
    fn another_program_than_its_name_says_is_not_believed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(&Roots::default(), child.id()).unwrap();
        // Until the child has become that program.
        for _ in 0..2000 {
            if process.name().is_some_and(|name| name == "sleep") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let (other, own) =
            (of_root(&process, &["kube-proxy"]), of_root(&process, &["sleep", "coreutils", "busybox"]));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(other, Err(Doubt::Program(_))), "{other:?}");
        assert_eq!(own, Ok(()));
    }
}
