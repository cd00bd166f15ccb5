//! From a cgroup's id to its path: on cgroup v2 the id is the inode number of its directory.
//! The tree is walked only when an unknown id turns up, in slices, and seldom: neither a storm of new cgroups nor a tree of
//! tens of thousands, which any user may have, may hold up who asks.

use std::collections::{HashMap, VecDeque};
use std::fs::ReadDir;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::container::{self, CgroupKind};
use super::handle::Process;
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
/// How long a slice of a walk takes.
const SLICE: Duration = Duration::from_millis(20);
/// Files that a slice looks at however long that takes: a host of ordinary size is walked in one.
const AT_LEAST: usize = 1 << 12;

/// The paths of all cgroups.
#[derive(Debug)]
pub struct Cgroups {
    roots: Roots,
    paths: Paths,
    /// The one that goes on. What it has found counts already, and so does what the last one found.
    walk: Option<Walk>,
    next_look: Option<Instant>,
}

impl Cgroups {
    /// Nothing read yet.
    #[must_use]
    pub fn new(roots: &Roots) -> Self {
        Self { roots: roots.clone(), paths: Paths::new(LIMIT), walk: None, next_look: None }
    }

    /// The path of a cgroup below the root of the hierarchy; `None` if it isn't known at present.
    pub fn path(&mut self, id: u64, now: Instant) -> Option<&Foreign> {
        if id == 0 {
            return None;
        }
        if self.known(id).is_none() && self.next_look.is_none_or(|next| now >= next) {
            let began = Instant::now();
            let is_over = self.go_on(LIMIT, AT_LEAST, began + SLICE);
            let took = began.elapsed() * SHARE;
            self.next_look = Some(now + if is_over { BETWEEN_WALKS.max(took) } else { took });
        }
        self.known(id)
    }

    fn known(&self, id: u64) -> Option<&Foreign> {
        let walk = self.walk.as_ref().and_then(|walk| walk.found.by_id.get(&id));
        walk.or_else(|| self.paths.by_id.get(&id))
    }

    /// One slice of a walk, a new one if none goes on; true if it has come to its end.
    fn go_on(&mut self, limit: usize, at_least: usize, until: Instant) -> bool {
        let walk = self.walk.get_or_insert_with(|| Walk::new(&self.roots, limit));
        if !walk.go_on(at_least, until) {
            return false;
        }
        // Ids of cgroups that are gone go with the walk before.
        if let Some(walk) = self.walk.take() {
            self.paths = walk.found;
        }
        true
    }
}

/// Paths by their cgroup's id.
#[derive(Debug)]
struct Paths {
    by_id: HashMap<u64, Foreign>,
    limit: usize,
    /// Of all paths together.
    letters: usize,
    /// Of those whose makers may be anybody.
    of_others: usize,
}

impl Paths {
    fn new(limit: usize) -> Self {
        Self { by_id: HashMap::new(), limit, letters: 0, of_others: 0 }
    }

    /// What users and containers make of their own may take half of the room.
    fn has_room(&self, is_others: bool) -> bool {
        let part = if is_others { 2 } else { 1 };
        let taken = if is_others { self.of_others } else { self.by_id.len() };
        taken < self.limit / part && self.letters < LETTERS / part
    }

    fn insert(&mut self, id: u64, path: Foreign, is_others: bool) {
        self.letters += path.size();
        self.of_others += usize::from(is_others);
        self.by_id.insert(id, path);
    }
}

/// A directory that is still to be read.
#[derive(Debug)]
struct Folder {
    place: PathBuf,
    path: Foreign,
    depth: usize,
    /// Below a user's slice or a container: others than root may have made it.
    is_others: bool,
}

/// A walk through the tree, level by level, so that what services and containers are in comes before what anybody made below.
#[derive(Debug)]
struct Walk {
    found: Paths,
    /// What others may have made comes last, too.
    open: VecDeque<Folder>,
    open_of_others: VecDeque<Folder>,
    reading: Option<(ReadDir, Folder)>,
}

impl Walk {
    fn new(roots: &Roots, limit: usize) -> Self {
        let mut found = Paths::new(limit);
        let mut open = VecDeque::new();
        if let Some(place) = unified(roots) {
            if let Ok(metadata) = std::fs::metadata(&place) {
                found.insert(metadata.ino(), "/".into(), false);
            }
            open.push_back(Folder { place, path: Foreign::default(), depth: DEPTH, is_others: false });
        }
        Self { found, open, open_of_others: VecDeque::new(), reading: None }
    }

