//! `record`, `drops` and `advise` at work together for an hour, while load changes and namespaces come and go. What they take
//! (memory, descriptors, CPU time) must not grow, and nothing that the kernel counts may stay unexplained.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::crowds::{come_and_go, cpu_ticks, rss_kb};
use super::lives::live;
use super::record::{Held, Recorder};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::ctwatch::Drops;
use crate::netns::Netns;
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};
use crate::{nftables, sys, sysctl};

/// One round of load. All are the same, so that what they cost can be compared.
const ROUND: Duration = Duration::from_secs(60);
/// Rounds in which everything gets going. SQLite's cache of 4 MB is the last to be full, once the recording is as large.
const WARM_UP: usize = 8;
/// Fewer rounds after that say nothing of a slope.
const LEAST: usize = 6;
/// Namespaces that come and go in a round.
const LIVES: usize = 100;
/// The recorder's file may get so large, a few minutes' worth, so that it is thinned out, too.
const MAX_SIZE: &str = "16MB";

/// What a process takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Use {
    /// Resident memory, KB.
    rss: f64,
    /// Open descriptors.
    fds: f64,
    /// Clock ticks of CPU time in the round: of `advise` as they are, else see [`Watched::round`].
    cpu: f64,
}

/// How much of each may be more at the end than at the beginning, by the line through all rounds.
struct Bounds {
    rss: f64,
    fds: f64,
    /// As a part of the mean: the host is shared.
    cpu: f64,
}

const BOUNDS: Bounds = Bounds { rss: 1_500.0, fds: 0.5, cpu: 0.5 };

/// What `advise` may take.
const ADVISE_KB: f64 = 40_000.0;

/// A program and its rounds.
struct Watched {
    name: &'static str,
    pid: Pid,
    ticks: u64,
    rounds: Vec<Use>,
}

impl Watched {
    fn new(name: &'static str, pid: Pid) -> Result<Self> {
        Ok(Self { name, pid, ticks: cpu_ticks(pid)?, rounds: Vec::new() })
    }

    /// `own`: how many ticks our own part took in this round, which is always the same work. An emulated CPU that waits for a real
    /// one counts on, so that is what the others' ticks are measured by: per hundred of ours.
    fn round(&mut self, own: u64) -> Result<()> {
        let ticks = cpu_ticks(self.pid)?;
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid)).context("the descriptors")?.count();
        self.rounds.push(Use {
            rss: rss_kb(self.pid)? as f64,
            fds: fds as f64,
            cpu: 100.0 * (ticks - self.ticks) as f64 / own.max(1) as f64,
        });
        self.ticks = ticks;
        Ok(())
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Use { rss, fds, cpu }) = self.rounds.last() else { return Ok(()) };
        write!(f, "{} {rss} KB {fds} fds {cpu:.0} ticks per 100 of ours", self.name)
    }
}

/// How much more the last is than the first, by the straight line that fits all best.
fn growth(values: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let count = values.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = values.clone().sum::<f64>() / count;
    let (mut up, mut across) = (0.0, 0.0);
    for (at, value) in values.enumerate() {
        let from_middle = at as f64 - middle;
        up += from_middle * (value - mean);
        across += from_middle * from_middle;
    }
    if across == 0.0 { 0.0 } else { up / across * (count - 1.0) }
}

/// What grew, in words.
fn faults(name: &str, rounds: &[Use], bounds: &Bounds) -> Vec<String> {
    let of = |field: fn(&Use) -> f64| growth(rounds.iter().map(field));
    let mean = rounds.iter().map(|one| one.cpu).sum::<f64>() / rounds.len().max(1) as f64;
    // Below ten ticks a round the clock's grain decides.
    let cpu = bounds.cpu * mean.max(10.0);
    let judged = [
        ("memory", of(|one| one.rss), bounds.rss, "KB"),
        ("descriptors", of(|one| one.fds), bounds.fds, ""),
        ("CPU time", of(|one| one.cpu), cpu, "% of ours"),
    ];
    let grew = judged.iter().filter(|(_, more, most, _)| more > most);
    grew.map(|(what, more, most, unit)| {
        format!("{name}: {what} grew by {more:.1} {unit} in {} rounds, more than {most:.1}", rounds.len())
    })
    .collect()
}

