//! A container as runc starts it, with the guest's own programs in it and the rights that an engine would give.
//! Each run is a container of its own, gone when the command has ended.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::ended;
use crate::shell::run;

/// Which capabilities.
#[derive(Clone, Copy)]
pub(super) enum Rights {
    /// All that the kernel has.
    All,
    /// These.
    Only(&'static [&'static str]),
    /// These and those.
    And(&'static [&'static str], &'static [&'static str]),
}

/// Which calls are refused.
#[derive(Clone, Copy)]
pub(super) enum Filter {
    /// None.
    Off,
    /// What docker's and podman's profiles refuse to who lacks CAP_SYS_ADMIN (moby/profiles, seccomp/default_linux.go).
    Engine,
    /// These.
    Calls(&'static [&'static str]),
}

/// Those of [`Filter::Engine`]: EPERM, but for clone3, which is hidden.
const REFUSED_BY_ENGINES: &[&str] = &[
    "bpf",
    "perf_event_open",
    "setns",
    "mount",
    "umount2",
    "unshare",
    "pivot_root",
    "fsopen",
    "fsmount",
    "fsconfig",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "quotactl",
    "syslog",
    "sethostname",
    "setdomainname",
    "lookup_dcookie",
    "fanotify_init",
    "add_key",
    "keyctl",
    "request_key",
    "userfaultfd",
    "kexec_load",
    "kexec_file_load",
    "init_module",
    "finit_module",
    "delete_module",
    "reboot",
    "swapon",
    "swapoff",
    "acct",
    "settimeofday",
    "clock_settime",
    "open_by_handle_at",
];

/// The capabilities of Linux 5.10 and later.
const ALL: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// How a container is to be.
pub(super) struct Bundle {
    rights: Rights,
    filter: Filter,
    host_pids: bool,
    host_netns: bool,
    user_namespace: bool,
}

impl Bundle {
    pub const fn new(rights: Rights) -> Self {
        Self { rights, filter: Filter::Off, host_pids: false, host_netns: false, user_namespace: false }
    }

    pub const fn filtered(self, filter: Filter) -> Self {
        Self { filter, ..self }
    }

    pub const fn with_host_pids(self) -> Self {
        Self { host_pids: true, ..self }
    }

    pub const fn with_host_netns(self) -> Self {
        Self { host_netns: true, ..self }
    }

    pub const fn in_user_namespace(self) -> Self {
        Self { user_namespace: true, ..self }
    }

    /// Runs a command line in a new container.
    pub fn run(&self, line: &[&str]) -> Result<Output> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("ctw-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = bundle(if self.user_namespace { FIRST_USER } else { 0 })?;
        let bundle = folder.path().to_str().context("the bundle's path")?;
        run(&["runc", "spec", "--bundle", bundle])?;
        let file = folder.path().join(CONFIG);
        let spec: Value = serde_json::from_slice(&fs::read(&file)?).context("runc's config.json")?;
        fs::write(&file, self.config(spec, line).to_string())?;
        let output = ended(Command::new("runc").args(["run", "--bundle", bundle, &name]));
        // It is gone already, unless it was killed.
        let _ = Command::new("runc").args(["delete", "--force", &name]).output();
        output
    }

    fn config(&self, mut config: Value, line: &[&str]) -> Value {
        let names: Vec<String> = self.capabilities().map(|name| format!("CAP_{name}")).collect();
        let process = &mut config["process"];
        process["terminal"] = false.into();
        process["args"] = line.into();
        process["env"] = json!([format!("PATH={}", std::env::var("PATH").unwrap_or_default())]);
        process["noNewPrivileges"] = false.into();
        process["capabilities"] = json!({ "bounding": names, "effective": names, "permitted": names });
        config["root"] = json!({ "path": ROOT, "readonly": true });
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.push(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" }));
            for folder in PROGRAMS.iter().filter(|folder| Path::new(folder).is_dir()) {
                mounts.push(bound(folder));
            }
            if self.user_namespace || self.host_netns {
                // A sysfs of its own takes a netns of its own; engines bind the host's.
                mounts.retain(|mount| {
                    mount["destination"] != "/sys" && mount["destination"] != "/sys/fs/cgroup"
                });
                mounts.push(bound("/sys"));
            }
        }
        let namespaces = ["mount", "ipc", "uts", "cgroup"]
            .into_iter()
            .chain((!self.host_pids).then_some("pid"))
            .chain((!self.host_netns).then_some("network"))
            .chain(self.user_namespace.then_some("user"));
        config["linux"]["namespaces"] = namespaces.map(|kind| json!({ "type": kind })).collect();
        if let Rights::All = self.rights {
            // --privileged masks nothing, and leaves /sys writable.
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
        }
        if self.user_namespace {
            let map = json!([{ "containerID": 0, "hostID": FIRST_USER, "size": 65_536 }]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
        }
        let refused: &[&str] = match self.filter {
            Filter::Off => &[],
            Filter::Engine => REFUSED_BY_ENGINES,
            Filter::Calls(calls) => calls,
        };
        if !refused.is_empty() {
            let mut rules = vec![json!({ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 })];
            if let Filter::Engine = self.filter {
                rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }));
            }
            config["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules
            });
        }
        config
    }

    fn capabilities(&self) -> Box<dyn Iterator<Item = &'static str>> {
        match self.rights {
            Rights::All => Box::new(ALL.iter().copied()),
            Rights::Only(some) => Box::new(some.iter().copied()),
            Rights::And(some, more) => Box::new(some.iter().chain(more).copied()),
        }
    }
}

const CONFIG: &str = "config.json";
const ROOT: &str = "rootfs";
/// What a container gets of the guest, to run programs.
const PROGRAMS: &[&str] = &["/bin", "/sbin", "/lib", "/lib64", "/usr", "/etc", "/ctw"];
/// The first user that a user namespace maps.
const FIRST_USER: u32 = 100_000;

fn bound(folder: &str) -> Value {
    let options = ["rbind", "nosuid", "nodev", "ro"];
    json!({ "destination": folder, "type": "none", "source": folder, "options": options })
}

/// A bundle: all that is mounted in it is in the container's own mount namespace, and goes with it.
fn bundle(owner: u32) -> Result<TempDir> {
    let folder = tempfile::tempdir().context("a folder for the bundle")?;
    let root = folder.path().join(ROOT);
    fs::create_dir(&root)?;
    // A user namespace's root is not root here.
    for path in [folder.path(), &root] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    std::os::unix::fs::chown(&root, Some(owner), Some(owner))?;
    Ok(folder)
}
