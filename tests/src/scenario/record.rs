//! `ctwatch record` as scripts use it: incidents with known figures, exit codes, rotation, and what is left of a killed one.
//! What a recording must hold is counted by the senders and by /proc/net/stat/nf_conntrack.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ::ctwatch::record::Recording;
use ::ctwatch::record::delta_decoder::DeltaDecoder;
use ::ctwatch::record::rows::SnapshotReason;
use anyhow::{Context, Result, bail, ensure};
use ctwatch_common::Cause;
use ctwatch_common::slot::{KIND_LOOPBACK, KIND_UNATTRIBUTED};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{Guest, Outcome, readers};
use crate::checks::Checks;
use crate::counters::Counters;
use crate::nftables;
use crate::sysctl;
use crate::table::{self, Mix};
use crate::traffic::loopback;
use crate::traffic::udp::{self, Plan};

/// As emulation may be slow.
const PATIENCE: Duration = Duration::from_secs(90);
const PORTS: [u16; 3] = [514, 6379, 9999];

/// A running `ctwatch record`, killed when dropped.
pub(super) struct Recorder {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Recorder {
    /// Starts it and waits until it records.
    pub(super) fn start(folder: &Path, file: &Path, more: &[&str]) -> Result<Self> {
        let recorder = Self::spawn(folder, file, more)?;
        recorder.wait_for("recording", 1)?;
        Ok(recorder)
    }

    fn spawn(folder: &Path, file: &Path, more: &[&str]) -> Result<Self> {
        let place = tempfile::Builder::new().prefix("said").tempdir_in(folder)?.keep();
        let (out, err) = (place.join("out"), place.join("err"));
        let child = Command::new("ctwatch")
            .arg("record")
            .arg("-o")
            .arg(file)
            .args(more)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()
            .context("starting ctwatch record")?;
        Ok(Self { child, out, err })
    }

    fn lines(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.out)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
            .collect()
    }

    /// Waits until it has printed so many lines of this type.
    pub(super) fn wait_for(&self, kind: &str, count: usize) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while self.lines()?.iter().filter(|line| line["type"] == kind).count() < count {
            if Instant::now() > until {
                bail!("no line {kind}; stderr: {}", fs::read_to_string(&self.err)?);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The process, for whoever looks at what it takes.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).context("sending a signal")
    }

    /// Waits for its end: its exit code, and what it said.
    pub(super) fn end(&mut self) -> Result<(Option<i32>, Vec<Value>, String)> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status.code(), self.lines()?, fs::read_to_string(&self.err)?));
            }
            ensure!(Instant::now() < until, "ctwatch record did not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a recording holds, added up.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Packets refused by port.
    pub(super) refused: BTreeMap<u16, u64>,
    evicted: u64,
    without_tuple: u64,
    /// How far the kernel's counters moved: drop, early_drop.
    pub(super) kernel: [i64; 2],
    pub(super) unexplained: [i64; 4],
    lost_events: i64,
    ticks: usize,
}

impl Held {
    /// Adds the last run of a file; everything in the file must be sound.
    pub(super) fn add(&mut self, file: &Path) -> Result<()> {
        let recording = Recording::open(file)?;
        recording.verify()?;
        let runs = recording.runs()?;
        let run = runs.last().context("a recording without a run")?;
        let mut decoder = DeltaDecoder::default();
        let mut last = None;
        for stored in recording.ticks(run, i64::MIN..=i64::MAX)? {
            let tick = stored?.tick;
            self.ticks += 1;
            self.lost_events += tick.lost_events.iter().sum::<i64>();
            for netns in &tick.netns {
                self.kernel[0] += netns.kernel[0];
                self.kernel[1] += netns.kernel[1];
            }
            decoder.add(&tick);
            last = Some(tick);
        }
        let last = last.context("a recording without a tick")?;
        self.unexplained = last.unexplained;
        // As it would enter `state` in a replay.
        for slot in decoder.sample(&last, &recording.names(run.id)?).slots {
            match Cause::from_number(slot.key.kind & !(KIND_LOOPBACK | KIND_UNATTRIBUTED)) {
                _ if slot.key.kind & KIND_UNATTRIBUTED != 0 => self.without_tuple += slot.count,
                Some(Cause::TableFull) => *self.refused.entry(slot.key.port).or_default() += slot.count,
                Some(Cause::Evicted) => self.evicted += slot.count,
                _ => {}
            }
        }
        Ok(())
    }
}

