//! A Landlock domain that sees a command's files and nothing else: no other file, no TCP port, no other process.
//! What a kernel knows of it is taken, and what it doesn't know is left out.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetStatus, Scope, make_bitflags,
};

use super::Files;

/// The newest version that is asked for.
const VERSION: ABI = ABI::V9;
/// What a key of `--anonymize` is drawn from.
const RANDOM: &str = "/dev/urandom";

/// Confines this thread, and all threads that it starts.
pub(super) fn confine(files: &Files) -> io::Result<()> {
    match domain(files) {
        Ok(RulesetStatus::NotEnforced) => Err(version().err().unwrap_or_else(|| io::ErrorKind::Other.into())),
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn domain(files: &Files) -> Result<RulesetStatus, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(AccessNet::from_all(VERSION))?
        .scope(Scope::from_all(VERSION))?
        .create()?;
    let read = BitFlags::from(AccessFs::ReadFile);
    for path in files.opened().into_iter().chain([PathBuf::from(RANDOM)]) {
        // Readers of a recording that goes on note in its -shm how far they are.
        let marks = path.as_os_str().as_encoded_bytes().ends_with(b"-shm");
        rules = allow(rules, &path, if marks { read | AccessFs::WriteFile } else { read })?;
    }
    // A draft is made, written, read back to bring it to the disk, and renamed in its folder; a folder may be made for it.
    let new = make_bitflags!(AccessFs::{
        ReadFile | WriteFile | Truncate | MakeReg | RemoveFile | MakeDir | RemoveDir | ReadDir
    });
    for folder in files.written() {
        rules = allow(rules, &folder, new)?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// What isn't there can't be allowed, and doesn't have to be: opening it reports the error.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    // Links were followed where they may be. One beside a recording is none of its files: SQLite follows none there.
    let opened = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path);
    let is_link = |file: &File| file.metadata().is_ok_and(|metadata| metadata.is_symlink());
    match opened.ok().filter(|file| !is_link(file)) {
        Some(file) => rules.add_rule(PathBeneath::new(file, access)),
        None => Ok(rules),
    }
}

/// Which version of Landlock this kernel has.
pub(super) fn version() -> io::Result<i32> {
    /// LANDLOCK_CREATE_RULESET_VERSION, include/uapi/linux/landlock.h
    const ASK: u32 = 1;
    // SAFETY: with this flag there is no struct to point to.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, ASK) };
    if version >= 0 {
        return Ok(i32::try_from(version).unwrap_or(i32::MAX));
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            io::Error::other("not in this kernel: CONFIG_SECURITY_LANDLOCK, Linux 5.13 or later")
        }
        Some(libc::EOPNOTSUPP) => io::Error::other("turned off: it is not in the list of `lsm=`"),
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_domain_sees_its_files_and_no_others() {
        if let Err(error) = version() {
            // What it is for is in mod.rs: an old kernel is no fault.
            assert!(confine(&Files::default()).is_err(), "{error}");
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for folder in ["in", "out"] {
            fs::create_dir(at(folder)).unwrap();
        }
        for file in ["in/a.ctw", "in/a.ctw-wal", "in/a.ctw-shm", "in/b.ctw"] {
            fs::write(at(file), "x").unwrap();
        }
        std::os::unix::fs::symlink("in/a.ctw", at("link")).unwrap();
        // What somebody else laid beside a recording leads nowhere.
        std::os::unix::fs::symlink("/etc/passwd", at("in/c.ctw-wal")).unwrap();
        fs::write(at("in/c.ctw"), "x").unwrap();
        let files = Files::read([&at("link"), &at("in/c.ctw")]).write(Some(&at("out/new")));
        let folder = top.path().to_owned();
        let paths = move |name: &str| folder.join(name);
        std::thread::spawn(move || {
            confine(&files).unwrap();
            let is_readable = |name: &str| fs::read(paths(name)).is_ok();
            assert!(["in/a.ctw", "in/a.ctw-wal", "link"].map(is_readable) == [true; 3]);
            assert!(!is_readable("in/b.ctw") && !is_readable("in/c.ctw-wal"));
            assert!(fs::read("/etc/hostname").is_err() && fs::read_dir("/").is_err());
            assert!(fs::write(paths("in/a.ctw"), "y").is_err());
            assert!(fs::OpenOptions::new().write(true).open(paths("in/a.ctw-shm")).is_ok());
            assert!(fs::write(paths("in/new"), "y").is_err());
            fs::write(paths("out/new.partial"), "y").unwrap();
            fs::rename(paths("out/new.partial"), paths("out/new")).unwrap();
            fs::remove_file(paths("out/new")).unwrap();
            assert!(std::os::unix::fs::symlink("x", paths("out/x")).is_err());
            assert!(std::process::Command::new("/bin/true").status().is_err());
        })
        .join()
        .unwrap();
    }
}
