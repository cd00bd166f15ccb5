//! Nobody reads what ctwatch prints, and somebody sets the clock: it goes on counting, hears signals, and keeps what it has.
//! What was lost meanwhile is counted by /proc/net/stat/nf_conntrack.

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Write as _, pipe};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::ctwatch::record::Recording;
use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::record::{Held, Recorder};
use super::{Guest, Outcome};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::nftables;
use crate::shell::run;
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

const PORTS: [u16; 3] = [514, 6379, 9999];
/// As emulation may be slow.
const PATIENCE: Duration = Duration::from_secs(90);

fn signal(child: &Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(child.id().cast_signed()), signal).context("sending a signal")
}

fn end(child: &mut Child, within: Duration) -> Result<(Option<i32>, Duration)> {
    let began = Instant::now();
    while began.elapsed() < within {
        if let Some(status) = child.try_wait()? {
            return Ok((status.code(), began.elapsed()));
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    bail!("deaf: it goes on {within:?} after a signal")
}

/// A storm of drops goes to a pipe that nobody reads until the storm is over.
pub(super) fn storm_nobody_reads(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    let (reader, writer) = pipe()?;
    let mut child = Command::new("ctwatch")
        .args(["drops", "--format", "json", "--events", "--interval", "500ms"])
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ctwatch")?;
    // Its first line, and then no more.
    let mut reader = BufReader::with_capacity(512, reader);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let before = Counters::read()?;
    table::fill(Mix::Realistic)?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&PORTS), 12_000))?;
    thread::sleep(Duration::from_secs(2));
    let kernel = Counters::read()?.since(&before);
    // The reader comes back.
    let lines = thread::spawn(move || reader.lines().collect::<Result<Vec<_>, _>>());
    thread::sleep(Duration::from_secs(4));
    signal(&child, Signal::SIGTERM)?;
    let (code, _) = end(&mut child, PATIENCE)?;
    let lines = lines.join().ok().context("reading its lines")??;
    let said = std::io::read_to_string(child.stderr.take().context("its stderr")?)?;

    let mut checks = Checks::new();
    let parsed: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    checks.equal("lines that are whole", parsed.len(), lines.len());
    let of = |kind: &str| parsed.iter().filter(|line| line["type"] == kind).count();
    let last = parsed.last().context("no line came")?;
    let missing = last["unwritten_lines"].as_u64().unwrap_or(0);
    checks.figure("refused", sent.total_refused());
    checks.figure("events read", of("drop"));
    checks.figure("lines left out", missing);
    checks.equal("exit code", code, Some(1));
    checks.that(said.contains("were left out"), format!("stderr: {said}"));
    checks.that(missing > 1000, "too few lines were left out to show anything");
    checks.that(
        parsed.iter().any(|line| line["code"] == "output_left_out"),
        "nobody said that lines are missing",
    );
    checks.equal("last line", last["type"].as_str(), Some("end"));
    checks.equal("kernel's drop", last["kernel_counters"]["drop"].as_u64(), Some(kernel.get("drop")));
    checks.equal("unexplained", last["unexplained"]["drop"].as_i64(), Some(0));
    Ok(Outcome::Passed(checks.finish()?))
}

fn full() -> Result<(PipeReader, PipeWriter)> {
    let (reader, mut writer) = pipe()?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    for piece in [&[b' '; 4096][..], b" "] {
        while writer.write(piece).is_ok() {}
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer))
}

