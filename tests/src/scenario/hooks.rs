//! The kernel refuses something at the start: one hook, which costs its feature, or everything, which has a remedy.
//! Conntrack is loaded from a file whose functions the kernel lets nobody probe, and from its own again at the end.

use std::process::Command;

use anyhow::{Context, Result};

use super::usage::{ended, said};
use super::{Guest, Outcome, module};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::module_file::ModuleFile;
use crate::netns::own_inode;
use crate::nftables;
use crate::shell::sh;
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

pub(super) fn refused(_: &Guest) -> Result<Outcome> {
    nftables::flush()?;
    if module::is_built_in() {
        return Ok(Outcome::Skipped("nf_conntrack is built in".into()));
    }
    let mut checks = Checks::new();
    let tried = refused_with(&mut checks);
    nftables::flush()?;
    module::unload("nf_conntrack")?;
    sh("modprobe -a nf_conntrack nf_conntrack_netlink")?;
    tried?;
    Ok(Outcome::Passed(checks.finish()?))
}

fn refused_with(checks: &mut Checks) -> Result<()> {
    let mut conntrack = ModuleFile::of_conntrack()?;
    for function in ["gc_worker", "nf_conntrack_pernet_exit"] {
        conntrack.make_notrace(function)?;
        counts_all_the_same(checks, &conntrack, "kprobe", function)?;
    }
    // Without it no refused packet is known by a mark: causes are inferred, and that is another backend.
    conntrack.make_notrace("early_drop")?;
    counts_all_the_same(checks, &conntrack, "tracepoint", "early_drop")
}

/// Losses are counted to the last, and the start says what is missing.
fn counts_all_the_same(
    checks: &mut Checks,
    conntrack: &ModuleFile,
    backend: &str,
    refused: &str,
) -> Result<()> {
    nftables::flush()?;
    module::unload("nf_conntrack")?;
    let folder = tempfile::tempdir().context("a folder for a module")?;
    let file = folder.path().join("nf_conntrack.ko");
    conntrack.write(&file)?;
    sh(&format!("insmod {} && modprobe nf_conntrack_netlink", file.display()))?;
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&[53, 6379]), 100))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    checks.figure(&format!("refused without {refused}"), sent.total_refused());
    checks.equal(&format!("backend without {refused}"), run.start.backend.as_str(), backend);
    let hooks = &run.start.hooks;
    let without = hooks.iter().find(|hook| hook.function == refused && hook.missing.is_some());
    let reason = run.start.backend_reason.as_deref().unwrap_or_default();
    if backend == "kprobe" {
        checks.that(
            without.is_some_and(|hook| hook.costs.is_some()),
            format!("the start doesn't say what is missing without {refused}: {hooks:?}"),
        );
    }
    checks.that(
        reason.contains(refused) && reason.contains("EINVAL"),
        format!("the reason doesn't say that the kernel refuses {refused}: {reason}"),
    );
    let check =
        String::from_utf8(ended(Command::new("ctwatch").args(["check"]))?.stdout).context("check's words")?;
    let item = if backend == "kprobe" { "hooks" } else { "kprobes" };
    let line = check.lines().find(|line| line.trim_start().starts_with(item)).unwrap_or_default();
    checks.that(
        check.contains(refused) && !line.contains("all attach"),
        format!("check doesn't say that {refused} is refused: {check}"),
    );
    checks.equal_maps(
        &format!("table_full rows per port against EPERM, without {refused}"),
        &run.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    checks.equal(
        &format!("counted.table_full against Δdrop, without {refused}"),
        run.end.counted("table_full"),
        kernel.get("drop"),
    );
    checks.that(run.end.all_explained(), format!("unexplained without {refused}: {:?}", run.end.unexplained));
    Ok(())
}

pub(super) fn limits(guest: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let mut checks = Checks::new();
    // Some fail before anything is begun, some while maps are made, some while programs are attached.
    for files in [12, 24, 38, 48, 60] {
        let line = format!("ulimit -n {files}; exec ctwatch drops --duration 1s");
        let output = ended(Command::new("bash").args(["-c", &line]))?;
        said(&mut checks, &format!("{files} open files"), &output, 3, "ulimit -n");
    }
    if guest.is_5_10() {
        // Later kernels charge maps to the cgroup of whoever makes them.
        for (backend, code) in [("kprobe", 3), ("auto", 0)] {
            let line = format!("ulimit -l 64; exec ctwatch drops --duration 1s --backend {backend}");
            let capsh = ["--drop=cap_sys_resource", "--", "-c", &line];
            let output = ended(Command::new("capsh").args(capsh))?;
            said(&mut checks, &format!("64 KB of locked memory, {backend}"), &output, code, "ulimit -l");
        }
    }
    Ok(Outcome::Passed(checks.finish()?))
}
