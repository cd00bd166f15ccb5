//! Where a file is to be created or continued. A user who may write to a folder on the way there could put another file in its
//! place, at any moment: a look at the file itself, however thorough, says nothing then. So the folders are looked at.
//!
//! Names below such folders are nobody else's to change, so what goes by name afterwards (SQLite's own files, renames)
//! meets what was looked at.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use super::walk::{self, Doubt, End, Extent, Folder, Stop, Trust, Why};
use crate::foreign::Shown as _;

/// Whether the folder of a file may be one that everybody may make files in, like /tmp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// It may: the file is created under a name that must be free, and in one go.
    Allowed,
    /// It may not: other files are opened by their names later.
    Refused,
}

/// Users that can do everything already: root, who runs this, and who made himself root for it.
fn trusted() -> Trust {
    let own = geteuid().as_raw();
    let mut users = vec![0, own];
    if own == 0 {
        // Nobody but root sets the environment of a process of root's.
        let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
        users.extend(["SUDO_UID", "PKEXEC_UID"].into_iter().filter_map(number));
    }
    Trust { users, extent: Extent::Way }
}

/// Where a path leads: the folder, and the name in it unless it is the folder that was meant.
fn walk(path: &Path) -> Result<(Folder, Option<OsString>)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = File::from(nix::fcntl::open("/", flags, Mode::empty())?);
    match walk::walk(root, &std::path::absolute(path)?, &trusted()) {
        Ok(End::Folder(folder)) => Ok((folder, None)),
        Ok(End::Other { folder, name, .. } | End::Missing { folder, name }) => Ok((folder, Some(name))),
        Err(Stop::Io(error)) => Err(error),
        Err(Stop::Doubt(doubt)) => Err(Error::new(ErrorKind::PermissionDenied, in_words(&doubt))),
    }
}

fn in_words(Doubt { path, why }: &Doubt) -> String {
    let path = path.shown();
    match why {
        Why::Link(user) => format!("{path} is a link that user {user} made: it is not followed"),
        Why::Owner(user) => format!(
            "the folder {path} belongs to user {user}, who could put another file there: take a folder of your own"
        ),
        Why::Writable(mode) => format!(
            "others may write to the folder {path} (mode {:04o}) and could put another file there: take a folder of \
             your own",
            mode & 0o7777
        ),
        Why::AmongOthers | Why::Special => format!("{path} is no folder"),
    }
}

fn ensure_apart(folder: &Folder, sharing: Sharing) -> Result<()> {
    if !folder.is_shared || sharing == Sharing::Allowed {
        return Ok(());
    }
    let text = format!(
        "others may make files in {}, too: take a folder of your own (`mktemp -d` makes one)",
        folder.path.shown()
    );
    Err(Error::new(ErrorKind::PermissionDenied, text))
}

/// The path of a file without links in it, whether there is one yet or not. A link at its end is followed, so that a file
/// has one path whatever link it is reached by.
///
/// # Errors
/// Somebody else could put another file there, or the folder is missing; the message says which and what to do.
pub fn file(path: &Path, sharing: Sharing) -> Result<PathBuf> {
    let (folder, name) = walk(path)?;
    ensure_apart(&folder, sharing)?;
    match name {
        Some(name) => Ok(folder.path.join(name)),
        None => Err(Error::new(ErrorKind::IsADirectory, "it is a folder, not a regular file")),
    }
}

/// The path of a file that is to be made, without links in its folder's; a link of its own name is not followed.
///
/// # Errors
/// As [`file()`].
pub fn new_file(path: &Path, sharing: Sharing) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no name of a file"));
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (found, missing) = walk(folder)?;
    if missing.is_some() {
        let text = format!("there is no folder {}", folder.shown());
        return Err(Error::new(ErrorKind::NotFound, text));
    }
    ensure_apart(&found, sharing)?;
    Ok(found.path.join(name))
}

