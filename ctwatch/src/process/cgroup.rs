//! From a cgroup's id to its path: on cgroup v2 the id is the inode number of its directory.
//! The tree is walked only when an unknown id turns up, and seldom: a storm of new cgroups must not cost a core.

use std::collections::HashMap;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::container;
use crate::foreign::{Foreign, Shown as _};
use crate::kernel::roots::Roots;

/// Directories remembered; more than any host has.
const LIMIT: usize = 1 << 16;
/// Letters of their paths remembered; an average of 256 each.
const LETTERS: usize = 16 << 20;
/// A longer path is nobody's: users name the cgroups they are given as they please. A pod's has some 200 letters.
const LONGEST: usize = 1 << 10;
/// Levels of the tree that are looked at.
const DEPTH: usize = 24;
/// The shortest time between two walks.
const BETWEEN_WALKS: Duration = Duration::from_secs(1);
/// A walk may take up to one part in so many of the time.
const SHARE: u32 = 20;

/// The paths of all cgroups.
#[derive(Debug)]
pub struct Cgroups {
    roots: Roots,
    paths: HashMap<u64, Foreign>,
    /// Of all paths together.
    letters: usize,
    next_walk: Option<Instant>,
}

impl Cgroups {
    /// Nothing read yet.
    #[must_use]
    pub fn new(roots: &Roots) -> Self {
        Self { roots: roots.clone(), paths: HashMap::new(), letters: 0, next_walk: None }
    }

    /// The path of a cgroup below the root of the hierarchy; `None` if it isn't known at present.
    pub fn path(&mut self, id: u64, now: Instant) -> Option<&Foreign> {
        if id == 0 {
            return None;
        }
        if !self.paths.contains_key(&id) && self.next_walk.is_none_or(|next| now >= next) {
            self.walk();
            let now_then = Instant::now();
            self.next_walk = Some(now_then + BETWEEN_WALKS.max((now_then - now) * SHARE));
        }
        self.paths.get(&id)
    }

    /// Reads the whole tree anew: ids of cgroups that are gone go with it.
    fn walk(&mut self) {
        self.paths.clear();
        self.letters = 0;
        let Some(root) = unified(&self.roots) else { return };
        if let Ok(metadata) = std::fs::metadata(&root) {
            self.paths.insert(metadata.ino(), "/".into());
        }
        self.walk_below(&root, &Foreign::default(), DEPTH);
    }

    fn walk_below(&mut self, folder: &Path, path: &Foreign, depth: usize) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries.flatten() {
            // The kernel tells type and inode number along with the name: no look-up per file.
            if self.paths.len() >= LIMIT
                || self.letters >= LETTERS
                || !entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                continue;
            }
            let name = entry.file_name();
            let below = Foreign::from(format!("{}/{}", path.raw(), name.shown().raw()));
            if below.raw().len() > LONGEST {
                continue;
            }
            self.letters += below.raw().len();
            if depth > 1 {
                self.walk_below(&entry.path(), &below, depth - 1);
            }
            self.paths.insert(entry.ino(), below);
        }
    }
}

/// Where the v2 hierarchy is mounted: alone, or beside v1.
fn unified(roots: &Roots) -> Option<PathBuf> {
    ["fs/cgroup", "fs/cgroup/unified"]
        .iter()
        .map(|place| roots.sys(place))
        .find(|place| place.join("cgroup.procs").exists() && place.join("cgroup.controllers").exists())
}

/// The cgroup that says most about a process, over all hierarchies it is in.
#[must_use]
pub fn of_process(roots: &Roots, pid: u32) -> Option<Foreign> {
    // Its maker chose its name, of any bytes.
    let text = Foreign::from_bytes(&std::fs::read(roots.proc(format!("{pid}/cgroup"))).ok()?);
    most_telling(text.raw()).filter(|path| path.len() <= LONGEST).map(Foreign::from)
}

