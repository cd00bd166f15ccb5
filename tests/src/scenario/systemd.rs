//! The unit of docs/record under a living systemd: readiness, what its sandbox lets through, its caps, reload and stop.
//! systemd is the first process of a pid namespace with a /run, a /tmp and cgroups of its own: the guest may not notice.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ::ctwatch::record::Recording;
use ::ctwatch::record::rows::{EndReason, SnapshotReason};
use anyhow::{Context, Result, ensure};

use super::record::Held;
use super::{Guest, Outcome, module};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::nftables;
use crate::shell::{run, sh};
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

/// As emulation may be slow.
const PATIENCE: Duration = Duration::from_secs(90);
const UNIT: &str = "ctwatch-record";
const INSTALLED: [&str; 4] = [
    "/usr/local/bin/ctwatch",
    "/etc/systemd/system/ctwatch-record.service",
    // Without one this would be a first boot, which enables all there is.
    "/etc/machine-id",
    STATE,
];
const STATE: &str = "/var/lib/ctwatch";
const CGROUP: &str = "/sys/fs/cgroup/ctw-systemd";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// A netns that is made when the unit runs already, and has its name in systemd's /run alone.
const LATE: &str = "late";

/// What a boot would do to the machine, or waits for devices: none of it is ours to test.
const MASKED: &str = "systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-binfmt systemd-sysctl \
    systemd-modules-load systemd-update-utmp systemd-machine-id-commit systemd-random-seed systemd-remount-fs \
    systemd-sysusers systemd-network-generator kmod-static-nodes";

/// Runs in new pid, mount and cgroup namespaces, and becomes systemd.
const BOOT: &str = "set -e
mount --make-rprivate / && mount --make-rshared /
mount -t proc proc /proc
umount /sys/fs/cgroup && mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /run/systemd/system
for unit in $MASKED; do ln -s /dev/null /run/systemd/system/$unit.service; done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=ctw /lib/systemd/systemd --unit=sysinit.target";

/// systemd, and what it started; all of it ends when this is dropped.
struct Systemd {
    unshare: Child,
    pid: String,
}

impl Systemd {
    fn boot() -> Result<Self> {
        let enable: Vec<String> = CONTROLLERS.iter().map(|one| format!("+{one}")).collect();
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", enable.join(" "))
            .context("enabling controllers")?;
        fs::create_dir_all(CGROUP).context("making a cgroup for systemd")?;
        fs::write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        let line = format!(
            "echo $$ > {CGROUP}/cgroup.procs && exec unshare --fork --kill-child --pid --mount --cgroup sh -c \"$BOOT\""
        );
        let unshare = Command::new("sh")
            .args(["-c", &line])
            .env("BOOT", BOOT)
            .env("MASKED", MASKED)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting systemd")?;
        let mut systemd = Self { unshare, pid: String::new() };
        let id = systemd.unshare.id();
        let children = format!("/proc/{id}/task/{id}/children");
        until("systemd's process", || {
            systemd.pid = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            Ok(!systemd.pid.is_empty())
        })?;
        // A cgroup that has processes of its own may not hand controllers down, and this one is its parent.
        fs::write("/sys/fs/cgroup/cgroup.procs", id.to_string())
            .context("moving unshare out of the cgroup")?;
        until("the end of systemd's start", || {
            // It answers with an exit code other than 0 as long as it is not running, too.
            let state = systemd.inside(&["systemctl", "is-system-running"]).unwrap_or_default();
            Ok(state.trim() == "running")
        })?;
        Ok(systemd)
    }

    /// Runs a command that sees what systemd sees.
    fn inside(&self, line: &[&str]) -> Result<String> {
        run(&[&["nsenter", "-t", &self.pid, "-m", "-p", "-C"], line].concat())
    }

    fn systemctl(&self, line: &[&str]) -> Result<String> {
        self.inside(&[&["systemctl"], line, &[UNIT]].concat())
    }

    fn show(&self, property: &str) -> Result<String> {
        Ok(self.systemctl(&["show", "--value", "-p", property])?.trim().to_owned())
    }

