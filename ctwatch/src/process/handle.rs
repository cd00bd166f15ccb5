//! One process, looked at through its folder of /proc as it was when first opened: a number that goes to another process
//! meanwhile leads nowhere. Whatever the process chooses the size of is cut.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::patience::{Unanswered, within};
use crate::files::process_root::{ProcessFolder, ProcessRoot};
use crate::foreign::Foreign;
use crate::kernel::roots::Roots;

/// A name has 15 letters.
const NAME: u64 = 64;
/// Arguments may be megabytes; those of Java programs are, nearly.
const ARGUMENTS: u64 = 1 << 20;
/// Words among them.
const WORDS: usize = 1 << 14;
/// A file of the kernel's of which the process decides the length.
const LISTS: u64 = 4 << 20;
/// The longest line of /proc/PID/stat, and all of /proc/PID/cgroup: the kernel cuts each path at 4 KiB.
const LINES: u64 = 128 << 10;
/// How long a process's own files may take: its file system may be one that never answers.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    folder: ProcessFolder,
}

/// What a process has been running since when. Another program has its code, stack and heap elsewhere: these places are drawn
/// anew by exec (load_elf_binary, fs/binfmt_elf.c).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    started: Option<u64>,
    places: [Option<u64>; 3],
    program: Option<PathBuf>,
}

impl Process {
    /// The process that has this number now.
    ///
    /// # Errors
    /// There is none.
    pub fn open(roots: &Roots, pid: u32) -> io::Result<Self> {
        Ok(Self { pid, folder: ProcessFolder::open(&roots.proc(pid.to_string()))? })
    }

