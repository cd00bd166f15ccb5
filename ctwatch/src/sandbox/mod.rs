//! What ctwatch gives up once it knows what it was asked to do: capabilities, new privileges, system calls and files.
//! Before there is a second thread, since all of it belongs to threads and is handed down. docs/privileges.md says why.

mod calls;
mod files;
mod rights;

use std::io;
use std::path::{Path, PathBuf};

use crate::kernel::capabilities::Capability;
use crate::kernel::release::release_number;
use crate::kernel::roots::Roots;

/// What a command does that needs rights. Each has what the ones before it have, but for [`Work::Reads`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Reads recordings, and maybe writes new files.
    Reads,
    /// Lists tables and counters, in every netns.
    Lists,
    /// Loads programs, too.
    Watches,
    /// Runs other programs, too.
    RunsPrograms,
}

/// The files of a command: those it reads, and where it makes new ones.
#[derive(Clone, Debug, Default)]
pub struct Files {
    inputs: Vec<PathBuf>,
    output: Option<PathBuf>,
    /// Files that are made and written for long.
    kept: bool,
}

impl Files {
    /// Reads these recordings.
    pub fn read<P: AsRef<Path>>(recordings: impl IntoIterator<Item = P>) -> Self {
        Self {
            inputs: recordings.into_iter().map(|one| one.as_ref().to_owned()).collect(),
            ..Self::default()
        }
    }

    /// Makes this recording, or goes on with it.
    #[must_use]
    pub fn keep(recording: &Path) -> Self {
        Self { inputs: Vec::new(), output: Some(recording.to_owned()), kept: true }
    }

    /// Makes new files: this one, or some in this folder.
    #[must_use]
    pub fn write(self, output: Option<&Path>) -> Self {
        Self { output: output.map(Path::to_owned), ..self }
    }

    /// Those that are opened, with what SQLite keeps beside them.
    fn opened(&self) -> Vec<PathBuf> {
        let mut opened = Vec::new();
        for input in &self.inputs {
            // SQLite looks beside the file itself, and we beside its name.
            let itself = std::fs::canonicalize(input).ok().filter(|itself| itself != input);
            for name in [Some(input.clone()), itself].into_iter().flatten() {
                opened.extend(with_endings(&name, ["", "-wal", "-shm"]));
            }
        }
        opened
    }

    /// The files of a recording that is to be made, or gone on with.
    fn kept(&self) -> Vec<PathBuf> {
        let kept = self.output.as_deref().filter(|_| self.kept);
        kept.map_or_else(Vec::new, |path| with_endings(path, ["", "-wal", "-shm", "-lock"]))
    }

    /// The folder that gets new entries. Where the output is a folder, or is to become one, that is the one above.
    fn written(&self) -> Vec<PathBuf> {
        let Some(output) = &self.output else { return Vec::new() };
        let above = match output.parent() {
            Some(above) if above.as_os_str().is_empty() => PathBuf::from("."),
            Some(above) => above.to_owned(),
            None => output.clone(),
        };
        if output.is_dir() { vec![output.clone()] } else { vec![above] }
    }
}

fn with_endings<const N: usize>(path: &Path, endings: [&str; N]) -> Vec<PathBuf> {
    let with = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    endings.map(with).into()
}

/// What could not be given up, in words.
#[derive(Debug, Default)]
pub struct NotGivenUp {
    /// The kernel has what it takes, and it failed.
    pub failed: Vec<String>,
    /// The kernel doesn't have it.
    pub lacking: Vec<String>,
}

/// Gives up what this work doesn't take. It never fails: what could not be given up is told, and that is all.
#[must_use]
pub fn enter(work: Work, files: &Files, roots: &Roots) -> NotGivenUp {
    let mut wanted = rights_of(work, &roots.release());
    wanted.extend(rights::to_reach(&files.opened(), &files.kept(), &files.written()));
    let (has_landlock, has_seccomp) = (files::version().is_ok(), calls::is_supported());
    let steps = [
        ("capabilities", true, rights::keep_only(&wanted)),
        ("new privileges", true, rights::no_new_privileges()),
        // It would also shut out other processes' folders in /proc (hook_ptrace_access_check, security/landlock/task.c).
        ("files", has_landlock, if work == Work::Reads { files::confine(files) } else { Ok(()) }),
        // Last: it forbids what the others do.
        ("system calls", has_seccomp, calls::confine(work)),
    ];
    let mut not = NotGivenUp::default();
    for (what, is_there, result) in steps {
        if let Err(error) = result {
            let told = if is_there { &mut not.failed } else { &mut not.lacking };
            told.push(format!("{what}: {error}"));
        }
    }
    not
}