/// Refuses a file that somebody else could change while it is being written, or that has another name somewhere.
///
/// # Errors
/// It is such a one; the message says why.
pub fn own(about: &Metadata) -> Result<()> {
    let trusted = trusted();
    let denied = |text: String| Err(Error::new(ErrorKind::PermissionDenied, text));
    if !about.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if !trusted.owns(about) {
        return denied(format!(
            "it belongs to user {}, who may change it: make a copy of your own",
            about.uid()
        ));
    }
    if trusted.leaves_to_others(about) {
        return denied(format!("others may write to it (mode {:04o})", about.mode() & 0o7777));
    }
    if about.nlink() > 1 {
        return denied("it has other names, too (hard links): make a copy of it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn folder(mode: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        folder
    }

    fn is_root() -> bool {
        geteuid().is_root()
    }

    #[test]
    fn links_are_followed_to_a_file_or_to_the_name_of_one_yet_to_be_created() {
        let folder = folder(0o700);
        let at = |name: &str| folder.path().join(name);
        let resolve = |path: PathBuf| file(&path, Sharing::Refused);
        symlink("b.ctw", at("a.ctw")).unwrap();
        symlink(at("c.ctw"), at("b.ctw")).unwrap();
        assert_eq!(resolve(at("a.ctw")).unwrap(), at("c.ctw"));
        fs::write(at("c.ctw"), "").unwrap();
        assert_eq!(resolve(at("a.ctw")).unwrap(), at("c.ctw"));
        symlink("round.ctw", at("round.ctw")).unwrap();
        assert!(resolve(at("round.ctw")).is_err());
        fs::create_dir(at("down")).unwrap();
        symlink("down/..", at("back")).unwrap();
        assert_eq!(resolve(at("back").join("c.ctw")).unwrap(), at("c.ctw"));
        assert_eq!(resolve(at("down").join("../c.ctw")).unwrap(), at("c.ctw"));
        assert!(resolve(at("c.ctw/below")).is_err() && resolve(at("none/c.ctw")).is_err());
        assert_eq!(resolve(at("down")).unwrap_err().kind(), ErrorKind::IsADirectory);
        assert_eq!(new_file(&at("back/a.ctw"), Sharing::Refused).unwrap(), at("a.ctw"), "not followed");
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused_wherever_it_is_on_the_way() {
        for (mode, shared, refused) in [
            (0o700, true, true),
            (0o755, true, true),
            (0o777, false, false),
            (0o1777, true, false),
            (0o757, false, false),
        ] {
            let folder = folder(mode);
            let (path, below) = (folder.path().join("a"), folder.path().join("below"));
            assert_eq!(new_file(&path, Sharing::Allowed).is_ok(), shared, "{mode:o}");
            assert_eq!(file(&path, Sharing::Refused).is_ok(), refused, "{mode:o}");
            fs::create_dir(&below).unwrap();
            assert_eq!(file(&below.join("a"), Sharing::Refused).is_ok(), shared, "below {mode:o}");
        }
    }

    #[test]
    fn what_another_user_made_is_not_passed() {
        if !is_root() {
            return;
        }
        let folder = folder(0o1777);
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("theirs")).unwrap();
        chown(at("theirs"), Some(65_534), None).unwrap();
        let error = file(&at("theirs/a"), Sharing::Refused).unwrap_err().to_string();
        assert!(error.contains("belongs to user 65534"), "{error}");
        fs::create_dir(at("ours")).unwrap();
        symlink(at("ours"), at("link")).unwrap();
        assert!(file(&at("link/a"), Sharing::Refused).is_ok());
        std::os::unix::fs::lchown(at("link"), Some(65_534), None).unwrap();
        let error = file(&at("link/a"), Sharing::Refused).unwrap_err().to_string();
        assert!(error.contains("a link that user 65534 made"), "{error}");
        // A group of others', and one of root's.
        fs::set_permissions(at("ours"), Permissions::from_mode(0o770)).unwrap();
        assert!(file(&at("ours/a"), Sharing::Refused).is_ok());
        chown(at("ours"), None, Some(65_534)).unwrap();
        assert!(file(&at("ours/a"), Sharing::Refused).is_err());
    }

    #[test]
    fn a_file_of_others_or_with_other_names_is_not_ours() {
        let folder = folder(0o700);
        let path = folder.path().join("a");
        let about = || fs::symlink_metadata(&path).unwrap();
        fs::write(&path, "").unwrap();
        own(&about()).unwrap();
        fs::hard_link(&path, folder.path().join("b")).unwrap();
        assert!(own(&about()).unwrap_err().to_string().contains("hard links"));
        fs::remove_file(folder.path().join("b")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert!(own(&about()).unwrap_err().to_string().contains("others may write"));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        own(&about()).unwrap();
        assert!(own(&fs::metadata(folder.path()).unwrap()).is_err());
        if is_root() {
            chown(&path, Some(65_534), None).unwrap();
            assert!(own(&about()).unwrap_err().to_string().contains("belongs to user 65534"));
        }
    }
}
