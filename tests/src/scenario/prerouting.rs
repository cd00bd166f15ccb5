//! Losses at PRE_ROUTING: packets from another host, here another netns behind a veth pair, in softirq context.
//! The sender sees success, so nft counters around conntrack's priority are the witnesses.

use anyhow::Result;

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::{Netns, Veth, own_inode};
use crate::nftables::{self, Witness};
use crate::table::{self, Mix};
use crate::traffic::udp::{self, Plan};

pub(super) fn losses_over_veth(_: &Guest) -> Result<Outcome> {
    let ports = [53, 123, 4789, 6379];
    let other = Netns::create("sender")?;
    let veth = Veth::join(&other, 1)?;
    nftables::track()?;
    let witness = Witness::place("prerouting", "udp", &ports)?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let netns = own_inode()?;
    let drops = Drops::start(&["--events"])?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let to = ports.iter().flat_map(|port| [(veth.v4.0, *port).into(), (veth.v6.0, *port).into()]).collect();
    let sent = other.run(|| udp::send_on_every_cpu(&Plan::new(to, 200)))?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let (seen, lost) = (witness.seen()?, witness.lost()?);

    let mut checks = Checks::new();
    checks.figure("sent", sent.total_accepted());
    checks.figure("lost", lost.values().sum::<u64>());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("counted", run.end.counted("table_full"));
    checks.figure("events", run.drops.len());
    checks.equal("sends refused to a sender on another host", sent.total_refused(), 0);
    checks.equal_maps("packets arrived per port against sends", &seen, &sent.accepted());
    checks.equal_maps(
        "table_full rows per port against nft counters",
        &run.end.per_port(netns, "udp", "table_full"),
        &lost,
    );
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), kernel.get("early_drop"));
    for row in run.end.rows.iter().filter(|row| row.cause() == "table_full") {
        checks.equal("loopback of a row from another host", row.loopback, Some(false));
    }
    let events: Vec<_> = run.drops.iter().filter(|drop| drop.cause == "table_full").collect();
    checks.equal(
        "table_full events and lost ones together",
        events.len() as u64 + run.end.lost_events,
        kernel.get("drop"),
    );
    let wrong = events
        .iter()
        .filter(|drop| {
            drop.hook.as_deref() != Some("prerouting")
                || drop.device_in.as_deref() != Some(&veth.here)
                || drop.netns != netns
        })
        .count();
    checks.that(
        wrong == 0,
        format!("{wrong} events without hook prerouting, in {}; the first: {:?}", veth.here, events.first()),
    );
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
