//! Entries thrown out before their time: by early_drop for a new flow, and by gc because the table is nearly full.
//! Who they were is confirmed by `conntrack -E` or by what is left of a list of entries made here, never by ctwatch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Guest, Outcome};
use crate::bpftrace::Bpftrace;
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctnetlink::{Entry, Maker, TcpState};
use crate::ctwatch::{Drops, Run};
use crate::nftables;
use crate::shell::{exists, run};
use crate::table::{self, LIMIT};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

const ONE_WAY: u16 = 7001;
const HALF_OPEN: u16 = 6380;
const PUSHERS: u16 = 7777;

/// `conntrack -E -e DESTROY`, which sees every entry go that was made while it listened.
struct Destroyed {
    child: Child,
    words: tempfile::NamedTempFile,
}

impl Destroyed {
    fn listen() -> Result<Self> {
        let words = tempfile::NamedTempFile::new().context("a file for conntrack's words")?;
        let child = Command::new("conntrack")
            .args(["-E", "-e", "DESTROY", "-b", "33554432"])
            .stdin(Stdio::null())
            .stdout(words.reopen()?)
            .stderr(Stdio::null())
            .spawn()
            .context("starting conntrack -E")?;
        thread::sleep(Duration::from_millis(700));
        Ok(Self { child, words })
    }

    /// The original tuples of all entries that went, as conntrack prints them.
    fn tuples(mut self) -> Result<BTreeSet<String>> {
        thread::sleep(Duration::from_millis(500));
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        self.child.wait()?;
        let text = std::fs::read_to_string(self.words.path())?;
        Ok(text.lines().filter_map(original_of).collect())
    }
}

/// "src=… dst=… sport=… dport=…" of the original direction, which comes first.
fn original_of(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("src="));
    let four: Vec<_> = (0..4).map_while(|_| words.next()).collect();
    (four.len() == 4).then(|| four.join(" "))
}

fn tuple_of(drop: &crate::ctwatch::Drop) -> String {
    format!(
        "src={} dst={} sport={} dport={}",
        drop.src,
        drop.dst,
        drop.sport.unwrap_or(0),
        drop.dport.unwrap_or(0)
    )
}

/// A full table: 1,500 one-way UDP flows, 1,000 half-open TCP connections, the rest assured.
fn fill_with_victims() -> Result<()> {
    let one_way = (0..1500).map(|index| Entry::nth(index, ONE_WAY, None, false));
    let half_open = (1500..2500).map(|index| Entry::nth(index, HALF_OPEN, Some(TcpState::SynSent), false));
    let assured = (2500..LIMIT as u32).map(|index| Entry::nth(index, 443, Some(TcpState::Established), true));
    Maker::open()?.create(one_way.chain(half_open).chain(assured))
}

pub(super) fn are_named(_: &Guest) -> Result<Outcome> {
    let _receivers = (UdpSocket::bind(("127.0.0.1", PUSHERS))?, UdpSocket::bind(("::1", PUSHERS))?);
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let destroyed = Destroyed::listen()?;
    let drops = Drops::start(&["--events", "--cause", "evicted,gc_evicted"])?;
    let second = Drops::start(&["--by", "flow"])?;
    let neighbour = exists("bpftrace")
        .then(|| {
            Bpftrace::start(
                "kretprobe:nf_ct_delete* { @a = count(); }\nkretprobe:early_drop { @b = count(); }",
            )
        })
        .transpose()?;
    fill_with_victims()?;
    let before = Counters::read()?;
    let plan = Plan { fresh_source_every: 1, ..Plan::new(loopback(&[PUSHERS]), 500) };
    let sent = udp::send_on_every_cpu(&plan)?;
    drops.wait_for_ticks(2)?;
    second.wait_for_ticks(1)?;
    let (run, second) = (drops.stop()?, second.stop()?);
    let kernel = Counters::read()?.since(&before);
    drop(neighbour);
    let destroyed = destroyed.tuples()?;

    let mut checks = Checks::new();
    checks.figure("flows", sent.total_accepted() + sent.total_refused());
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("bpftrace", exists("bpftrace"));
    checks.that(kernel.get("early_drop") > 200, "too few evictions to show anything");
    for (who, run) in [("the first", &run), ("the second", &second)] {
        checks.equal(
            &format!("{who}: counted.evicted"),
            run.end.counted("evicted"),
            kernel.get("early_drop"),
        );
        checks.equal(&format!("{who}: lost events"), run.end.lost_events, 0);
        checks.equal(&format!("{who}: losses without a tuple"), run.end.unattributed(), 0);
        checks.that(run.end.all_explained(), format!("{who}: unexplained {:?}", run.end.unexplained));
    }
    // What --top cuts is one row of entries, whichever of the two causes they had: gc may have come by.
    let entries = second.end.rows.iter().filter(|row| row.unit.as_deref() == Some("entries"));
    checks.equal(
        "entries lost in rows by flow",
        entries.map(|row| row.losses).sum::<u64>(),
        kernel.get("early_drop") + second.end.counted("gc_evicted"),
    );
    victims(&mut checks, &run, kernel.get("early_drop"), &destroyed);
    Ok(Outcome::Passed(checks.finish()?))
}

