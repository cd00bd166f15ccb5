//! Entries thrown out before their time: by early_drop for a new flow, and by gc because the table is nearly full.
//! Who they were is confirmed by `conntrack -E` or by what is left of a list of entries made here, never by ctwatch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Guest, Outcome};
use crate::bpftrace::Bpftrace;
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctnetlink::{Entry, Maker, TcpState};
use crate::ctwatch::{Drops, Run};
use crate::shell::{exists, interrupt, run};
use crate::sysctl::Setting;
use crate::table::{self, LIMIT, Mix};
use crate::traffic::udp::{self, Plan};
use crate::traffic::{Tally, loopback};
use crate::{nftables, sys};

const ONE_WAY: u16 = 7001;
const HALF_OPEN: u16 = 6380;
const PUSHERS: u16 = 7777;

/// How long `conntrack -E` may go on writing after the last entry went.
const WORDS_PATIENCE: Duration = Duration::from_secs(20);

/// `conntrack -E -e DESTROY`, which sees every entry go that was made while it listened.
struct Destroyed {
    child: Child,
    words: tempfile::NamedTempFile,
    complaints: tempfile::NamedTempFile,
}

impl Destroyed {
    fn listen() -> Result<Self> {
        let words = tempfile::NamedTempFile::new().context("a file for conntrack's words")?;
        let complaints = tempfile::NamedTempFile::new().context("a file for conntrack's complaints")?;
        let child = Command::new("conntrack")
            .args(["-E", "-e", "DESTROY", "-b", "33554432"])
            .stdin(Stdio::null())
            .stdout(words.reopen()?)
            .stderr(complaints.reopen()?)
            .spawn()
            .context("starting conntrack -E")?;
        thread::sleep(Duration::from_millis(700));
        Ok(Self { child, words, complaints })
    }

    /// The original tuples of all entries that went, as conntrack prints them, once it has no more to say;
    /// and what it complained about.
    fn tuples(mut self) -> Result<(BTreeSet<String>, String)> {
        let until = Instant::now() + WORDS_PATIENCE;
        let mut length = None;
        while Instant::now() < until {
            let now = std::fs::metadata(self.words.path())?.len();
            if length.replace(now) == Some(now) {
                break;
            }
            thread::sleep(Duration::from_millis(1500));
        }
        interrupt(&mut self.child)?;
        let text = std::fs::read_to_string(self.words.path())?;
        let complaints = std::fs::read_to_string(self.complaints.path())?;
        Ok((text.lines().filter_map(original_of).collect(), complaints.trim().to_owned()))
    }
}

/// "src=… dst=… sport=… dport=…" of the original direction, which comes first.
fn original_of(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("src="));
    let four: Vec<_> = (0..4).map_while(|_| words.next()).collect();
    (four.len() == 4).then(|| four.join(" "))
}

fn tuple_of(drop: &crate::ctwatch::Drop) -> String {
    tuple(&drop.src, &drop.dst, drop.sport.unwrap_or(0), drop.dport.unwrap_or(0))
}

/// A tuple as conntrack prints it.
fn tuple(src: impl Display, dst: impl Display, sport: u16, dport: u16) -> String {
    format!("src={src} dst={dst} sport={sport} dport={dport}")
}

/// 1,500 one-way UDP flows and 1,000 half-open TCP connections: those that early_drop may take.
fn possible_victims() -> impl Iterator<Item = Entry> {
    let one_way = (0..1500).map(|index| Entry::nth(index, ONE_WAY, None, false));
    one_way.chain((1500..2500).map(|index| Entry::nth(index, HALF_OPEN, Some(TcpState::SynSent), false)))
}

/// A full table of them and assured entries.
fn fill_with_victims() -> Result<()> {
    let assured = (2500..LIMIT as u32).map(|index| Entry::nth(index, 443, Some(TcpState::Established), true));
    Maker::open()?.create(possible_victims().chain(assured))
}

/// Who can tell that an entry went: `conntrack -E`, and where it lost events, who made the entry and finds it gone.
struct Witnesses {
    destroyed: BTreeSet<String>,
    complaints: String,
    made: BTreeSet<String>,
    left: BTreeSet<String>,
}

impl Witnesses {
    fn hear(destroyed: Destroyed) -> Result<Self> {
        let (destroyed, complaints) = destroyed.tuples()?;
        let victims = possible_victims().map(|entry| {
            let ((src, sport), (dst, dport)) = (entry.src, entry.dst);
            tuple(src, dst, sport, dport)
        });
        let pushers = (0..sys::cpus())
            .flat_map(pusher_sources)
            .flat_map(|sport| ["127.0.0.1", "::1"].map(|own| tuple(own, own, sport, PUSHERS)));
        let made = victims.chain(pushers).collect();
        let mut left = BTreeSet::new();
        for family in ["ipv4", "ipv6"] {
            left.extend(run(&["conntrack", "-L", "-f", family])?.lines().filter_map(original_of));
        }
        Ok(Self { destroyed, complaints, made, left })
    }

    /// Whether the list of what was made here has this flow, and the table no longer does.
    fn is_missing(&self, tuple: &str) -> bool {
        self.made.contains(tuple) && !self.left.contains(tuple)
    }
}

/// The source ports of the flows that push others out, each used once.
fn pusher_sources(cpu: usize) -> impl Iterator<Item = u16> {
    (0..500).map(move |index| 20_000 + 500 * cpu as u16 + index)
}