    /// True if it has come to its end.
    fn go_on(&mut self, at_least: usize, until: Instant) -> bool {
        let mut looked_at = 0;
        loop {
            let Some((mut entries, folder)) = self.reading.take().or_else(|| self.next()) else {
                return true;
            };
            while let Some(entry) = entries.next() {
                let Ok(entry) = entry else { continue };
                looked_at += 1;
                // The kernel tells type and inode number along with the name: no look-up per file.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    self.add(&folder, &entry);
                }
                if looked_at >= at_least && Instant::now() >= until {
                    self.reading = Some((entries, folder));
                    return false;
                }
            }
        }
    }

    fn next(&mut self) -> Option<(ReadDir, Folder)> {
        loop {
            let folder = self.open.pop_front().or_else(|| self.open_of_others.pop_front())?;
            // It may have gone meanwhile.
            if let Ok(entries) = std::fs::read_dir(&folder.place) {
                return Some((entries, folder));
            }
        }
    }

    fn add(&mut self, folder: &Folder, entry: &std::fs::DirEntry) {
        if !self.found.has_room(folder.is_others) {
            return;
        }
        let path = Foreign::from(format!("{}/{}", folder.path.raw(), entry.file_name().shown().raw()));
        if path.size() > LONGEST {
            return;
        }
        self.found.insert(entry.ino(), path.clone(), folder.is_others);
        if folder.depth > 1 {
            let is_others = folder.is_others || is_handed_over(path.raw());
            let below = Folder { place: entry.path(), path, depth: folder.depth - 1, is_others };
            if is_others { &mut self.open_of_others } else { &mut self.open }.push_back(below);
        }
    }
}

/// Whether others than root may make cgroups below this one.
fn is_handed_over(path: &str) -> bool {
    container::of_path(path).is_some_and(|container| container.kind != CgroupKind::Unit)
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
    of(&Process::open(roots, pid).ok()?)
}

/// The same of a process that is looked at already.
#[must_use]
pub fn of(process: &Process) -> Option<Foreign> {
    // Its maker chose its name, of any bytes.
    most_telling(process.cgroups()?.raw()).filter(|path| path.len() <= LONGEST).map(Foreign::from)
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
    use std::path::Path;

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
    fn a_tree_of_tens_of_thousands_is_walked_in_slices() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("sys/fs/cgroup");
        for number in 0..500 {
            make(&root, &format!("user.slice/user-1000.slice/user@1000.service/flood-{number}"));
        }
        let redis = make(&root, "system.slice/redis.service");
        fs::write(root.join("cgroup.procs"), "").unwrap();
        fs::write(root.join("cgroup.controllers"), "").unwrap();
        let mut cgroups = Cgroups::new(&roots(temporary.path()));
        let over = Instant::now();
        let mut slices = 0;
        while !cgroups.go_on(LIMIT, 40, over) {
            slices += 1;
            assert!(cgroups.known(redis).is_some() || slices < 3, "the flood comes last");
        }
        assert!(slices >= 500 / 40, "{slices}");
        assert_eq!(cgroups.paths.by_id.len(), 506);
        // The next walk starts over; until it is done, what the last one found counts.
        assert!(!cgroups.go_on(LIMIT, 1, over));
        assert_eq!(cgroups.known(redis).map(Foreign::raw), Some("/system.slice/redis.service"));
        assert!(cgroups.walk.is_some());
    }

    #[test]
    fn a_user_s_cgroups_leave_room_for_those_of_the_host() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("sys/fs/cgroup");
        for number in 0..300 {
            make(&root, &format!("user.slice/user-1000.slice/flood-{number}"));
        }
        let scope = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod4c8f1e2d_0a1b_4c3d_8e5f_a1b2c3d4e5f6.slice";
        let deep = make(&root, &format!("{scope}/cri-containerd-{}.scope", "ab".repeat(32)));
        fs::write(root.join("cgroup.procs"), "").unwrap();
        fs::write(root.join("cgroup.controllers"), "").unwrap();
        let mut cgroups = Cgroups::new(&roots(temporary.path()));
        assert!(cgroups.go_on(100, usize::MAX, Instant::now()));
        assert!(cgroups.known(deep).is_some());
        assert!(cgroups.paths.by_id.len() < 100 && cgroups.paths.of_others == 50);
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
        assert!(
            cgroups.paths.letters <= 4 * LONGEST && cgroups.paths.by_id.len() == 5,
            "{:?}",
            cgroups.paths
        );
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