pub(super) fn incident_with_known_figures(_: &Guest) -> Result<Outcome> {
    let folder = TempDir::new()?;
    let (file, told) = (folder.path().join("case.ctw"), folder.path().join("told.json"));
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Realistic)?;
    let exec = format!("sh -c 'cat > {}'", told.display());
    let flags =
        ["--when", "drops>0", "--before", "3s", "--after", "4s", "--once", "--duration", "80s", "--exec"];
    let mut recorder = Recorder::start(folder.path(), &file, &[&flags[..], &[&exec]].concat())?;
    // The incident is to have something before it.
    wait_for_ticks(&file, 2)?;
    table::fill(Mix::Realistic)?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&PORTS), 400))?;
    fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "31")?;
    let (code, lines, stderr) = recorder.end()?;
    fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "30")?;
    let kernel = Counters::read()?.since(&before);

    let mut checks = Checks::new();
    checks.equal("exit code", code, Some(0));
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["type"].as_str()).collect();
    checks.that(
        kinds == ["recording", "incident", "recorded"],
        format!("it printed {kinds:?}; stderr: {stderr}"),
    );
    checks.equal("reason", lines.last().and_then(|line| line["reason"].as_str()), Some("once"));
    let told: Value = serde_json::from_str(&fs::read_to_string(told)?)?;
    checks.that(lines.get(1) == Some(&told), format!("--exec was told {told}"));
    let recorded = Recording::open(&file)?.incidents(1)?;
    checks.equal("its number", told["incident"].as_i64(), recorded.first().map(|(number, _)| *number));
    let mut held = Held::default();
    held.add(&file)?;
    checks.figure("refused", sent.total_refused());
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("Δearly_drop", kernel.get("early_drop"));
    checks.figure("ticks", held.ticks);
    checks.figure("bytes", fs::metadata(&file)?.len());
    checks.that(sent.total_refused() > 1000, "too few sends were refused to show anything");
    checks.equal_maps("recorded table_full per port against EPERM", &held.refused, &sent.refused());
    checks.equal("recorded drop against Δdrop", held.kernel[0] as u64, kernel.get("drop"));
    checks.equal("recorded early_drop against Δearly_drop", held.kernel[1] as u64, kernel.get("early_drop"));
    checks.equal("recorded evictions against Δearly_drop", held.evicted, kernel.get("early_drop"));
    checks.equal("unexplained in the end", held.unexplained, [0; 4]);
    checks.equal("losses without a tuple", held.without_tuple, 0);
    what_is_around(&file, &mut checks)?;
    readers::agree(&file, &sent.refused(), &kernel, &mut checks)?;
    let mut none = Recorder::spawn(
        folder.path(),
        &folder.path().join("none.ctw"),
        &["--when", "drops>1000000", "--once", "--duration", "2s"],
    )?;
    checks.equal("exit code without an incident", none.end()?.0, Some(4));
    Ok(Outcome::Passed(checks.finish()?))
}

