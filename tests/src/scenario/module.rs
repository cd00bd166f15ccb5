//! nf_conntrack comes and goes: ctwatch waits for it, and attaches again after a reload.
//! Unloading needs every user of the module gone first, so this unloads them all and lets rules load them again.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::usage::{ended, said};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::own_inode;
use crate::shell::sh;
use crate::table::{self, Mix};
use crate::traffic::udp::{self, Plan};
use crate::traffic::{Tally, loopback};
use crate::{nftables, sysctl};

const MODULE: &str = "/sys/module/nf_conntrack";

pub(super) fn waits_and_reattaches(_: &Guest) -> Result<Outcome> {
    nftables::flush()?;
    if is_built_in() {
        return Ok(Outcome::Skipped("nf_conntrack is built in".into()));
    }
    unload("nf_conntrack")?;
    let netns = own_inode()?;
    let drops = Drops::spawn(&[])?;
    drops.wait_for_notice("waiting_for_conntrack")?;

    sh("modprobe -a nf_conntrack nf_conntrack_netlink")?;
    drops.wait_for("the start line", |lines| lines.iter().any(|line| line["type"] == "start"))?;
    let (first, first_drop) = drop_some(&[53, 6379])?;
    drops.wait_for_ticks(2)?;

    nftables::flush()?;
    unload("nf_conntrack")?;
    sh("modprobe -a nf_conntrack nf_conntrack_netlink")?;
    drops.wait_for_notice("reattached")?;
    let (second, second_drop) = drop_some(&[6379, 8125])?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;

    let mut checks = Checks::new();
    let mut sum = first.clone();
    sum.add(&second);
    checks.figure("first", first.total_refused());
    checks.figure("second", second.total_refused());
    checks.equal("Δdrop of the first load against EPERM", first_drop, first.total_refused());
    checks.equal("Δdrop of the second load against EPERM", second_drop, second.total_refused());
    checks.equal_maps(
        "table_full rows per port against EPERM over both loads",
        &run.end.per_port(netns, "udp", "table_full"),
        &sum.refused(),
    );
    checks.equal("counted.table_full", run.end.counted("table_full"), sum.total_refused());
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Fills the table of a freshly loaded module and sends into it. The limit goes with the module.
fn drop_some(ports: &[u16]) -> Result<(Tally, u64)> {
    nftables::track()?;
    fs::write(sysctl::MAX, table::LIMIT.to_string()).context("lowering nf_conntrack_max")?;
    table::fill(Mix::Assured)?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(ports), 100))?;
    Ok((sent, Counters::read()?.since(&before).get("drop")))
}

pub(super) fn is_built_in() -> bool {
    Path::new(MODULE).exists() && !Path::new(MODULE).join("initstate").exists()
}

/// ctwatch with these arguments says that nf_conntrack is not loaded, and doesn't load it; then that module alone is.
pub(super) fn without_conntrack(
    arguments: &[&str],
    loaded: impl FnOnce(&mut Checks) -> Result<()>,
) -> Result<Outcome> {
    nftables::flush()?;
    if is_built_in() {
        return Ok(Outcome::Skipped("nf_conntrack is built in".into()));
    }
    unload("nf_conntrack")?;
    let mut checks = Checks::new();
    let what = format!("ctwatch {} without conntrack", arguments.join(" "));
    let output = ended(Command::new("ctwatch").args(arguments))?;
    said(&mut checks, &what, &output, 3, "nf_conntrack is not loaded");
    checks.that(!Path::new(MODULE).exists(), format!("{what} loaded nf_conntrack"));
    sh("modprobe nf_conntrack")?;
    ensure!(Path::new(MODULE).exists(), "nf_conntrack does not load");
    loaded(&mut checks)?;
    Ok(Outcome::Passed(checks.finish()?))
}

/// Unloads a module after everything that holds it.
pub(super) fn unload(module: &str) -> Result<()> {
    let folder = Path::new("/sys/module").join(module);
    if !folder.exists() {
        return Ok(());
    }
    for holder in fs::read_dir(folder.join("holders")).context("a module's holders")? {
        let holder = holder?.file_name();
        unload(holder.to_str().context("a module's name")?)?;
    }
    // What a rule held is given back a moment after the rule is gone.
    let until = Instant::now() + Duration::from_secs(10);
    while folder.exists() {
        match sh(&format!("rmmod {module}")) {
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(200)),
            Ok(_) => break,
        }
    }
    ensure!(!folder.exists(), "{module} is still loaded");
    Ok(())
}
