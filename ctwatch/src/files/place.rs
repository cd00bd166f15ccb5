//! Where a file is to be made or gone on with. Whoever may write to a folder on the way there could put another file in its
//! place, at any moment: a look at the file itself, however thorough, says nothing then. So the folders are looked at.
//!
//! Names below such folders are nobody else's to change, so what goes by name afterwards (SQLite's own files, renames)
//! meets what was looked at.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::others_may_write;
use crate::foreign::Shown as _;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

/// How many symbolic links in a row are followed: as many as the kernel does.
const LINKS: usize = 40;
/// Others may write, and what somebody made only he may rename or remove (inode(7)).
const STICKY: u32 = 0o1000;

/// Whether the folder of a file may be one that everybody may make files in, like /tmp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// It may: the file is made anew, under a name that must be free, and in one go.
    Allowed,
    /// It may not: other files are opened by their names later.
    Refused,
}

/// Users that can do everything already: root, who runs this, and who made himself root for it.
#[derive(Clone, Debug)]
struct Trusted(Vec<u32>);

impl Trusted {
    fn here() -> Self {
        let own = geteuid().as_raw();
        let mut users = vec![0, own];
        if own == 0 {
            // Nobody but root sets the environment of a process of root's.
            let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
            users.extend(["SUDO_UID", "PKEXEC_UID"].into_iter().filter_map(number));
        }
        Self(users)
    }

    fn owns(&self, what: &Metadata) -> bool {
        self.0.contains(&what.uid())
    }

    /// Whether somebody else may write to it. A group with a user's number is that user's own, by the custom of all
    /// distributions that have such groups.
    fn leaves_to_others(&self, what: &Metadata) -> bool {
        others_may_write(what.mode(), what.gid(), |group| self.0.contains(&group))
    }
}

/// A folder that was looked at, and all above it.
struct Folder {
    fd: File,
    /// Without links.
    path: PathBuf,
    /// Others may make files in it, and touch nobody else's.
    is_shared: bool,
}

impl Folder {
    fn root(trusted: &Trusted) -> Result<Self> {
        let fd = File::from(nix::fcntl::open(
            "/",
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?);
        Self::checked(fd, PathBuf::from("/"), trusted)
    }

    fn checked(fd: File, path: PathBuf, trusted: &Trusted) -> Result<Self> {
        let about = fd.metadata()?;
        if !trusted.owns(&about) {
            let text = format!(
                "the folder {} belongs to user {}, who could put another file there: take a folder of your own",
                path.shown(),
                about.uid()
            );
            return Err(Error::new(ErrorKind::PermissionDenied, text));
        }
        let is_shared = trusted.leaves_to_others(&about);
        if is_shared && about.mode() & STICKY == 0 {
            let text = format!(
                "others may write to the folder {} (mode {:04o}) and could put another file there: take a folder of \
                 your own",
                path.shown(),
                about.mode() & 0o7777
            );
            return Err(Error::new(ErrorKind::PermissionDenied, text));
        }
        Ok(Self { fd, path, is_shared })
    }

    /// What has this name in it, without following it.
    fn look(&self, name: &OsStr) -> Result<Option<File>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(self.fd.as_fd(), name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn up(&self, trusted: &Trusted) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = File::from(openat(self.fd.as_fd(), "..", flags, Mode::empty())?);
        let path = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        Self::checked(fd, path, trusted)
    }
}

/// Where a path leads: the folder, and the name in it unless it is the folder that was meant.
fn walk(path: &Path, trusted: &Trusted) -> Result<(Folder, Option<OsString>)> {
    let mut rest = Vec::new();
    append(&mut rest, &std::path::absolute(path)?);
    let mut folder = Folder::root(trusted)?;
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            folder = folder.up(trusted)?;
            continue;
        }
        let Some(found) = folder.look(&name)? else {
            if rest.is_empty() {
                return Ok((folder, Some(name)));
            }
            let text = format!("there is no folder {}", folder.path.join(name).shown());
            return Err(Error::new(ErrorKind::NotFound, text));
        };
        let about = found.metadata()?;
        if about.is_symlink() {
            if !trusted.owns(&about) {
                let text = format!(
                    "{} is a link that user {} made: it is not followed",
                    folder.path.join(name).shown(),
                    about.uid()
                );
                return Err(Error::new(ErrorKind::PermissionDenied, text));
            }
            links += 1;
            if links > LINKS {
                return Err(Error::from_raw_os_error(libc::ELOOP));
            }
            let target = PathBuf::from(readlinkat(found.as_fd(), "")?);
            if target.is_absolute() {
                folder = Folder::root(trusted)?;
            }
            append(&mut rest, &target);
        } else if about.is_dir() {
            let path = folder.path.join(name);
            folder = Folder::checked(found, path, trusted)?;
        } else if rest.is_empty() {
            return Ok((folder, Some(name)));
        } else {
            return Err(Error::from_raw_os_error(libc::ENOTDIR));
        }
    }
    Ok((folder, None))
}

/// Puts the parts of a path in front of what is left to walk, which is kept backwards.
fn append(rest: &mut Vec<OsString>, path: &Path) {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let names: Vec<OsString> = names.collect();
    rest.extend(names.into_iter().rev());
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
    let (folder, name) = walk(path, &Trusted::here())?;
    ensure_apart(&folder, sharing)?;
    match name {
        Some(name) => Ok(folder.path.join(name)),
        None => Err(Error::new(ErrorKind::IsADirectory, "it is a folder, not a regular file")),
    }
}

/// The path of a file that is to be made, without links in its folder's; a link of its own name is not followed.
///
/// # Errors
/// As [`file`].
pub fn new_file(path: &Path, sharing: Sharing) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorKind::InvalidInput, "it is no name of a file"));
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (found, missing) = walk(folder, &Trusted::here())?;
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
    let trusted = Trusted::here();
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