/// Each command with a stdout, or stdout and stderr, that take nothing.
pub(super) fn signals_are_heard(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let folder = TempDir::new()?;
    let file = folder.path().join("a.ctw");
    let mut recorder = Recorder::start(folder.path(), &file, &["--duration", "4s"])?;
    recorder.end()?;
    let (file, other) = (file.display().to_string(), folder.path().join("b.ctw").display().to_string());
    let mut checks = Checks::new();
    let mut slowest = Duration::ZERO;
    for arguments in [
        &["drops", "--events"][..],
        &["record", "-o", &other],
        &["table", "--watch", "1s"],
        &["advise", "--window", "3s"],
        &["replay", &file],
        &["check"],
        &["report", &file],
        &["export", &file, "--to", "ndjson"],
    ] {
        for (both, sent) in [(false, Signal::SIGTERM), (true, Signal::SIGINT)] {
            let ((_out_reader, out), (_err_reader, err)) = (full()?, full()?);
            let mut command = Command::new("ctwatch");
            command.args(arguments).stdin(Stdio::null()).stdout(out);
            command.stderr(if both { Stdio::from(err) } else { Stdio::null() });
            let mut child = command.spawn().context("starting ctwatch")?;
            // Into what it has to say.
            thread::sleep(Duration::from_secs(if arguments[0] == "advise" { 12 } else { 4 }));
            ensure!(child.try_wait()?.is_none(), "{arguments:?} ended by itself");
            signal(&child, sent)?;
            let (code, took) = end(&mut child, Duration::from_secs(15)).with_context(|| {
                format!("{arguments:?}, {}", if both { "both stuck" } else { "stdout stuck" })
            })?;
            checks.that(
                code != Some(0),
                format!("{arguments:?} ended with {code:?}: nobody read what it said"),
            );
            slowest = slowest.max(took);
        }
    }
    checks.figure("slowest end", format!("{:.1} s", slowest.as_secs_f64()));
    Ok(Outcome::Passed(checks.finish()?))
}

/// The wall clock is set ahead by 400 days while it records, and then back by 800.
pub(super) fn clock_is_set(_: &Guest) -> Result<Outcome> {
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let folder = TempDir::new()?;
    let file = folder.path().join("a.ctw");
    // With the wall clock all of this would be too old at once.
    let flags = ["--keep", "1h", "--interval", "500ms"];
    let mut recorder = Recorder::start(folder.path(), &file, &flags)?;
    let before = Counters::read()?;
    let mut refused = 0;
    for step in [400i64, -800, 400] {
        thread::sleep(Duration::from_secs(6));
        refused += udp::send_on_every_cpu(&Plan::new(loopback(&PORTS), 100))?.total_refused();
        thread::sleep(Duration::from_secs(2));
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().cast_signed();
        run(&["date", "-s", &format!("@{}", now + step * 86_400)])?;
    }
    thread::sleep(Duration::from_secs(8));
    let kernel = Counters::read()?.since(&before);
    recorder.signal(Signal::SIGTERM)?;
    let (code, lines, stderr) = recorder.end()?;

    let mut checks = Checks::new();
    checks.equal("exit code", code, Some(0));
    checks.that(stderr.is_empty(), format!("stderr: {stderr}"));
    let recording = Recording::open(&file)?;
    recording.verify()?;
    let only = recording.runs()?.into_iter().next().context("no run")?;
    let ticks = recording.ticks(&only, i64::MIN..=i64::MAX)?.collect::<Result<Vec<_>>>()?;
    checks.that(ticks.iter().all(|one| one.level == 0), "ticks were summed up");
    checks.that(ticks.is_sorted_by(|a, b| a.id + 1 == b.id && a.tick.mono_us < b.tick.mono_us), "no order");
    let spans: Vec<f64> = ticks.iter().map(|one| one.tick.interval_us as f64 / 1e6).collect();
    let sum: f64 = spans.iter().sum();
    let duration = lines.last().and_then(|line| line["duration_s"].as_f64()).unwrap_or(0.0);
    checks
        .that((sum - duration).abs() < 1.0 && (15.0..600.0).contains(&sum), format!("{sum} s, {duration} s"));
    let mut held = Held::default();
    held.add(&file)?;
    checks.figure("ticks", ticks.len());
    checks.figure("refused", refused);
    checks.equal("recorded drop against Δdrop", held.kernel[0] as u64, kernel.get("drop"));
    let replayed = Command::new("ctwatch")
        .args(["replay", "--speed", "max", "--format", "json"])
        .arg(&file)
        .output()
        .context("replaying")?;
    let steps = String::from_utf8_lossy(&replayed.stdout).matches("\"clock_stepped\"").count();
    checks.equal("steps that the replay tells of", steps, 3);
    Ok(Outcome::Passed(checks.finish()?))
}