    /// Looks at a process for a second at most.
    ///
    /// # Errors
    /// It takes longer, or others before it did.
    pub fn look<T: Send + 'static>(
        roots: &Roots,
        pid: u32,
        look: impl FnOnce(&Self) -> Option<T> + Send + 'static,
    ) -> Result<Option<T>, Unanswered> {
        let roots = roots.clone();
        within(PATIENCE, move || Self::open(&roots, pid).ok().and_then(|process| look(&process)))
    }

    /// What it runs now; the same at two times means that it was so in between. `None` once it has ended.
    #[must_use]
    pub fn image(&self) -> Option<Image> {
        let text = self.folder.read("stat", LINES).ok()?;
        // Its name, in brackets, may have brackets and blanks.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = Foreign::from_bytes(&text[end + 1..]).into_raw();
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // As proc_pid_stat(5) numbers them, of which the first two are left behind.
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        let (start_code, start_stack, start_brk) = (26, 28, 47);
        let places = [start_code, start_stack, start_brk].map(field);
        Some(Image { started: field(22), places, program: self.program() })
    }

    /// When it started, in ticks since boot: of two processes that have one number one after the other, these differ.
    #[must_use]
    pub fn started(&self) -> Option<u64> {
        self.image()?.started
    }

    /// Its open files: of sockets the inode number.
    pub(super) fn files(&self) -> impl Iterator<Item = Option<u64>> + use<> {
        self.folder
            .open_files()
            .into_iter()
            .flatten()
            .map(|file| file.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
    }

    /// The sockets among the first `most` of its files, by inode number: those it listens on came before its connections.
    pub fn sockets(&self, most: usize) -> impl Iterator<Item = u64> + use<> {
        self.files().take(most).flatten()
    }

    /// Whether it has more open files than these.
    #[must_use]
    pub fn has_more_files(&self, most: usize) -> bool {
        self.files().nth(most).is_some()
    }

    /// The lines of /proc/PID/cgroup.
    pub(super) fn cgroups(&self) -> Option<Foreign> {
        let text = self.folder.read("cgroup", LINES).ok()?;
        // One that was cut has a last line that isn't whole.
        ((text.len() as u64) < LINES).then(|| Foreign::from_bytes(&text))
    }

    /// The kernel's name for it.
    #[must_use]
    pub fn name(&self) -> Option<Foreign> {
        Some(Foreign::from_bytes(&self.comm()?))
    }

    pub(super) fn comm(&self) -> Option<Vec<u8>> {
        Some(self.folder.read("comm", NAME).ok()?.trim_ascii_end().to_owned())
    }

    /// The arguments it was started with, its own name first, as far as they go within a megabyte.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let Ok(text) = self.folder.read("cmdline", ARGUMENTS) else { return Vec::new() };
        let words = text.split(|byte| *byte == 0).take(WORDS);
        let mut words: Vec<String> = words.map(|word| Foreign::from_bytes(word).into_raw()).collect();
        // Programs that write their title over their arguments leave a tail of zeros.
        while words.last().is_some_and(String::is_empty) {
            words.pop();
        }
        words
    }

    /// What the kernel says of it: ids, capabilities.
    pub(super) fn status(&self) -> io::Result<String> {
        Ok(Foreign::from_bytes(&self.folder.read("status", LISTS)?).into_raw())
    }

    /// Where one of its links leads, in words.
    pub(super) fn link(&self, name: &str) -> io::Result<PathBuf> {
        self.folder.link(name)
    }

    /// The name of its program's file, as this process sees it.
    #[must_use]
    pub fn program(&self) -> Option<PathBuf> {
        self.folder.link("exe").ok()
    }

    /// The file of its program, as a name only. May hang, as all that follows.
    pub(super) fn program_file(&self) -> io::Result<std::fs::File> {
        self.folder.follow("exe")
    }

    /// The first bytes of its program.
    ///
    /// # Errors
    /// It can't be read.
    pub fn program_beginning(&self, most: u64) -> io::Result<Vec<u8>> {
        self.folder.beginning("exe", most)
    }

    /// The files it has mapped, as the kernel lists them, as far as they go within some megabytes.
    #[must_use]
    pub fn maps(&self) -> Vec<u8> {
        self.folder.read("maps", LISTS).unwrap_or_default()
    }

    /// Its own root, for the files that it names.
    ///
    /// # Errors
    /// It may not be looked at.
    pub fn root(&self) -> io::Result<ProcessRoot> {
        self.folder.root()
    }

    /// A file of configuration that it names, as text.
    ///
    /// # Errors
    /// It can't be found in its root, is no regular file, or is larger than a megabyte.
    pub fn configuration(&self, path: &Path) -> io::Result<String> {
        /// No file of settings is that long.
        const MOST: u64 = 1 << 20;
        // One odd byte in a comment must not hide the rest.
        Ok(Foreign::from_bytes(&self.root()?.read(path, MOST)?).into_raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_is_what_it_is() {
        let roots = Roots::default();
        let own = Process::open(&roots, std::process::id()).unwrap();
        assert!(own.name().is_some_and(|name| !name.is_empty() && !name.raw().ends_with('\n')));
        assert_eq!(own.arguments(), std::env::args().collect::<Vec<_>>());
        assert_eq!(own.program(), std::env::current_exe().ok());
        assert_eq!(own.program_beginning(4).unwrap(), b"\x7fELF");
        assert!(!own.maps().is_empty());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "text").unwrap();
        assert_eq!(own.configuration(file.path()).unwrap(), "text");
        assert!(own.configuration(Path::new("/dev/zero")).is_err());
    }

    #[test]
    fn whoever_has_ended_is_not_taken_for_another_one() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(&Roots::default(), child.id()).unwrap();
        assert!(process.name().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.name(), None);
        assert!(process.root().is_err() && process.arguments().is_empty());
    }

    #[test]
    fn arguments_without_an_end_are_cut() {
        let many: Vec<String> = (0..20_000).map(|number| format!("--flag-{number}")).collect();
        let mut child =
            std::process::Command::new("sh").args(["-c", "sleep 60", "sh"]).args(&many).spawn().unwrap();
        let process = Process::open(&Roots::default(), child.id()).unwrap();
        // Until the child has become that program.
        let mut arguments = process.arguments();
        for _ in 0..2000 {
            if arguments.iter().any(|word| word == "--flag-1") {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            arguments = process.arguments();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(arguments.len(), WORDS);
    }
}
