//! A container with namespaces of its own for processes and network: what it calls its netns is not the host's.
//! Its programs see the host's losses all the same, in a netns that it can't enter.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Guest, Outcome, module};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::own_inode;
use crate::nftables;
use crate::shell::{run, sh};
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

/// As a container runtime does it, as far as it matters here. busybox's has no option for a /proc of its own.
const CONTAINER: [&str; 10] = [
    "busybox",
    "unshare",
    "-m",
    "-p",
    "-n",
    "-f",
    "sh",
    "-c",
    "busybox mount -t proc proc /proc && exec \"$@\"",
    "sh",
];

pub(super) fn host_is_elsewhere(_: &Guest) -> Result<Outcome> {
    // What the host's netns lost before is nobody's, also if it is as little as in one that has just come up.
    nftables::flush()?;
    if !module::is_built_in() {
        module::unload("nf_conntrack")?;
        sh("modprobe -a nf_conntrack nf_conntrack_netlink")?;
    }
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let earlier = udp::send_on_every_cpu(&Plan::new(loopback(&[6379]), 5))?.total_refused();
    ensure!(earlier > 0, "nothing was lost before");
    let before = Counters::read()?;
    let mut drops = Drops::start_by(&CONTAINER, &["--duration", "15s"])?;
    let sent = udp::send(&Plan::new(loopback(&[6379]), 40))?;
    let run_inside = drops.finish()?;
    let kernel = Counters::read()?.since(&before);
    let end = &run_inside.end;
    let host = own_inode()?;

    let mut checks = Checks::new();
    checks.figure("refused_before", earlier);
    checks.figure("refused", sent.total_refused());
    checks.equal("EPERM against Δdrop", sent.total_refused(), kernel.get("drop"));
    checks.equal_maps("rows per port", &end.per_port(host, "udp", "table_full"), &sent.refused());
    checks.equal("namespaces that went away", end.netns_gone, 0);
    // Nothing was lost but packets to a full table: of the other counters, too, nothing of the host's was read.
    let verdicts: Vec<&str> = end.agreement.values().map(String::as_str).collect();
    checks.equal("verdicts while one netns can't be read", verdicts, vec!["not_readable"; 4]);
    let tables: Vec<_> = run_inside.ticks.iter().flat_map(|tick| &tick.tables).collect();
    checks.that(
        tables.iter().any(|table| table.netns == host && table.not_readable && table.count.is_none()),
        "no tick says that the host's netns can't be read",
    );
    checks.that(
        tables.iter().all(|table| (table.name.as_deref() == Some("host")) == (table.netns == host)),
        "host is not the initial netns and nothing else",
    );
    checks.that(
        tables.iter().any(|table| table.name.as_deref() == Some("this netns") && !table.not_readable),
        "the own netns is not called so",
    );
    checks.that(tables.iter().all(|table| !table.gone), "a netns is said to be gone");

    let inside = |line: &[&str]| {
        let line: Vec<&str> = CONTAINER.iter().chain(line).copied().collect();
        run(&line)
    };
    let checked = inside(&["ctwatch", "check"])?;
    checks.that(checked.contains("--pid=host"), format!("check does not say what would help: {checked}"));
    let refused =
        inside(&["ctwatch", "table", "--netns", "host"]).unwrap_or_else(|error| format!("{error:#}"));
    checks.that(refused.contains("hostPID"), format!("--netns host is not refused: {refused}"));
    // A netns that has the host's processes around it, on the other hand, knows the host.
    thread::sleep(Duration::from_millis(100));
    let there = run(&["busybox", "unshare", "-n", "ctwatch", "check"])?;
    checks.that(there.contains("that of process 1"), format!("the host is not found beside it: {there}"));
    Ok(Outcome::Passed(checks.finish()?))
}