/// What the kernel counted, by our own reading.
#[derive(Clone, Copy, Debug, Default)]
struct Kernel {
    drop: u64,
    early_drop: u64,
}

/// Runs for so many minutes; true if all held. What it saw goes to stdout round by round.
pub fn run(minutes: u64) -> Result<bool> {
    let rounds = usize::try_from(minutes * 60 / ROUND.as_secs())?;
    ensure!(
        rounds >= WARM_UP + LEAST,
        "{} minutes at least, the first {WARM_UP} to warm up",
        WARM_UP + LEAST
    );
    let limit = super::prepare()?;
    sys::allow_open_files(65_536);
    let folder = TempDir::new()?;
    let soaked = soak(folder.path(), rounds);
    super::clean_up(limit)?;
    match soaked?.finish() {
        Ok(figures) => {
            println!("ok {figures}");
            Ok(true)
        }
        Err(faults) => {
            println!("FAILED {faults:#}");
            Ok(false)
        }
    }
}

fn soak(folder: &Path, rounds: usize) -> Result<Checks> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let file = folder.join("soak.ctw");
    // Four times as often as by default: the file grows through the cache into its limit.
    let flags = [
        "--interval",
        "250ms",
        "--max-size",
        MAX_SIZE,
        "--when",
        "drops>0",
        "--before",
        "2s",
        "--after",
        "2s",
    ];
    let mut recorder = Recorder::start(folder, &file, &flags)?;
    let drops = Drops::start(&["--top", "200"])?;
    let mut watched = [Watched::new("record", recorder.pid())?, Watched::new("drops", drops.pid())?];
    let mut advised = Vec::new();
    let mut told = Kernel::default();
    let before = Counters::read()?;
    let mut own = cpu_ticks(Pid::this())?;
    for number in 1..=rounds {
        let began = Instant::now();
        let advise = thread::spawn(advise);
        let lost = round(number)?;
        told.drop += lost.drop;
        told.early_drop += lost.early_drop;
        advised.push(advise.join().expect("nothing in it panics")?);
        thread::sleep(ROUND.saturating_sub(began.elapsed()));
        let now = cpu_ticks(Pid::this())?;
        watched.iter_mut().try_for_each(|one| one.round(now - own))?;
        own = now;
        let [record, drops] = &watched;
        let size = fs::metadata(&file)?.len() >> 10;
        let advise = advised.last().copied().unwrap_or_default();
        println!(
            "round {number} of {rounds} ({:.0} s): {record}; {drops}; advise {} KB {} ticks; file {size} KB; Δdrop {} elsewhere",
            began.elapsed().as_secs_f64(),
            advise.rss,
            advise.cpu,
            told.drop
        );
    }
    // The kernel cleans up behind a netns in its own time, and only then says what it counted last.
    thread::sleep(Duration::from_secs(10));
    drops.wait_for_ticks(2)?;
    let here = Counters::read()?.since(&before);
    let run = drops.stop()?;
    recorder.signal(Signal::SIGINT)?;
    let (code, said, stderr) = recorder.end()?;
    ensure!(code == Some(0), "ctwatch record ended with {code:?}: {stderr}");
    let mut held = Held::default();
    held.add(&file)?;

    let mut checks = Checks::new();
    checks.figure("rounds", rounds);
    checks.figure("Δdrop", told.drop + here.get("drop"));
    checks.figure("Δearly_drop", told.early_drop + here.get("early_drop"));
    checks.figure("netns", rounds * (LIVES + 1));
    for Watched { name, rounds, .. } in &watched {
        let (first, last) = (rounds[WARM_UP], rounds[rounds.len() - 1]);
        checks.figure(&format!("{name}_rss_kb"), format!("{}->{}", first.rss, last.rss));
        checks.figure(&format!("{name}_fds"), format!("{}->{}", first.fds, last.fds));
        checks.figure(&format!("{name}_cpu"), format!("{:.0}->{:.0}% of ours", first.cpu, last.cpu));
    }
    for fault in watched.iter().flat_map(|one| faults(one.name, &one.rounds[WARM_UP..], &BOUNDS)) {
        checks.that(false, fault);
    }
    // Each is a process of its own, with nothing to hand on.
    let most = advised.iter().map(|one| one.rss).fold(0.0, f64::max);
    checks.figure("advise_rss_kb", format!("at most {most}"));
    checks.that(most < ADVISE_KB, format!("advise took {most} KB, more than {ADVISE_KB}"));
    checks.equal("drops: table_full", run.end.counted("table_full"), told.drop + here.get("drop"));
    checks.equal("drops: evicted", run.end.counted("evicted"), told.early_drop + here.get("early_drop"));
    checks.that(run.end.all_explained(), format!("drops: unexplained {:?}", run.end.unexplained));
    checks.equal("drops: namespaces whose last counts are missing", run.end.netns_gone, 0);
    checks.equal("record: unexplained", held.unexplained, [0; 4]);
    checks.equal("record: Δdrop of the kernel", held.kernel[0], (told.drop + here.get("drop")).cast_signed());
    let last = said.last().map_or(&Value::Null, |line| &line["type"]);
    checks.equal("record: its last line", last.as_str(), Some("recorded"));
    Ok(checks)
}

