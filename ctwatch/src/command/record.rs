//! `ctwatch record`: the flight recorder. The loop is that of `drops`; what it sees goes into a file.
//! stdout is for scripts, a line of JSON for each thing that happened; people read stderr.

mod exec;
mod pressure;
mod rules;
mod snapshot;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::time::sleep;

use super::live::{
    self, AttachRequest, Ended, LiveLoop, LiveSession, LiveSink, Shutdown, StopReason, TickOutcome,
};
use super::output::Output;
use super::{VERSION, confine, event_loop};
use crate::children::threads;
use crate::cli::{Config, RecordConfig};
use crate::contract::{Notice, Start, TableStatus};
use crate::error::{Exit, Failure, is_closed_pipe};
use crate::files::place::{self, Sharing};
use crate::foreign::{Foreign, Shown as _, harmless, to_json};
use crate::kernel::roots::Roots;
use crate::kernel::standing::Standing;
use crate::model::{Backend, Loss, NetnsId, Sample, WallMono};
use crate::outlet::Outlet;
use crate::probe::diagnostics;
use crate::probe::plan::ProbeOptions;
use crate::record::lines::Line;
use crate::record::recorder::{Fired, Plan, Recorder};
use crate::record::rows::{EndReason, Run, SnapshotReason};
use crate::record::trigger::Condition;
use crate::record::writer_thread::WriterThread;
use crate::record::{DiskFull, Lock, RetentionLimits, SCHEMA, Writer, files};
use crate::sandbox::{Files, Work};
use crate::state::StateConfig;
use crate::{netns, stderr};
use exec::Commands;
use pressure::Pressure;
use rules::{News, RuleWatch};
use snapshot::SnapshotQueue;

/// How long the end may take once a signal came: the disk may be slow, and it may not answer at all.
const DISK: Duration = Duration::from_secs(30);
/// How long the end of a run that ends by itself waits for tables that are being listed.
const SNAPSHOTS: Duration = Duration::from_secs(3);
/// How long a supervisor may take to hear something.
const SUPERVISOR: Duration = Duration::from_secs(1);

/// Runs it.
pub fn run(config: &Config, record: &RecordConfig) -> Result<Exit> {
    let roots = config.roots();
    let output = place::file(&record.output, Sharing::Refused)
        .map_err(|error| Failure::usage(format!("recording to {}: {error}", record.output.shown())))?;
    let record = RecordConfig { output, ..record.clone() };
    let standing = confine(config, Work::RunsPrograms, &Files::keep(&record.output));
    event_loop()?.block_on(keep(config, &record, roots, &standing))
}

async fn keep(config: &Config, record: &RecordConfig, roots: Roots, standing: &Standing) -> Result<Exit> {
    // Whether the file can be written is told before anything waits; it is made once there is something to write.
    let mut lock = Lock::take(&record.output)?;
    Writer::check(&record.output)?;
    lock.reserve_space(&record.output)?;
    let mut shutdown = Shutdown::with_reopen_on_hangup()?;
    shutdown.end_within(DISK);
    let log_level = if config.verbosity >= 2 { diagnostics::DEBUG } else { 0 };
    // A host may load conntrack never, and then this is all the time there is.
    shutdown.after(record.duration);
    let mut waited = false;
    let request = AttachRequest { roots: &roots, choice: record.backend, standing, log_level };
    let options = |_, unasked: ProbeOptions| ProbeOptions {
        flows: unasked.kprobes && record.count_flows,
        loss_events: true,
        event_details: true,
        owners: true,
        ..unasked
    };
    let waiting = |notice: &Notice| {
        waited = true;
        stderr::line(&notice.text);
        // A host may load conntrack late or never: a start script doesn't wait for it.
        ready("waiting until nf_conntrack is loaded");
        Ok(())
    };
    let session = LiveSession::attach(request, options, waiting, &mut shutdown);
    let Some(mut session) = session.await? else {
        return Ok(if record.once { Exit::NoIncident } else { Exit::Done });
    };
    session.tell_if_counters_must_do(record.backend);
    let cannot_fire = check_triggers(record, session.backend, session.watch.has_no_limit())?;
    let mut recording = Recording::start(record, &roots, lock, &session)?;
    for text in cannot_fire {
        recording.tell("trigger_cannot_fire", &text);
    }
    if !waited {
        shutdown.after(record.duration);
    }
    session.watch.start_census();
    ready(&format!("recording into {}", record.output.shown()));
    let reason = recording.follow(&mut session, &mut shutdown).await;
    let closed = match reason {
        Ok(reason) => recording.end(reason, &mut shutdown).await,
        // What writing failed of is known to the one who wrote.
        Err(error) if error.is::<DiskFull>() => {
            recording.end(EndReason::DiskFull, &mut shutdown).await.and(Err(error))
        }
        Err(error) => recording.end(EndReason::Failed, &mut shutdown).await.and(Err(error)),
    };
    closed?;
    match recording.output.finish() {
        // A reader who went has been told of on stderr, and took nothing from the recording.
        Err(error) if is_closed_pipe(&error) => {}
        finished => finished?,
    }
    Ok(if record.once && recording.recorder.incidents() == 0 { Exit::NoIncident } else { Exit::Done })
}