/// Waits until a recording in the making holds so many ticks.
fn wait_for_ticks(file: &Path, wanted: usize) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let recording = Recording::open(file)?;
        let ticks = match recording.runs()?.pop() {
            Some(run) => recording.ticks(&run, i64::MIN..=i64::MAX)?.count(),
            None => 0,
        };
        if ticks >= wanted {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{ticks} of {wanted} ticks are recorded after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The incident, the listings, the change of a setting and the sampled losses.
fn what_is_around(file: &Path, checks: &mut Checks) -> Result<()> {
    let recording = Recording::open(file)?;
    let run = recording.runs()?.pop().context("no run")?;
    let incidents = recording.incidents(run.id)?;
    checks.equal("incidents", incidents.len(), 1);
    if let [(_, incident)] = incidents.as_slice() {
        checks.that(incident.detail_from < incident.tick, "no detail from before the incident");
        checks.that(incident.ceased.is_some() && incident.detail_to > incident.tick, format!("{incident:?}"));
    }
    let occasions: Vec<SnapshotReason> = recording.listings(run.id)?.iter().map(|one| one.reason).collect();
    // A table that gets into trouble is listed for that, too, unless the trigger's listing was first.
    let (of_trouble, others): (Vec<_>, Vec<_>) =
        occasions.into_iter().partition(|reason| *reason == SnapshotReason::Changed);
    checks.equal("listings", others, vec![SnapshotReason::Start, SnapshotReason::Trigger]);
    checks.that(of_trouble.len() <= 1, format!("{} listings of one table in trouble", of_trouble.len()));
    let settings = recording.settings(run.id)?;
    let changed: Vec<_> = settings.iter().filter(|setting| setting.before.is_some()).collect();
    checks.that(
        changed.iter().any(|one| {
            one.name.raw().ends_with("nf_conntrack_udp_timeout")
                && one.value.as_ref().is_some_and(|value| *value == "31")
        }),
        format!("changes seen: {changed:?}"),
    );
    let losses = recording.losses(i64::MIN..=i64::MAX)?;
    checks.figure("sampled", losses.len());
    let named =
        losses.iter().filter(|(_, loss)| loss.owner.as_ref().is_some_and(|owner| owner.process.is_some()));
    checks.that(named.count() > 0, "no sampled loss has a process");
    Ok(())
}

pub(super) fn rotation_refusal_and_kill9(_: &Guest) -> Result<Outcome> {
    let folder = TempDir::new()?;
    let file = folder.path().join("host.ctw");
    nftables::track()?;
    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let recorder = Recorder::start(folder.path(), &file, &[])?;
    let mut checks = Checks::new();
    let (code, _, stderr) = Recorder::spawn(folder.path(), &file, &[])?.end()?;
    checks.equal("exit code of a second recorder", code, Some(2));
    checks.that(stderr.contains("another ctwatch is recording"), format!("the second one said: {stderr}"));
    let before = Counters::read()?;
    let mut refused = BTreeMap::new();
    let mut rotated = Vec::new();
    for round in 0..3 {
        let sent = udp::send_on_every_cpu(&Plan::new(loopback(&PORTS), 100))?;
        for (port, packets) in sent.refused() {
            *refused.entry(port).or_default() += packets;
        }
        if round < 2 {
            // The first file is closed while somebody is in the middle of reading it.
            let _reader = (round == 0).then(|| Recording::open(&file)).transpose()?;
            recorder.signal(Signal::SIGHUP)?;
            recorder.wait_for("recorded", round + 1)?;
            recorder.wait_for("recording", round + 2)?;
        }
    }
    let kernel = Counters::read()?.since(&before);
    // What was seen is in the next tick, and that is committed before the one after it.
    thread::sleep(Duration::from_secs(4));
    recorder.signal(Signal::SIGKILL)?;
    for line in recorder.lines()?.iter().filter(|line| line["type"] == "recorded") {
        rotated.push(PathBuf::from(line["file"].as_str().context("a line without a file")?));
    }
    drop(recorder);
    checks.equal("files that were rotated", rotated.len(), 2);
    let mut held = Held::default();
    for file in rotated.iter().chain([&file]) {
        held.add(file)?;
    }
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("ticks", held.ticks);
    checks.that(kernel.get("drop") > 500, "too few packets were lost to show anything");
    checks.equal_maps("table_full per port over three files against EPERM", &held.refused, &refused);
    checks.equal("recorded drop against Δdrop", held.kernel[0] as u64, kernel.get("drop"));
    checks.equal("losses without a tuple", held.without_tuple, 0);
    // After a kill it goes on in the same file.
    let mut again = Recorder::start(folder.path(), &file, &["--duration", "2s"])?;
    checks.equal("exit code of the next one", again.end()?.0, Some(0));
    let recording = Recording::open(&file)?;
    recording.verify()?;
    checks.equal("runs in the file", recording.runs()?.len(), 2);
    checks.that(recording.runs()?[0].end.is_none(), "the killed run has an end");
    Ok(Outcome::Passed(checks.finish()?))
}

/// The script of docs/record, and a storm that is recorded beside what `drops` sees: recording adds no loss of its own.
pub(super) fn script_and_no_loss_of_its_own(_: &Guest) -> Result<Outcome> {
    let folder = TempDir::new()?;
    let script = folder.path().join("capture.sh");
    fs::write(&script, include_str!("../../../docs/record/capture.sh"))?;
    nftables::track()?;
    let mut checks = Checks::new();
    let capture = |wait: &str, condition: &str| -> Result<(Option<i32>, usize)> {
        let status = Command::new("sh")
            .arg(&script)
            .args([wait, &folder.path().display().to_string(), condition])
            .env("AFTER", "1s")
            .stdout(Stdio::null())
            .status()
            .context("running capture.sh")?;
        // Each in a folder of its own, which is gone if nothing is in it.
        let below = fs::read_dir(folder.path())?.flatten().filter(|entry| entry.path().is_dir());
        let files: Vec<_> = below.flat_map(|entry| fs::read_dir(entry.path())).flatten().flatten().collect();
        let kept = files
            .iter()
            .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "ctw"))
            .count();
        ensure!(kept == files.len(), "other files are left: {files:?}");
        Ok((status.code(), kept))
    };
    checks.equal("capture.sh without an incident", capture("2s", "drops>0")?, (Some(4), 0));
    checks.equal("capture.sh with one", capture("60s", "fill>=0%")?, (Some(0), 1));

    let _limit = table::lower_limit()?;
    table::fill(Mix::Assured)?;
    let file = folder.path().join("storm.ctw");
    let mut recorder = Recorder::start(folder.path(), &file, &["--when", "drops>0", "--interval", "200ms"])?;
    let before = Counters::read()?;
    let sent = udp::send_on_every_cpu(&Plan::new(loopback(&PORTS), 8000))?;
    thread::sleep(Duration::from_secs(2));
    let kernel = Counters::read()?.since(&before);
    recorder.signal(Signal::SIGINT)?;
    checks.equal("exit code", recorder.end()?.0, Some(0));
    let mut held = Held::default();
    held.add(&file)?;
    checks.figure("Δdrop", kernel.get("drop"));
    checks.figure("lost_events", held.lost_events);
    checks.figure("ticks", held.ticks);
    checks.figure("bytes", fs::metadata(&file)?.len());
    checks.equal_maps("table_full per port against EPERM", &held.refused, &sent.refused());
    checks.equal("recorded drop against Δdrop", held.kernel[0] as u64, kernel.get("drop"));
    checks.equal("unexplained in the end", held.unexplained, [0; 4]);
    checks.figure("entries", sysctl::read(sysctl::COUNT)?);
    Ok(Outcome::Passed(checks.finish()?))
}
