//! Where people run ctwatch: in containers, pods and services, each made here as its engine makes it, as far as rights go.
//! Only in a throw-away guest: lockdown can't be taken back. What ctwatch is to say there is for others to judge.

mod asked;
mod bundle;

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::netns::{Netns, own_inode};
use crate::nftables;
use crate::shell::ended;
use crate::table::{self, Mix};
use asked::against_check;
pub use asked::{Answer, Asked, Cell};
use bundle::{Bundle, Filter, Rights};

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// One place to run in.
pub struct Environment {
    /// What people call it.
    pub name: &'static str,
    /// How it is made here.
    pub how: &'static str,
    kind: Kind,
}

enum Kind {
    /// Run by this program, with what comes after its own arguments.
    By(&'static [&'static str]),
    /// A container of runc's.
    Container(Bundle),
    /// On the host, once its kernel is locked down so.
    LockedDown(&'static str),
}

/// As docker gives them (moby, daemon/pkg/oci/caps/defaults.go); containerd's are the same.
const DOCKER: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
/// As podman gives them (containers/common, pkg/config/default.go).
const PODMAN: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A user that hidepid hides others from.
const HIDEPID_AS_USER: &[&str] = &[
    "unshare",
    "-m",
    "bash",
    "-c",
    "busybox mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"",
    "bash",
];
/// Root, whom it hides others from without CAP_SYS_PTRACE.
const HIDEPID_AS_ROOT: &[&str] = &[
    "unshare",
    "-m",
    "bash",
    "-c",
    "busybox mount -t proc -o hidepid=2 proc /proc && exec setpriv --inh-caps -all --bounding-set -sys_ptrace \"$@\"",
    "bash",
];

/// All of them, in the order of the table. Those that lock the kernel down are the last, as it stays so.
#[must_use]
pub fn all() -> Vec<Environment> {
    let container = |name, how, bundle| Environment { name, how, kind: Kind::Container(bundle) };
    let by = |name, how, line| Environment { name, how, kind: Kind::By(line) };
    vec![
        by("the host, root", "nothing is taken away", &["env"]),
        by(
            "the host, another user",
            "uid 65534",
            &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
        ),
        container(
            "docker run",
            "docker's capabilities, netns and pids of its own; docker's seccomp profile in what it refuses without CAP_SYS_ADMIN",
            Bundle::new(Rights::Only(DOCKER)).filtered(Filter::Engine),
        ),
        container(
            "docker run --network host --pid host --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add SYSLOG --cap-add SYS_PTRACE",
            "the same with these, for which the profile lets bpf(), perf_event_open() and setns() pass",
            Bundle::new(Rights::And(DOCKER, &["SYS_ADMIN", "NET_ADMIN", "SYSLOG", "SYS_PTRACE"]))
                .with_host_pids()
                .with_host_netns(),
        ),
        container(
            "docker run --privileged",
            "all capabilities, no profile; netns and pids of its own",
            Bundle::new(Rights::All),
        ),
        container(
            "podman run, rootless",
            "podman's capabilities in a user namespace that maps 65,536 users, and that profile",
            Bundle::new(Rights::Only(PODMAN)).in_user_namespace().filtered(Filter::Engine),
        ),
        container(
            "a pod in Kubernetes",
            "containerd's capabilities, no profile (seccompProfile is Unconfined unless asked for)",
            Bundle::new(Rights::Only(DOCKER)),
        ),
        container(
            "a privileged pod, hostNetwork: true",
            "all capabilities; the host's netns, pids of its own",
            Bundle::new(Rights::All).with_host_netns(),
        ),
        container(
            "a privileged pod, hostPID: true",
            "all capabilities; the host's pids, a netns of its own",
            Bundle::new(Rights::All).with_host_pids(),
        ),
        container(
            "a privileged pod, hostPID and hostNetwork: true",
            "all capabilities; the host's pids and netns",
            Bundle::new(Rights::All).with_host_pids().with_host_netns(),
        ),
        container(
            "LXC, unprivileged",
            "all capabilities in a user namespace that maps 65,536 users; LXC's seccomp list refuses nothing that matters here",
            Bundle::new(Rights::All).in_user_namespace(),
        ),
        by("unshare -U -r -n", "util-linux", &["unshare", "-U", "-r", "-n"]),
        by("hidepid=2, another user", "a /proc mounted so, uid 65534", HIDEPID_AS_USER),
        by(
            "hidepid=2, root without CAP_SYS_PTRACE",
            "a /proc mounted so, as ProtectProc=invisible does",
            HIDEPID_AS_ROOT,
        ),
        container(
            "a seccomp profile that refuses the calls",
            "all capabilities, the host's namespaces; bpf(), perf_event_open() and setns() get EPERM, as with SystemCallFilter=@system-service",
            Bundle::new(Rights::All).with_host_pids().with_host_netns().filtered(Filter::Calls(&[
                "bpf",
                "perf_event_open",
                "setns",
            ])),
        ),
        Environment {
            name: "lockdown=integrity",
            how: "written to /sys/kernel/security/lockdown",
            kind: Kind::LockedDown("integrity"),
        },
        Environment {
            name: "lockdown=confidentiality",
            how: "the same",
            kind: Kind::LockedDown("confidentiality"),
        },
    ]
}