/// One round: quiet, a storm on all CPUs, entries pushed out, a crowd of namespaces, one of which loses something. What the kernel
/// counted elsewhere than here.
fn round(number: usize) -> Result<Kernel> {
    table::fill(Mix::Assured)?;
    let ports: Vec<u16> = (30_000..30_050).collect();
    udp::send_on_every_cpu(&Plan { fresh_source_every: 0, ..Plan::new(loopback(&ports), 20) })?;
    crate::shell::run(&["conntrack", "-F"])?;
    come_and_go(LIVES)?;
    let life = live(Netns::create(&format!("soak{number}"))?, &[6379, 53], 20)?;
    table::fill(Mix::Realistic)?;
    udp::send(&Plan { pause: Duration::from_millis(20), ..Plan::new(loopback(&[514]), 100) })?;
    // Half the table, so that the last part of each round is quiet.
    crate::shell::run(&["conntrack", "-F"])?;
    table::fill_to(Mix::OneWay, sysctl::read(sysctl::MAX)? / 2)?;
    Ok(Kernel { drop: life.drop, early_drop: life.early_drop })
}

/// Asks for advice, and what that took: the most memory and descriptors, and CPU time.
fn advise() -> Result<Use> {
    let mut child = Command::new("ctwatch")
        .args(["advise", "--window", "15s", "--format", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ctwatch advise")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut most = Use::default();
    while child.try_wait().context("waiting for ctwatch advise")?.is_none() {
        // It may have ended since.
        if let (Ok(rss), Ok(cpu)) = (rss_kb(pid), cpu_ticks(pid)) {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            most = Use {
                rss: most.rss.max(rss as f64),
                fds: most.fds.max(fds as f64),
                cpu: most.cpu.max(cpu as f64),
            };
        }
        thread::sleep(Duration::from_millis(200));
    }
    let output = child.wait_with_output().context("reading what ctwatch advise said")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctwatch advise ended with {}: {said}", output.status);
    let advice: Value = serde_json::from_slice(&output.stdout).context("reading the advice")?;
    ensure!(advice["type"] == "advice", "no advice: {advice}");
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(of: impl Fn(f64) -> Use) -> Vec<Use> {
        (0..20).map(|number| of(f64::from(number))).collect()
    }

    #[test]
    fn what_only_goes_up_and_down_does_not_grow() {
        let flat =
            rounds(|n| Use { rss: 20_000.0 + 300.0 * (n * 1.7).sin(), fds: 31.0, cpu: 90.0 + n % 3.0 });
        assert_eq!(faults("x", &flat, &BOUNDS), [""; 0]);
        assert_eq!(growth([5.0, 5.0].into_iter()), 0.0);
        assert_eq!(growth([1.0, 2.0, 3.0].into_iter()), 2.0);
    }

    #[test]
    fn a_leak_is_told_whatever_leaks() {
        let of = |rss, fds, cpu| Use { rss, fds, cpu };
        let memory = rounds(|n| of(20_000.0 + 100.0 * n, 31.0, 90.0));
        let descriptors = rounds(|n| of(20_000.0, 31.0 + (n / 10.0).floor(), 90.0));
        let time = rounds(|n| of(20_000.0, 31.0, 90.0 + 4.0 * n));
        for (leak, what) in [(memory, "memory"), (descriptors, "descriptors"), (time, "CPU time")] {
            let told = faults("x", &leak, &BOUNDS);
            assert!(told.len() == 1 && told[0].contains(what), "{told:?}");
        }
    }
}