fn victims(checks: &mut Checks, run: &Run, early_drop: u64, destroyed: &BTreeSet<String>) {
    let evicted: Vec<_> = run.drops.iter().filter(|drop| drop.cause == "evicted").collect();
    checks.equal("victims against Δearly_drop", evicted.len() as u64, early_drop);
    let mut seen = BTreeSet::new();
    let mut kinds = BTreeMap::<&str, u64>::new();
    let mut pushed = 0;
    for victim in &evicted {
        let tuple = tuple_of(victim);
        checks.that(destroyed.contains(&tuple), format!("conntrack -E saw no entry go that was {tuple}"));
        let Some(entry) = &victim.entry else {
            checks.that(false, format!("nothing is said of the entry {tuple}"));
            continue;
        };
        checks.that(!entry.assured && !entry.seen_reply, format!("an assured victim: {tuple}"));
        let mirrored = victim.reply.as_ref().is_some_and(|reply| {
            reply.src == victim.dst && reply.sport == victim.dport && reply.dport == victim.sport
        });
        checks.that(mirrored && victim.nat == Some(false), format!("the reply direction of {victim:?}"));
        let state = entry.tcp_state.as_deref();
        match victim.dport {
            Some(HALF_OPEN) => {
                *kinds.entry("half_open").or_default() += 1;
                checks.equal(&format!("TCP state of {tuple}"), state, Some("SYN_SENT"));
                checks.that(seen.insert(tuple.clone()), format!("evicted twice: {tuple}"));
            }
            Some(ONE_WAY) => {
                *kinds.entry("one_way").or_default() += 1;
                checks.equal(&format!("TCP state of {tuple}"), state, None);
                checks.that(seen.insert(tuple.clone()), format!("evicted twice: {tuple}"));
            }
            Some(PUSHERS) => *kinds.entry("pushers").or_default() += 1,
            other => checks.that(false, format!("a victim nobody made, port {other:?}: {tuple}")),
        }
        if let Some(pusher) = &victim.pushed_out_by {
            pushed += 1;
            checks.equal("port of the flow that pushed a victim out", pusher.dport, Some(PUSHERS));
        }
    }
    for (kind, victims) in &kinds {
        checks.figure(kind, victims);
    }
    checks.figure("pushers_named", pushed);
    checks.that(kinds.len() >= 2, format!("only these kinds of victims: {kinds:?}"));
    checks.that(
        pushed * 10 >= evicted.len() * 9,
        format!("only {pushed} of {} name who pushed", evicted.len()),
    );
}

/// gc looks at least once a minute; emulation is slower.
const GC_PATIENCE: Duration = Duration::from_secs(150);

pub(super) fn of_gc(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let drops = Drops::start(&["--events"])?;
    // A third each: what early_drop may take, what only gc may take, what nobody may take.
    let made = LIMIT as u32;
    Maker::open()?.create((0..made).map(|index| match index % 3 {
        0 => Entry::nth(index, ONE_WAY, None, false),
        1 => Entry::nth(index, 6379, Some(TcpState::TimeWait), true),
        _ => Entry::nth(index, 443, Some(TcpState::Established), true),
    }))?;
    let before = Counters::read()?;
    let until = Instant::now() + GC_PATIENCE;
    let mut seen = 0;
    while seen == 0 && Instant::now() < until {
        // A refused packet tells gc that it is to make room the next time it comes by.
        let plan = Plan { fresh_source_every: 1, ..Plan::new(loopback(&[PUSHERS]), 10) };
        udp::send(&plan)?;
        thread::sleep(Duration::from_millis(500));
        seen = drops.last_counted("gc_evicted");
    }
    drops.wait_for_ticks(3)?;
    let run_ = drops.stop()?;
    let kernel = Counters::read()?.since(&before);
    let left = run(&["conntrack", "-L"])?.lines().filter(|line| line.contains("src=10.64.")).count() as u64;

    let mut checks = Checks::new();
    let of_cause = |cause: &str| {
        run_.drops.iter().filter(|drop| drop.cause == cause && drop.src.starts_with("10.64.")).count() as u64
    };
    let (evicted, by_gc) = (of_cause("evicted"), of_cause("gc_evicted"));
    checks.figure("made", made);
    checks.figure("left", left);
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.figure("gc_evicted", run_.end.counted("gc_evicted"));
    checks.that(by_gc > 0, "gc evicted nothing in time");
    // They would have lived for days: whoever is gone was evicted.
    checks.equal("of the entries made, evicted by either", evicted + by_gc, u64::from(made) - left);
    checks.equal(
        "counted.evicted against Δearly_drop",
        run_.end.counted("evicted"),
        kernel.get("early_drop"),
    );
    checks.equal("lost events", run_.end.lost_events, 0);
    for victim in run_.drops.iter().filter(|drop| drop.cause == "gc_evicted") {
        let port = victim.dport;
        checks.that(
            matches!(port, Some(ONE_WAY | 6379 | PUSHERS)),
            format!("gc may not take an established flow: {victim:?}"),
        );
        if port == Some(6379) {
            let state = victim.entry.as_ref().and_then(|entry| entry.tcp_state.as_deref());
            checks.equal("TCP state of gc's victim", state, Some("TIME_WAIT"));
        }
    }
    checks.equal("losses without a tuple", run_.end.unattributed(), 0);
    checks.that(run_.end.all_explained(), format!("unexplained {:?}", run_.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}