impl Environment {
    /// The one of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self> {
        all().into_iter().find(|one| one.name == name).with_context(|| format!("no environment {name:?}"))
    }

    /// Runs a command line there, to its end.
    ///
    /// # Errors
    /// It can't be made here, or the command doesn't end.
    pub fn run(&self, line: &[&str]) -> Result<Output> {
        match &self.kind {
            Kind::By(program) => ended(Command::new(program[0]).args(&program[1..]).args(line)),
            Kind::Container(bundle) => bundle.run(line),
            Kind::LockedDown(mode) => {
                lock_down(mode)?;
                ended(Command::new(line[0]).args(&line[1..]))
            }
        }
    }
}

/// Locks the kernel down, if it isn't yet.
fn lock_down(mode: &str) -> Result<()> {
    if !fs::exists(LOCKDOWN)? {
        crate::shell::sh("busybox mount -t securityfs securityfs /sys/kernel/security")?;
    }
    let is = || fs::read_to_string(LOCKDOWN).context("this kernel has no lockdown");
    let wanted = format!("[{mode}]");
    if !is()?.contains(&wanted) {
        fs::write(LOCKDOWN, mode).with_context(|| format!("locking the kernel down to {mode}"))?;
    }
    ensure!(is()?.contains(&wanted), "the kernel is not locked down to {mode}");
    Ok(())
}

/// What there is to be seen, by inode number: the host's netns, and another one in which a process lives.
pub struct Namespaces {
    host: u64,
    other: u64,
}

/// A process that lives in a netns until this is dropped, as a container's do.
struct Inhabitant(Child);

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs each command in each environment whose name contains `only`, and returns the rows of the table.
///
/// # Errors
/// An environment can't be made, or a command neither works nor says why not: all of these at once.
pub fn table(only: &str) -> Result<String> {
    nftables::track()?;
    table::fill_to(Mix::Realistic, 200)?;
    // What a host with containers has: another netns, which tracks.
    let other = Netns::create("elsewhere")?;
    other.run(nftables::track)?;
    let lives = Command::new("ip")
        .args(["netns", "exec", other.name(), "sleep", "3600"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("a process for another netns")?;
    let _inhabitant = Inhabitant(lives);
    let namespaces = Namespaces { host: own_inode()?, other: other.inode() };
    let (mut text, mut wrong) = (String::new(), Vec::new());
    for environment in all().iter().filter(|one| one.name.contains(only)) {
        let (mut cells, mut has_other) = (Vec::new(), Vec::new());
        for asked in Asked::ALL {
            let started = Instant::now();
            let answer = asked.in_environment(environment, &namespaces);
            let shown =
                answer.as_ref().map_or_else(|error| format!("{error:#}"), |answer| answer.cell.to_string());
            let took = started.elapsed().as_secs_f64();
            eprintln!("{}: {}: {shown} ({took:.1} s)", environment.name, asked.name());
            match answer {
                Ok(answer) => {
                    cells.push(shown);
                    has_other.push((asked, answer.has_other));
                }
                Err(_) => wrong.push(shown),
            }
        }
        wrong.extend(against_check(&has_other).map(|text| format!("{}: {text}", environment.name)));
        text += &format!("| {} | {} | {} |\n", environment.name, environment.how, cells.join(" | "));
    }
    ensure!(
        wrong.is_empty(),
        "{} cells have no words, or others than they should: {}",
        wrong.len(),
        wrong.join("; ")
    );
    Ok(text)
}
