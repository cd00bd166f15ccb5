//! As many drops a second as both CPUs can send: events may be lost then, totals per port may not.
//! Speed isn't judged here, emulation has none.

use anyhow::Result;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::own_inode;
use crate::nftables;
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

pub(super) fn per_port_totals_exact(_: &Guest) -> Result<Outcome> {
    let ports: Vec<u16> = (30_000..30_500).collect();
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--top", "1000"])?;
    let before = Counters::read()?;
    let plan = Plan { fresh_source_every: 0, ..Plan::new(loopback(&ports), 40) };
    let sent = udp::send_on_every_cpu(&plan)?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("counted", run.end.counted("table_full"));
    checks.figure("ports", sent.refused().len());
    checks.figure("lost_events", run.end.lost_events);
    checks.equal_maps(
        "table_full rows per port against EPERM",
        &run.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    let inexact = run.end.rows.iter().filter(|row| row.exact == Some(false)).count();
    checks.equal("per-port rows called inexact", inexact, 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