/// The capabilities that a kind of work takes, whatever its files are.
fn rights_of(work: Work, release: &str) -> Vec<Capability> {
    use Capability::{DacReadSearch, NetAdmin, NetRaw, SysAdmin, SysPtrace, SysResource, Syslog};
    let mut rights = Vec::new();
    if work != Work::Reads {
        // ctnetlink; setns, and with it all that CAP_BPF and CAP_PERFMON allow; /proc/PID/ns.
        rights.extend([NetAdmin, SysAdmin, SysPtrace]);
    }
    if matches!(work, Work::Watches | Work::RunsPrograms) {
        // The kernel's addresses; whose socket it is (/proc/PID/fd).
        rights.extend([Syslog, DacReadSearch]);
        if release_number(release).is_none_or(|number| number < (5, 11)) {
            // Maps count against RLIMIT_MEMLOCK.
            rights.push(SysResource);
        }
    }
    if work == Work::RunsPrograms {
        // iptables-legacy-save reads its tables over a raw socket.
        rights.push(NetRaw);
    }
    rights
}

/// What there is to confine a process, in words.
#[derive(Debug)]
pub struct Support {
    /// What this kernel has.
    pub has: String,
    /// What it doesn't have.
    pub lacks: Option<String>,
    /// What it has and doesn't do.
    pub fails: Option<String>,
}

/// What this kernel has of what confines a process, and whether it does it: tried by a thread that is gone then.
#[must_use]
pub fn support() -> Support {
    let (mut has, mut lacks) = (vec!["capabilities".to_owned(), "no_new_privs".to_owned()], Vec::new());
    let mut fails = Vec::new();
    let mut tried = |name: &str, what: String, works: io::Result<()>| match works {
        Ok(()) => has.push(what),
        Err(error) => fails.push(format!("{name}: {error}")),
    };
    match calls::is_supported() {
        true => tried(
            "seccomp",
            "seccomp".to_owned(),
            aside(|| rights::no_new_privileges().and_then(|()| calls::confine(Work::Reads))),
        ),
        false => lacks.push("seccomp (CONFIG_SECCOMP_FILTER)".to_owned()),
    }
    match files::version() {
        Ok(version) => {
            let works = aside(|| files::confine(&Files::default()));
            tried("Landlock", format!("Landlock (version {version})"), works);
        }
        Err(why) => lacks.push(format!("Landlock ({why})")),
    }
    let joined = |all: Vec<String>| (!all.is_empty()).then(|| all.join(", "));
    Support { has: has.join(", "), lacks: joined(lacks), fails: joined(fails) }
}

/// On a thread of its own: what is given up there is not given up elsewhere.
fn aside(work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_need_nothing_and_each_kind_of_work_needs_what_the_ones_before_it_do() {
        assert!(rights_of(Work::Reads, "6.12.0").is_empty());
        let kinds = [Work::Reads, Work::Lists, Work::Watches, Work::RunsPrograms];
        for pair in kinds.windows(2) {
            let [less, more] = [pair[0], pair[1]].map(|work| rights_of(work, "6.12.0"));
            assert!(more.starts_with(&less) && more.len() > less.len(), "{pair:?}");
        }
    }

    #[test]
    fn locked_memory_is_no_matter_from_5_11_on() {
        for (release, needed) in [("5.10.0-43-cloud-amd64", true), ("5.11.0", false), ("7.3.1", false)] {
            let rights = rights_of(Work::Watches, release);
            assert_eq!(rights.contains(&Capability::SysResource), needed, "{release}");
        }
    }

    #[test]
    fn new_files_go_into_the_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let written = |path: &Path| Files::default().write(Some(path)).written();
        assert_eq!(written(&folder.path().join("new.html")), [folder.path()]);
        assert_eq!(written(folder.path()), [folder.path()]);
        assert_eq!(written(Path::new("new.html")), [Path::new(".")]);
        assert!(Files::default().written().is_empty());
    }
}