/// New flows from all CPUs at once, for which early_drop has to make room.
fn push() -> Result<Tally> {
    thread::scope(|scope| {
        let pushers: Vec<_> = (0..sys::cpus())
            .map(|cpu| {
                scope.spawn(move || {
                    sys::pin(cpu)?;
                    let mut tally = Tally::default();
                    for source in pusher_sources(cpu) {
                        for to in loopback(&[PUSHERS]) {
                            let socket = UdpSocket::bind((to.ip(), source)).context("a pusher's socket")?;
                            tally.book(PUSHERS, socket.send_to(b"push", to))?;
                        }
                    }
                    anyhow::Ok(tally)
                })
            })
            .collect();
        let mut sum = Tally::default();
        for pusher in pushers {
            sum.add(&pusher.join().map_err(|_| anyhow!("a pusher panicked"))??);
        }
        Ok(sum)
    })
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
    let sent = push()?;
    drops.wait_for_ticks(2)?;
    second.wait_for_ticks(1)?;
    let (run, second) = (drops.stop()?, second.stop()?);
    let kernel = Counters::read()?.since(&before);
    drop(neighbour);
    let flows = sent.total_accepted() + sent.total_refused();
    let witnesses = Witnesses::hear(destroyed)?;

    let mut checks = Checks::new();
    checks.figure("flows", flows);
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
    victims(&mut checks, &run, kernel.get("early_drop"), &witnesses);
    Ok(Outcome::Passed(checks.finish()?))
}

fn victims(checks: &mut Checks, run: &Run, early_drop: u64, witnesses: &Witnesses) {
    let evicted: Vec<_> = run.drops.iter().filter(|drop| drop.cause == "evicted").collect();
    checks.equal("victims against Δearly_drop", evicted.len() as u64, early_drop);
    let mut seen = BTreeSet::new();
    let mut kinds = BTreeMap::<&str, u64>::new();
    let (mut pushed, mut unheard) = (0, 0_u64);
    for victim in &evicted {
        let tuple = tuple_of(victim);
        if !witnesses.destroyed.contains(&tuple) {
            unheard += 1;
            checks.that(
                witnesses.is_missing(&tuple),
                format!("neither conntrack -E nor the list of what was made lost {tuple}"),
            );
        }
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
    checks.figure("conntrack_E_missed", unheard);
    checks.that(
        unheard == 0 || witnesses.complaints.contains("ENOBUFS"),
        format!(
            "conntrack -E missed {unheard} entries and didn't say that it lost any: {}",
            witnesses.complaints
        ),
    );
    checks.that(kinds.len() >= 2, format!("only these kinds of victims: {kinds:?}"));
    checks.that(
        pushed * 10 >= evicted.len() * 9,
        format!("only {pushed} of {} name who pushed", evicted.len()),
    );
}

/// Tasks at once, in each of which entries are thrown out: more than there is room to remember the victims of on a guest's few
/// CPUs (VICTIMS, 1,024).
const TASKS: usize = 1500;

/// All tasks are there until the last one has pushed something out, each from two ports: the second time, whatever was
/// remembered of the first has made room for others.
fn push_by_many_tasks() -> Result<Tally> {
    let all_there = Barrier::new(TASKS);
    thread::scope(|scope| {
        let push = || {
            let mut tally = Tally::default();
            let mut failed = None;
            for _ in 0..2 {
                let sent = UdpSocket::bind(("127.0.0.1", 0))
                    .context("a task's socket")
                    .and_then(|socket| tally.book(PUSHERS, socket.send_to(b"push", ("127.0.0.1", PUSHERS))));
                // Whoever went would leave the others waiting.
                failed = failed.or(sent.err());
                all_there.wait();
            }
            failed.map_or(Ok(tally), Err)
        };
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, push).expect("a task"))
            .collect();
        let mut sum = Tally::default();
        for task in tasks {
            sum.add(&task.join().map_err(|_| anyhow!("a task panicked"))??);
        }
        Ok(sum)
    })
}

pub(super) fn of_many_tasks(_: &Guest) -> Result<Outcome> {
    let _receiver = UdpSocket::bind(("127.0.0.1", PUSHERS))?;
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::OneWay)?;
    let drops = Drops::start(&[])?;
    table::fill(Mix::OneWay)?;
    let before = Counters::read()?;
    let sent = push_by_many_tasks()?;
    drops.wait_for_ticks(2)?;
    let run = drops.stop()?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    let early_drop = kernel.get("early_drop");
    checks.figure("flows", sent.total_accepted() + sent.total_refused());
    checks.figure("Δearly_drop", early_drop);
    checks.figure("without a tuple", run.end.unattributed());
    checks.that(early_drop > 1500, "too few evictions to fill the room for them");
    checks.equal("counted.evicted against Δearly_drop", run.end.counted("evicted"), early_drop);
    // What has no tuple has a row of its own.
    checks.equal("evicted rows against Δearly_drop", run.end.row_sum("evicted"), early_drop);
    checks.that(run.end.unattributed() * 50 < early_drop, "hardly anything is named");
    checks.equal("counted.table_full against Δdrop", run.end.counted("table_full"), kernel.get("drop"));
    checks.that(run.end.all_explained(), format!("unexplained {:?}", run.end.unexplained));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Twice as long as gc may stay away (GC_SCAN_INTERVAL, 120 s, in 5.10's nf_conntrack_core.c; a minute since 5.16), and some
/// more: a pass before the first packet is refused evicts nothing.
const GC_PATIENCE: Duration = Duration::from_secs(270);

pub(super) fn of_gc(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    // Nothing expires meanwhile: whoever lists a table takes what has expired out of it (ctnetlink_dump_table), ctwatch's census as
    // well, and gc evicts nothing from one that is less than 95 % full just then.
    let _timeout = Setting::set("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", 3600)?;
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
    checks.figure("Δdrop", kernel.get("drop"));
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