/// Whether new and ended flows are counted.
fn counts_flows(record: &RecordConfig, backend: Backend) -> bool {
    record.count_flows && backend == Backend::Kprobe
}

/// What is to be said of triggers that can't fire here. If none of them can, that is all.
fn check_triggers(
    record: &RecordConfig,
    backend: Backend,
    is_unlimited: bool,
) -> Result<Vec<String>, Failure> {
    let has_flows = counts_flows(record, backend);
    let without_flows = (!has_flows).then(|| without_flows(record, backend)).flatten();
    let without_limit = is_unlimited.then(|| without_limit(record)).flatten();
    let texts: Vec<String> = without_flows.into_iter().chain(without_limit).collect();
    let can_fire =
        |one: &Condition| (has_flows || !one.needs_flows()) && !(is_unlimited && one.needs_limit());
    if record.when.is_empty() || record.when.iter().any(can_fire) {
        return Ok(texts);
    }
    Err(Failure::cannot_watch(texts.join("; ")))
}

fn without_flows(record: &RecordConfig, backend: Backend) -> Option<String> {
    let conditions = named(record, Condition::needs_flows)?;
    Some(format!(
        "--when {conditions}: it can't fire: the time to full follows from counted flows, and the {} backend doesn't count \
         them: take fill>=90%, or the kprobe backend (`ctwatch check` says what it lacks here)",
        backend.name()
    ))
}

fn without_limit(record: &RecordConfig) -> Option<String> {
    let conditions = named(record, Condition::needs_limit)?;
    Some(format!(
        "--when {conditions}: it can't fire: nf_conntrack_max is 0, so the table has no limit and is never full: take drops>0, or \
         set a limit"
    ))
}

/// The conditions that are such.
fn named(record: &RecordConfig, is_such: fn(&Condition) -> bool) -> Option<String> {
    let such: Vec<String> = record.when.iter().filter(|one| is_such(one)).map(ToString::to_string).collect();
    (!such.is_empty()).then(|| such.join(", "))
}

/// For a supervisor that waits for it (systemd's Type=notify) and shows the status; without one it is nothing.
fn ready(status: &str) {
    // A line break would begin another assignment.
    let status = harmless(status).into_owned();
    notify(move || {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&status)]);
    });
}

/// Tells the supervisor something, and waits for it only so long: its socket may be full.
fn notify(tell: impl FnOnce() + Send + 'static) {
    let (sender, told) = channel();
    let begun = threads::start("notify", 128 << 10, move || {
        tell();
        let _ = sender.send(());
    });
    match begun {
        Ok(_) if told.recv_timeout(SUPERVISOR).is_err() => {
            stderr::line("the supervisor doesn't take notifications: its socket is full");
        }
        Ok(_) => {}
        Err(error) => stderr::line(format_args!(
            "the supervisor isn't told: starting a thread that waits for it: {error}"
        )),
    }
}

/// A recording that is being made.
struct Recording<'a> {
    record: &'a RecordConfig,
    recorder: Recorder,
    run: Run,
    start: Start,
    lock: Arc<Lock>,
    snapshots: SnapshotQueue,
    pressure: Pressure,
    rules: RuleWatch,
    commands: Commands,
    own: NetnsId,
    /// No table has a limit, and it has been said what that means.
    is_unlimited: bool,
    out: Outlet,
    output: Output,
}