/// Of the lines of /proc/PID/cgroup ("hierarchy:controllers:path"): a container's, else a unit's, else any but the root.
#[must_use]
pub fn most_telling(text: &str) -> Option<&str> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.min_by_key(|path| {
        let kind = container::of_path(path).map(|container| container.kind);
        // Some before None, and the root last of all.
        (kind.is_none(), kind, *path == "/")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn roots(folder: &Path) -> Roots {
        Roots { proc: folder.join("proc"), sys: folder.join("sys") }
    }

    fn make(root: &Path, path: &str) -> u64 {
        let folder = root.join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::metadata(folder).unwrap().ino()
    }

    #[test]
    fn an_id_is_the_inode_number_of_a_directory() {
        for mount in ["sys/fs/cgroup", "sys/fs/cgroup/unified"] {
            let temporary = tempfile::tempdir().unwrap();
            let root = temporary.path().join(mount);
            make(&root, "");
            fs::write(root.join("cgroup.procs"), "").unwrap();
            fs::write(root.join("cgroup.controllers"), "").unwrap();
            let redis = make(&root, "system.slice/redis.service");
            let mut cgroups = Cgroups::new(&roots(temporary.path()));
            let now = Instant::now();
            assert_eq!(cgroups.path(redis, now).map(Foreign::raw), Some("/system.slice/redis.service"));
            assert_eq!(cgroups.path(fs::metadata(&root).unwrap().ino(), now).map(Foreign::raw), Some("/"));
            assert_eq!(cgroups.path(0, now), None);
        }
    }

    #[test]
    fn a_name_of_any_bytes_hides_nobody() {
        use std::os::unix::ffi::OsStrExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let roots = roots(temporary.path());
        let root = temporary.path().join("sys/fs/cgroup");
        let name = b"evil\xff\x1b[2J.service";
        let folder = root.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir_all(&folder).unwrap();
        fs::write(root.join("cgroup.procs"), "").unwrap();
        fs::write(root.join("cgroup.controllers"), "").unwrap();
        fs::create_dir_all(roots.proc("7")).unwrap();
        fs::write(roots.proc("7/cgroup"), [&b"0::/"[..], name, b"\n"].concat()).unwrap();
        let shown = "/evil\\xff\\x1b[2J.service";
        let id = fs::metadata(folder).unwrap().ino();
        assert_eq!(Cgroups::new(&roots).path(id, Instant::now()).unwrap().to_string(), shown);
        let path = of_process(&roots, 7).unwrap();
        assert_eq!(path.to_string(), shown);
        let container = container::of_path(path.raw()).unwrap();
        assert_eq!(container.name.to_string(), "unit:evil\\xff\\x1b[2J.service");
    }

    #[test]
    fn a_cgroup_that_came_later_is_found_but_not_at_any_price() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("sys/fs/cgroup");
        make(&root, "a");
        fs::write(root.join("cgroup.procs"), "").unwrap();
        fs::write(root.join("cgroup.controllers"), "").unwrap();
        let mut cgroups = Cgroups::new(&roots(temporary.path()));
        let now = Instant::now();
        assert_eq!(cgroups.path(u64::MAX, now), None);
        let late = make(&root, "late");
        assert_eq!(cgroups.path(late, now), None, "it has just looked");
        assert_eq!(cgroups.path(late, now + Duration::from_secs(60)).map(Foreign::raw), Some("/late"));
    }

    #[test]
    fn names_without_an_end_are_not_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("sys/fs/cgroup");
        let long = make(&root, &["x".repeat(250).as_str(); 5].join("/"));
        fs::write(root.join("cgroup.procs"), "").unwrap();
        fs::write(root.join("cgroup.controllers"), "").unwrap();
        let mut cgroups = Cgroups::new(&roots(temporary.path()));
        assert_eq!(cgroups.path(long, Instant::now()), None);
        assert!(cgroups.letters <= 4 * LONGEST && cgroups.paths.len() == 5, "{}", cgroups.letters);
        fs::create_dir_all(temporary.path().join("proc/7")).unwrap();
        fs::write(temporary.path().join("proc/7/cgroup"), format!("0::/{}\n", "x".repeat(LONGEST))).unwrap();
        assert_eq!(of_process(&roots(temporary.path()), 7), None);
    }

    #[test]
    fn of_many_hierarchies_the_container_s_counts() {
        let id = "ab".repeat(32);
        let v1 = format!(
            "12:pids:/docker/{id}\n1:name=systemd:/docker/{id}\n0::/system.slice/containerd.service\n"
        );
        assert_eq!(most_telling(&v1), Some(format!("/docker/{id}").as_str()));
        let hybrid = "9:name=systemd:/system.slice/redis.service\n4:memory:/system.slice\n0::/\n";
        assert_eq!(most_telling(hybrid), Some("/system.slice/redis.service"));
        assert_eq!(most_telling("0::/\n"), Some("/"));
        assert_eq!(most_telling("5:net_cls,net_prio:/\n4:memory:/own\n0::/\n"), Some("/own"));
        assert_eq!(most_telling(""), None);
    }
}
