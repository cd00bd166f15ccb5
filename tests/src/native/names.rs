//! Processes, cgroups and a netns are called what acts on a terminal, and lose packets and hold entries under these names: no
//! command and no format hands any of it on. As an attacker would, who chooses what is named here.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use ::ctwatch::foreign::is_hidden;
use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::checks::Checks;
use crate::shell::run;
use crate::table::{self, Mix};

/// Names of programs, of which the kernel keeps 15 bytes, and of their cgroups.
const HOSTILE: [&[u8]; 4] = [
    b"\x1b[2J\x1b]0;t\x07",
    b"a\nerror: b\r\x08",
    "\u{202e}gpj\u{2066}\u{200b}x".as_bytes(),
    b"\xff\x9b2J\x90x\x9c",
];
/// The netns; and how it is shown.
const NETNS: &[u8] = b"\x1b[31mred\n\xe2\x80\xae|<b>\xff";
const NETNS_SHOWN: &str = r"\x1b[31mred\n\u{202e}|<b>\xff";
/// A packet each hundredth of a second, to four ports.
const SEND: &str =
    "while :; do echo x > /dev/udp/127.0.0.1/$((RANDOM % 4 + 2000)); read -t 0.01 <&9; done 2>/dev/null";

/// Processes that lose packets, and their cgroups. They end with this.
struct Attackers {
    children: Vec<Child>,
    cgroups: Vec<PathBuf>,
    folder: TempDir,
}