impl<'a> Recording<'a> {
    fn start(record: &'a RecordConfig, roots: &Roots, lock: Lock, session: &LiveSession) -> Result<Self> {
        let start = session.start_record(roots);
        let run = described(record, roots, &start, session.backend);
        let lock = Arc::new(lock);
        let (writer, next_tick) = open(record, &run, &lock)?;
        let plan = Plan {
            when: record.when.clone(),
            before: record.before,
            after: record.after,
            interval: record.interval,
        };
        let settings = StateConfig::totals(session.backend, record.count_flows);
        let own = netns::own()?;
        let snapshots = SnapshotQueue::new(roots);
        let recorder = Recorder::new(plan, settings, roots, writer, next_tick);
        let commands = Commands::new(record.exec.clone());
        let rules = RuleWatch::new(roots, own);
        let (out, output) = Output::open()?;
        let mut recording = Self {
            record,
            recorder,
            run,
            start,
            lock,
            snapshots,
            pressure: Pressure::default(),
            rules,
            commands,
            own,
            is_unlimited: session.watch.has_no_limit(),
            out,
            output,
        };
        recording.take_snapshot(own, SnapshotReason::Start);
        recording.say_open()?;
        Ok(recording)
    }

    /// Until it is ended; says why it was.
    async fn follow(&mut self, session: &mut LiveSession, shutdown: &mut Shutdown) -> Result<EndReason> {
        let mut steps = LiveLoop::default();
        let every = self.record.interval;
        let reason = loop {
            match steps.run(&mut session.watch, self, shutdown, every).await? {
                Ended::Stopped(StopReason::Reopen) => {
                    // What came until now belongs to the file that is closed now.
                    if threads::try_one().is_ok() {
                        self.sample(&session.watch.sample()?)?;
                        self.rotate()?;
                        session.watch.restart_census();
                    } else {
                        self.tell_not_rotated("no thread can be started now");
                    }
                }
                Ended::Stopped(StopReason::Signal) => break EndReason::Signal,
                Ended::Stopped(StopReason::Elapsed) => break EndReason::Duration,
                Ended::Done => break EndReason::Once,
            }
        };
        notify(|| drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping])));
        live::finish(&mut session.watch, self)?;
        Ok(reason)
    }

    /// Closes the file under another name, and goes on in a new one; where that can't be had, in the same one.
    fn rotate(&mut self) -> Result<()> {
        let output = &self.record.output;
        let aside = aside(output, Timestamp::now());
        // Before anything is closed: a folder may have become one that nothing can be renamed or made in.
        if let Err(error) = files::try_folder(output) {
            self.tell_not_rotated(&format!("nothing can be made next to {}: {error}", output.shown()));
            return Ok(());
        }
        self.recorder.finish(EndReason::Rotated)?;
        self.run = Run { started: WallMono::now(), continues: true, ..self.run.clone() };
        match files::set_aside(output, &aside) {
            // Somebody else moved it: that was rotation enough.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.say_incidents(output)?;
                return self.go_on(open(self.record, &self.run, &self.lock)?);
            }
            Err(error) => {
                self.say_incidents(output)?;
                self.go_on(open(self.record, &self.run, &self.lock)?)?;
                let why = format!("renaming {} to {}: {error}", output.shown(), aside.shown());
                self.tell_not_rotated(&why);
                return Ok(());
            }
            Ok(()) => {}
        }
        match open(self.record, &self.run, &self.lock) {
            Ok(opened) => {
                self.say_incidents(&aside)?;
                self.say_closed(&aside, EndReason::Rotated)?;
                self.go_on(opened)
            }
            Err(error) => {
                // The old one is there yet. What it can't be gone on with for is told by that.
                files::set_aside(&aside, output)
                    .with_context(|| format!("renaming {} to {}", aside.shown(), output.shown()))?;
                self.say_incidents(output)?;
                self.go_on(open(self.record, &self.run, &self.lock)?)?;
                self.tell_not_rotated(&format!("{error:#}"));
                Ok(())
            }
        }
    }

    fn go_on(&mut self, (writer, next_tick): (WriterThread, i64)) -> Result<()> {
        self.recorder.continue_in(writer, next_tick);
        self.take_snapshot(self.own, SnapshotReason::Start);
        self.rules.forget();
        self.say_open()
    }

    fn tell_not_rotated(&mut self, why: &str) {
        self.tell("not_rotated", &format!("the file goes on, as no other could be begun: {why}"));
    }

    async fn end(&mut self, reason: EndReason, shutdown: &mut Shutdown) -> Result<()> {
        self.finish_snapshots(reason).await?;
        let until = Instant::now() + Commands::patience(reason);
        // They may read the file, and it is closed best while nobody does.
        self.commands.wait(until, shutdown, |text| stderr::line(text)).await;
        let finished = self.recorder.finish(reason);
        // Incidents of the last moment.
        let said = self.say_incidents(&self.record.output);
        self.commands.wait(until, shutdown, |text| stderr::line(text)).await;
        let reason = match &finished {
            Ok(()) => reason,
            Err(error) if error.is::<DiskFull>() => EndReason::DiskFull,
            Err(_) => EndReason::Failed,
        };
        self.say_closed(&self.record.output, reason)?;
        finished.and(said)
    }

    /// What was begun to be read is waited for a moment, if nobody is in a hurry.
    async fn finish_snapshots(&mut self, reason: EndReason) -> Result<()> {
        let is_calm = matches!(reason, EndReason::Duration | EndReason::Once);
        let until = Instant::now() + SNAPSHOTS;
        while is_calm && self.snapshots.is_busy() && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
            self.collect()?;
        }
        Ok(())
    }

    /// Incidents are told once they are in the file: who hears of one may ask for it at once.
    fn say_incidents(&mut self, file: &Path) -> Result<()> {
        for (fired, incident) in self.recorder.numbered(WallMono::now().mono_us) {
            let Fired { condition, tick, at, measured } = fired;
            let line = Line::Incident {
                time: at.time,
                file: shown_whole(file),
                incident,
                condition,
                tick,
                measured,
            };
            let json = to_json(&line)?;
            self.say(&line)?;
            if let Err(text) = self.commands.start(json) {
                self.tell("exec_failed", &text);
            }
        }
        Ok(())
    }

    /// What was read and run aside.
    fn collect(&mut self) -> Result<()> {
        while let Some(found) = self.snapshots.taken() {
            let listing = found.listing.map_err(|error| {
                self.tell("no_listing", &format!("the table could not be listed: {error:#}"));
            });
            self.recorder.found(listing.ok(), found.facts);
        }
        while let Some(News { rules, settings }) = self.rules.poll(Instant::now()) {
            self.recorder.netns_settings(settings);
            match rules {
                Ok(rules) => rules.into_iter().for_each(|rules| self.recorder.rules(rules)),
                Err(error) => {
                    self.tell("no_rules", &format!("the firewall's rules could not be read: {error:#}"))
                }
            }
        }
        while let Some(ended) = self.commands.ended() {
            if let Err(text) = ended {
                self.tell("exec_failed", &text);
            }
        }
        Ok(())
    }

    fn take_snapshot(&mut self, netns: NetnsId, reason: SnapshotReason) {
        if let Err(error) = self.snapshots.start(netns, reason) {
            self.tell("no_listing", &format!("the table can't be listed yet: {error:#}"));
        }
    }

    fn tell(&mut self, code: &str, text: &str) {
        stderr::line(text);
        self.recorder.notice(WallMono::now(), code, text);
    }

    /// Says it when the last limit is taken away, and some trigger waits in vain from then on.
    fn follow_limits(&mut self, tables: &[TableStatus]) {
        let mut there = tables.iter().filter(|table| !table.gone && table.max.is_some()).peekable();
        let is_unlimited = there.peek().is_some() && there.all(|table| table.max == Some(0));
        if std::mem::replace(&mut self.is_unlimited, is_unlimited) || !is_unlimited {
            return;
        }
        if let Some(text) = without_limit(self.record) {
            self.tell("trigger_cannot_fire", &text);
        }
    }

    fn say_open(&mut self) -> Result<()> {
        self.say(&Line::Recording {
            time: self.run.started.time,
            file: shown_whole(&self.record.output),
            schema: SCHEMA,
            version: VERSION.into(),
            backend: self.start.backend,
            backend_reason: self.start.backend_reason.clone(),
        })
    }

    fn say_closed(&mut self, file: &Path, reason: EndReason) -> Result<()> {
        let end = self.recorder.state().end(Timestamp::now());
        let _ = self.output.last_words();
        self.say(&Line::Recorded {
            time: end.time,
            file: shown_whole(file),
            reason: reason.name(),
            bytes: std::fs::metadata(file).map_or(0, |metadata| metadata.len()),
            wal: files::wal(file).map(|wal| shown_whole(&wal)),
            incidents: self.recorder.incidents(),
            duration_s: (end.duration_s * 1000.0).round() / 1000.0,
            counted: end.counted,
            kernel_counters: end.kernel_counters,
            lost_events: end.lost_events,
            unexplained: end.unexplained,
            unwritten_lines: self.output.left_out(),
        })
    }

    /// Whoever reads stdout may have gone or have stopped reading: that is no reason to stop recording, or to wait.
    fn say(&mut self, line: &Line) -> Result<()> {
        let mut text = to_json(line)?;
        text.push('\n');
        if let Err(error) = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            stderr::line(format_args!("writing to stdout: {error}"));
        }
        Ok(())
    }
}