    /// What the unit's cgroup is held to.
    fn cap(file: &str) -> Result<String> {
        let path = format!("{CGROUP}/system.slice/{UNIT}.service/{file}");
        Ok(fs::read_to_string(&path).with_context(|| format!("reading {path}"))?.trim().to_owned())
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        for path in INSTALLED.map(Path::new) {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
        // Its processes are gone a moment later.
        let _ = until("the end of systemd's cgroups", || {
            Ok(sh(&format!("find {CGROUP} -depth -type d -exec rmdir {{}} ;")).is_ok())
        });
        let disable: Vec<String> = CONTROLLERS.iter().map(|one| format!("-{one}")).collect();
        let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", disable.join(" "));
    }
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

pub(super) fn the_unit_records(_: &Guest) -> Result<Outcome> {
    nftables::flush()?;
    if !module::is_built_in() {
        module::unload("nf_conntrack")?;
    }
    let systemd = Systemd::boot()?;
    fs::copy(std::env::current_exe()?.with_file_name("ctwatch"), INSTALLED[0])
        .context("installing ctwatch")?;
    fs::write(INSTALLED[1], include_str!("../../../docs/record/ctwatch-record.service"))?;
    recorded(&systemd).with_context(|| {
        let journal = systemd.inside(&["journalctl", "--no-pager", "-u", UNIT]);
        format!("the journal has: {}", journal.unwrap_or_else(|error| format!("{error:#}")))
    })
}

fn recorded(systemd: &Systemd) -> Result<Outcome> {
    let mut checks = Checks::new();
    let began = Instant::now();
    // This returns when the unit is ready; a host on which nothing is tracked yet is no obstacle.
    systemd.systemctl(&["enable", "--runtime", "--now"])?;
    checks.figure("ready_s", format!("{:.1}", began.elapsed().as_secs_f64()));
    checks.equal("state at once", systemd.show("ActiveState")?.as_str(), "active");
    if !module::is_built_in() {
        let status = systemd.show("StatusText")?;
        checks.that(status.contains("waiting until nf_conntrack is loaded"), format!("status: {status}"));
        // It has nothing to close yet, and goes on waiting.
        systemd.systemctl(&["reload"])?;
    }
    held_to_its_caps(&mut checks)?;
    // A quarter of an emulated CPU is a hundredth of a real one.
    systemd.inside(&["systemctl", "set-property", "--runtime", UNIT, "CPUQuota="])?;
    sh("modprobe -a nf_conntrack nf_conntrack_netlink")?;
    until("the unit to record", || Ok(systemd.show("StatusText")?.starts_with("recording into")))?;
    checks.figure("memory", Systemd::cap("memory.current")?);
    exposure(&mut checks, systemd)?;

    // Before this rule nothing is tracked in either netns.
    let late = ["ip", "netns", "exec", LATE];
    systemd.inside(&["ip", "netns", "add", LATE])?;
    systemd.inside(&[&late[..], &["ip", "link", "set", "lo", "up"]].concat())?;
    let rule = "add table inet t; add chain inet t out { type filter hook output priority 0; }; \
                add rule inet t out ct state new counter";
    systemd.inside(&[&late[..], &["nft", rule]].concat())?;
    systemd.inside(&[&late[..], &["ping", "-c", "1", "127.0.0.1"]].concat())?;

    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let before = Counters::read()?;
    let mut sent = udp::send_on_every_cpu(&Plan::new(loopback(&[514, 6379]), 200))?;
    until("the trigger to fire and its listing to be there", || {
        let file = recordings()?.pop().context("no recording")?;
        let recording = Recording::open(&file)?;
        let Some(run) = recording.runs()?.pop() else { return Ok(false) };
        Ok(recording.listings(run.id)?.iter().any(|one| one.reason == SnapshotReason::Trigger))
    })?;
    systemd.systemctl(&["reload"])?;
    until("a second file", || Ok(recordings()?.len() == 2))?;
    sent.add(&udp::send_on_every_cpu(&Plan::new(loopback(&[514, 6379]), 200))?);
    checks.equal("state after a reload", systemd.show("ActiveState")?.as_str(), "active");
    let began = Instant::now();
    systemd.systemctl(&["stop"])?;
    checks.figure("stop_s", format!("{:.1}", began.elapsed().as_secs_f64()));
    let kernel = Counters::read()?.since(&before);
    for (property, wanted) in
        [("Result", "success"), ("ExecMainStatus", "0"), ("ActiveState", "inactive"), ("NRestarts", "0")]
    {
        checks.equal(property, systemd.show(property)?.as_str(), wanted);
    }

    let mut held = Held::default();
    let (mut names, mut occasions, mut reasons) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut named = 0;
    for file in recordings()? {
        held.add(&file)?;
        let recording = Recording::open(&file)?;
        let run = recording.runs()?.pop().context("no run")?;
        checks.equal("backend", run.run.backend.name(), "kprobe");
        reasons.extend(run.end.map(|end| end.reason));
        names.extend(recording.names(run.id)?.into_values().filter_map(|names| names.name));
        occasions.extend(recording.listings(run.id)?.into_iter().map(|one| one.reason.name()));
        let losses = recording.losses(i64::MIN..=i64::MAX)?;
        named += losses
            .iter()
            .filter(|(_, loss)| {
                loss.sender.is_some_and(|sender| sender.name.bytes().starts_with(b"ctwatch-tests"))
            })
            .count();
        checks.equal("mode of a recording", fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    }
    checks.equal("ends", reasons, vec![EndReason::Rotated, EndReason::Signal]);
    checks.equal("mode of the folder", fs::metadata(STATE)?.permissions().mode() & 0o777, 0o700);
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("named", named);
    checks.that(kernel.get("drop") > 500, "too few packets were lost to show anything");
    checks.equal_maps("recorded table_full per port against EPERM", &held.refused, &sent.refused());
    checks.equal("recorded drop against Δdrop", held.kernel[0] as u64, kernel.get("drop"));
    checks.equal("unexplained in the end", held.unexplained, [0; 4]);
    checks.that(named > 0, "no sampled loss has the sender's name");
    checks.that(
        names.contains(&"host".into()) && names.contains(&LATE.into()),
        format!("namespaces: {names:?}"),
    );
    // A table that gets into trouble is listed for that, too, unless the trigger's listing was first.
    let others: BTreeSet<&str> = occasions.into_iter().filter(|reason| *reason != "changed").collect();
    checks.equal("listings at", others, BTreeSet::from(["start", "trigger"]));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Those of the unit, as they follow each other.
fn recordings() -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(STATE)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut files: Vec<_> =
        files.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "ctw")).collect();
    // host-20261127T010537Z.ctw is before host.ctw.
    files.sort();
    Ok(files)
}

/// systemd's own judgement of what the unit leaves open, which docs/privileges.md tells.
fn exposure(checks: &mut Checks, systemd: &Systemd) -> Result<()> {
    let told = include_str!("../../../docs/privileges.md").split("gives it **").nth(1);
    let told = told.and_then(|rest| rest.split("**").next()).context("docs/privileges.md has no score")?;
    let told: f64 = told.parse().context("the score in docs/privileges.md")?;
    let said =
        systemd.inside(&["systemd-analyze", "security", "--no-pager", "--offline=true", INSTALLED[1]])?;
    let score = |line: &str| line.split_once("service: ")?.1.split(' ').next()?.parse::<f64>().ok();
    let score = said.lines().find_map(score);
    let score = score.with_context(|| format!("systemd-analyze said no score: {said}"))?;
    checks.figure("exposure", score);
    checks.that(score <= told, format!("systemd's score is {score}, and docs/privileges.md says {told}"));
    Ok(())
}

fn held_to_its_caps(checks: &mut Checks) -> Result<()> {
    for (file, wanted) in [
        ("memory.max", (384 << 20).to_string()),
        ("memory.high", (320 << 20).to_string()),
        ("cpu.max", "25000 100000".to_owned()),
        ("pids.max", "64".to_owned()),
    ] {
        checks.equal(file, Systemd::cap(file)?, wanted);
    }
    Ok(())
}