impl Attackers {
    /// Where cgroups can be made, each has one of its own; whether they have.
    fn start() -> Result<(Self, bool)> {
        let folder = tempfile::tempdir().context("a folder for programs")?;
        let mut attackers = Self { children: Vec::new(), cgroups: Vec::new(), folder };
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let root = root.into_iter().find(|root| root.join("cgroup.procs").exists());
        for name in HOSTILE {
            let program = attackers.folder.path().join(OsStr::from_bytes(name));
            fs::copy("/bin/bash", &program).context("copying bash")?;
            let line = format!("exec 9<> <(:); {SEND}");
            let mut command = Command::new(&program);
            command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn().context("starting a sender")?;
            let pid = child.id();
            attackers.children.push(child);
            let Some(root) = root else { continue };
            // A line break is the one thing that cgroupfs refuses (cgroup_mkdir, kernel/cgroup/cgroup.c).
            let name: Vec<u8> = name.iter().copied().filter(|byte| *byte != b'\n').collect();
            let cgroup = root.join(OsStr::from_bytes(&[b"ctw-", &name[..], b".service"].concat()));
            if fs::create_dir(&cgroup).is_ok() {
                attackers.cgroups.push(cgroup.clone());
                fs::write(cgroup.join("cgroup.procs"), pid.to_string()).context("moving a sender")?;
            }
        }
        let moved = !attackers.cgroups.is_empty();
        Ok((attackers, moved))
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for cgroup in &self.cgroups {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// Gives this thread's netns its name, where only this thread and what it starts see it.
fn name_this_netns() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of its own")?;
    run(&["mount", "--make-rprivate", "/"])?;
    run(&["mkdir", "-p", "/run/netns"])?;
    run(&["mount", "-t", "tmpfs", "none", "/run/netns"])?;
    let path = Path::new("/run/netns").join(OsStr::from_bytes(NETNS));
    fs::write(&path, "").context("a file for the name of a netns")?;
    // SAFETY: no preconditions.
    let thread = unsafe { libc::gettid() };
    let bound = Command::new("mount").arg("--bind").arg(format!("/proc/{thread}/ns/net")).arg(&path).status();
    ensure!(bound.context("starting mount")?.success(), "the netns can't be given a name");
    Ok(())
}

/// What was said, and by whom.
struct Said {
    what: String,
    output: Output,
}

fn ctwatch(arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new("ctwatch");
    command.args(arguments).env("TERM", "xterm").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting ctwatch")
}

/// Runs them at once.
fn said(lines: &[Vec<&str>]) -> Result<Vec<Said>> {
    thread::scope(|scope| {
        // They are where the thread is that starts them.
        let started = lines.iter().map(|line| {
            let child = ctwatch(line)?;
            let read = move || Ok(Said { what: line.join(" "), output: child.wait_with_output()? });
            Ok(scope.spawn(read))
        });
        let started = started.collect::<Result<Vec<_>>>()?;
        started.into_iter().map(|one| one.join().map_err(|_| anyhow!("a reader panicked"))?).collect()
    })
}

/// The table of this thread's netns is full.
pub(super) fn act_on_nothing(checks: &mut Checks) -> Result<()> {
    name_this_netns()?;
    let (attackers, in_cgroups) = Attackers::start()?;
    let folder = tempfile::tempdir().context("a folder for a recording")?;
    let file = folder.path().join("a.ctw").display().to_string();
    table::fill(Mix::Assured)?;
    let drops = |more: &[&'static str]| {
        [&["drops", "--backend", "tracepoint", "--duration", "4s"][..], more].concat()
    };
    let mut all = said(&[
        drops(&["--by", "process"]),
        drops(&["--by", "container", "--events"]),
        drops(&["--by", "netns", "--format", "json", "--events"]),
        vec!["table", "--by", "netns"],
        vec!["table", "--by", "container", "--format", "json"],
        vec!["advise", "--window", "4s"],
        vec!["advise", "--window", "4s", "--format", "sh"],
        vec!["advise", "--window", "4s", "--format", "json"],
        vec!["record", "--backend", "tracepoint", "--duration", "12s", "--when", "drops>0", "-o", &file],
    ])?;
    drop(attackers);
    all.extend(said(&[
        vec!["report", &file],
        vec!["report", &file, "--format", "markdown"],
        vec!["report", &file, "--format", "html"],
        vec!["report", &file, "--format", "json"],
        vec!["replay", &file, "--speed", "max", "--by", "process"],
        vec!["replay", &file, "--speed", "max", "--format", "json", "--events"],
        vec!["advise", "--recording", &file],
        vec!["export", &file, "--to", "csv", "--table", "losses"],
        vec!["export", &file, "--to", "ndjson"],
        vec!["drops", "--netns", "nosuch"],
    ])?);
    let of = |what: &str| -> String {
        let those = all.iter().filter(|said| said.what.contains(what));
        those.map(|said| String::from_utf8_lossy(&said.output.stdout).into_owned()).collect()
    };
    for Said { what, output } in &all {
        for (stream, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            let text = std::str::from_utf8(bytes).map_err(|error| format!("{what}: {stream}: {error}"));
            let Ok(text) = text.inspect_err(|error| checks.that(false, error.clone())) else { continue };
            let acts = text.lines().find(|line| line.chars().any(is_hidden) || line.starts_with("error: b"));
            checks.that(acts.is_none(), format!("{what}: {stream}: {acts:?}"));
        }
        let (code, error) = (output.status.code(), String::from_utf8_lossy(&output.stderr));
        let expected = match what.contains("nosuch") {
            true => 2,
            // A large table takes longer to list than this recording lasted.
            false if error.contains("the recording has no table listing") => 1,
            false => 0,
        };
        checks.that(code == Some(expected), format!("{what}: {code:?}: {error}"));
    }
    // They were there, and are told what they are.
    let shown = [
        r"\x1b[2J\x1b]0;t\x07[",
        r"a\nerror: b\r\x08[",
        r"\u{202e}gpj\u{2066}\u{200b}",
        r"\xff\x9b2J\x90x\x9c[",
    ];
    for name in shown {
        for what in ["drops --backend tracepoint --duration 4s --by process", "replay"] {
            checks.that(of(what).contains(name), format!("{what} doesn't show {name}: {}", of(what)));
        }
    }
    for what in ["table --by netns", "report"] {
        checks.that(of(what).contains(NETNS_SHOWN), format!("{what} doesn't show the netns: {}", of(what)));
    }
    if in_cgroups {
        let unit = r"unit:ctw-\x1b[2J";
        checks.that(of("--by container --events").contains(unit), format!("no row of {unit}"));
    }
    checks.figure("hostile names in", format!("{} outputs", 2 * all.len()));
    Ok(())
}
