//! A full table of flows nobody answered: each new flow throws an old one out, and the kernel counts early_drop.
//! Evicted entries and lost packets are different units and never added up here.

use std::net::UdpSocket;

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

pub(super) fn equal_early_drop(_: &Guest) -> Result<Outcome> {
    let port = 7777;
    let _receivers = (UdpSocket::bind(("127.0.0.1", port))?, UdpSocket::bind(("::1", port))?);
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::OneWay)?;
    let netns = own_inode()?;
    let drops = Drops::start(&[])?;
    table::fill(Mix::OneWay)?;
    let before = Counters::read()?;
    let plan = Plan { fresh_source_every: 1, ..Plan::new(loopback(&[port]), 1200) };
    let sent = udp::send_on_every_cpu(&plan)?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("flows", sent.total_accepted() + sent.total_refused());
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("gc_evicted", run.end.counted("gc_evicted"));
    checks.that(kernel.get("early_drop") > 100, "too few evictions to show anything");
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    checks.equal(
        "evicted rows summed against Δearly_drop",
        run.end.row_sum("evicted"),
        kernel.get("early_drop"),
    );
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal_maps(
        "table_full rows per port against EPERM",
        &run.end.per_port(netns, "udp", "table_full"),
        &sent.refused(),
    );
    // The victims are the one-way flows the table was filled with (7000–7007) or the new ones themselves.
    for (victim, entries) in run.end.per_port(netns, "udp", "evicted") {
        checks.that(
            victim == port || (7000..7008).contains(&victim),
            format!("{entries} victims at port {victim}, where no evictable flow was"),
        );
    }
    for row in run.end.rows.iter().filter(|row| row.cause() == "evicted") {
        checks.equal("unit of an evicted row", row.unit.as_deref(), Some("entries"));
    }
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