impl LiveSink for Recording<'_> {
    fn loss(&mut self, loss: &Loss) -> Result<()> {
        self.recorder.loss(loss);
        self.rules.lost(loss.packet.netns);
        Ok(())
    }

    fn sample(&mut self, sample: &Sample) -> Result<TickOutcome> {
        self.collect()?;
        if let Some(notice) = self.output.news() {
            self.tell(notice.code, &format!("stdout: {}", notice.text));
        }
        let outcome = self.recorder.sample(sample)?;
        for fired in outcome.fired {
            self.take_snapshot(fired.measured.netns, SnapshotReason::Trigger);
            self.rules.trigger(fired.measured.netns, Instant::now());
        }
        for netns in self.pressure.due(&outcome.report, Instant::now()) {
            self.take_snapshot(netns, SnapshotReason::Changed);
        }
        self.follow_limits(&outcome.report.tables);
        Ok(TickOutcome { unexplained: outcome.report.unexplained, lost_events: outcome.report.lost_events })
    }

    fn notice(&mut self, notice: &Notice) -> Result<()> {
        self.tell(notice.code, &notice.text.sentence());
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        // In a storm there may be no time for other snapshots.
        self.poll()
    }

    fn poll(&mut self) -> Result<()> {
        self.say_incidents(&self.record.output)
    }

    fn is_done(&self) -> bool {
        self.record.once && self.recorder.incidents() > 0 && !self.recorder.has_open_incident()
    }
}

