//! CPUs that are offline when the watch begins, come up while it runs, and go again in a storm. The kernel counts per CPU,
//! so each of them must begin where it stood, and what a CPU counted must not go with it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::Netns;
use crate::table::{self, Mix};
use crate::traffic::udp::{self, Plan};
use crate::traffic::{Tally, loopback};
use crate::{nftables, sys};

/// How often a CPU goes and comes in the storm.
const TURNS: u32 = 3;

/// A CPU that can be switched off; back on when dropped.
struct Switch(PathBuf);

impl Switch {
    fn of(cpu: usize) -> Self {
        Self(PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online")))
    }

    fn set(&self, on: bool) -> Result<()> {
        fs::write(&self.0, if on { "1" } else { "0" })
            .with_context(|| format!("writing {}", self.0.display()))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.set(true);
    }
}

/// Sends from one CPU.
fn send_on(cpu: usize, ports: &[u16], rounds: u32) -> Result<Tally> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            sys::pin(cpu)?;
            udp::send(&Plan::new(loopback(ports), rounds))
        });
        sender.join().map_err(|_| anyhow!("a sender panicked"))?
    })
}

pub(super) fn come_and_go(_: &Guest) -> Result<Outcome> {
    let last = sys::cpus() - 1;
    let switch = Switch::of(last);
    if last == 0 || switch.set(false).and_then(|()| switch.set(true)).is_err() {
        return Ok(Outcome::Skipped("no CPU can be switched off here".into()));
    }
    let passing = Netns::create("passing")?;
    nftables::track()?;
    passing.run(nftables::track)?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    passing.run(|| table::fill(Mix::Realistic))?;
    // More than any rule of thumb takes for new in one netns, and less in the other.
    send_on(last, &[53], 200)?;
    passing.run(|| send_on(last, &[53], 20))?;
    switch.set(false)?;

    let (before, before_there) = (Counters::read()?, passing.counters()?);
    let drops = Drops::start(&["--top", "200"])?;
    table::fill(Mix::Realistic)?;
    let mut sent = send_on(0, &[6379], 40)?;
    let mut sent_there = passing.run(|| send_on(0, &[6379], 30))?;
    switch.set(true)?;
    sent.add(&send_on(last, &[8125], 70)?);
    sent_there.add(&passing.run(|| send_on(last, &[8125], 25))?);

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut sum = Tally::default();
                    while !stop.load(Ordering::Relaxed) {
                        sum.add(&udp::send(&Plan::new(loopback(&[53, 443]), 20))?);
                    }
                    Ok::<_, anyhow::Error>(sum)
                })
            })
            .collect();
        let turned = (0..TURNS).try_for_each(|_| {
            thread::sleep(Duration::from_millis(300));
            switch.set(false)?;
            thread::sleep(Duration::from_millis(300));
            switch.set(true)
        });
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sent.add(&sender.join().map_err(|_| anyhow!("a sender panicked"))??);
        }
        turned
    })?;
    // One netns goes while the CPU is away, and takes its counters along.
    switch.set(false)?;
    let (inode, there) = (passing.inode(), passing.counters()?.since(&before_there));
    drop(passing);
    thread::sleep(Duration::from_secs(4));
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let here = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.figure("Δdrop", here.get("drop"));
    checks.figure("Δdrop_of_the_netns_that_went", there.get("drop"));
    checks.equal("EPERM against Δdrop", sent.total_refused(), here.get("drop"));
    checks.equal("EPERM there against Δdrop", sent_there.total_refused(), there.get("drop"));
    let own = crate::netns::own_inode()?;
    checks.equal_maps("rows per port", &run.end.per_port(own, "udp", "table_full"), &sent.refused());
    checks.equal_maps(
        "rows per port there",
        &run.end.per_port(inode, "udp", "table_full"),
        &sent_there.refused(),
    );
    for (counter, cause) in [("drop", "table_full"), ("early_drop", "evicted")] {
        let sum = here.get(counter) + there.get(counter);
        checks.equal(&format!("counted.{cause}"), run.end.counted(cause), sum);
        checks.equal(
            &format!("kernel_counters.{counter}"),
            run.end.kernel_counters.get(counter).copied(),
            Some(sum),
        );
    }
    checks.equal("namespaces whose last counts are missing", run.end.netns_gone, 0);
    checks.equal("losses without a tuple", run.end.unattributed(), 0);
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