/// Opens the file for a run, and starts the thread that writes it.
fn open(record: &RecordConfig, run: &Run, lock: &Arc<Lock>) -> Result<(WriterThread, i64)> {
    let writer = Writer::open(&record.output, run)?;
    let next_tick = writer.next_tick();
    // Without a trigger there is no detail to be claimed.
    let limits = RetentionLimits {
        keep: record.keep,
        max_size: record.max_size,
        detail: record.before + 2 * record.interval,
    };
    Ok((WriterThread::start(writer, limits, Arc::clone(lock))?, next_tick))
}

fn described(record: &RecordConfig, roots: &Roots, start: &Start, backend: Backend) -> Run {
    let line = |path: &str| {
        let bytes = std::fs::read(roots.proc(path)).ok()?;
        Some(Foreign::from_bytes(bytes.trim_ascii()))
    };
    Run {
        started: WallMono::now(),
        boot_id: line("sys/kernel/random/boot_id"),
        host: line("sys/kernel/hostname"),
        version: start.version.clone(),
        kernel_release: start.kernel_release.clone(),
        backend,
        backend_reason: start.backend_reason.clone(),
        interval_us: record.interval.as_micros() as i64,
        counts_flows: counts_flows(record, backend),
        hooks: start
            .hooks
            .iter()
            .filter(|hook| hook.missing.is_none())
            .map(|hook| (hook.function.clone(), hook.kind.clone()))
            .collect(),
        since_boot: start.since_boot,
        continues: false,
    }
}

/// The name a file gets when the next one begins: host.ctw → host-20261126T220500Z.ctw
fn aside(output: &Path, now: Timestamp) -> PathBuf {
    let time = now.strftime("%Y%m%dT%H%M%SZ");
    let named = |more: &str| {
        let mut name = output.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{time}{more}"));
        if let Some(ending) = output.extension() {
            name.push(".");
            name.push(ending);
        }
        output.with_file_name(name)
    };
    let free = |path: &PathBuf| path.symlink_metadata().is_err();
    let first = Some(named("")).filter(free);
    first.or_else(|| (2..1000).map(|n| named(&format!("-{n}"))).find(free)).unwrap_or_else(|| named(""))
}

fn shown_whole(path: &Path) -> Foreign {
    absolute(path).shown()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_rotated_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let output = folder.path().join("host.ctw");
        let first = aside(&output, now);
        assert_eq!(first, folder.path().join("host-19700101T000000Z.ctw"));
        std::fs::write(&first, "").unwrap();
        assert_eq!(aside(&output, now), folder.path().join("host-19700101T000000Z-2.ctw"));
    }
}
