//! Runs `ctwatch drops --format json` as a script would, and reads its lines into typed views.
//! A line that breaks the JSON contract is an error here; whether its numbers are right is for the scenarios.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

mod record;

pub use record::{Drop, End, Ends, EntryState, Hook, Notice, Occupant, Process, Row, Start, Table, Tick};

/// Software emulation is about thirty times slower than a real host; nothing here waits for less.
const PATIENCE: Duration = Duration::from_secs(90);

/// Everything a run wrote.
#[derive(Debug)]
pub struct Run {
    /// The first line.
    pub start: Start,
    /// Intervals.
    pub ticks: Vec<Tick>,
    /// `--events` lines.
    pub drops: Vec<Drop>,
    /// Remarks.
    pub notices: Vec<Notice>,
    /// The last line.
    pub end: End,
    /// How it exited.
    pub status: ExitStatus,
    /// What it wrote to stderr.
    pub stderr: String,
}

#[derive(Default)]
struct Lines {
    read: Vec<Value>,
    /// When each of them was read.
    times: Vec<Instant>,
    broken: Option<String>,
    closed: bool,
}

/// A running `ctwatch drops --format json`, killed when dropped.
pub struct Drops {
    child: Child,
    lines: Arc<(Mutex<Lines>, Condvar)>,
    readers: Option<(JoinHandle<()>, JoinHandle<String>)>,
    shown: String,
}

impl Drops {
    /// Starts it and waits until it says `start`, that is: until it watches.
    pub fn start(args: &[&str]) -> Result<Self> {
        let drops = Self::spawn(args)?;
        drops.wait_for_start()?;
        Ok(drops)
    }

    /// Starts it without waiting for anything.
    pub fn spawn(args: &[&str]) -> Result<Self> {
        Self::spawn_by(&[], args)
    }

    /// As [`Drops::start`], run by another program, which may put it elsewhere.
    pub fn start_by(starter: &[&str], args: &[&str]) -> Result<Self> {
        let drops = Self::spawn_by(starter, args)?;
        drops.wait_for_start()?;
        Ok(drops)
    }

    fn spawn_by(starter: &[&str], args: &[&str]) -> Result<Self> {
        let program: Vec<&str> = starter.iter().copied().chain(["ctwatch"]).collect();
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .args(["drops", "--format", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting ctwatch")?;
        let stdout = child.stdout.take().context("ctwatch's stdout")?;
        let mut stderr = child.stderr.take().context("ctwatch's stderr")?;
        let lines = Arc::new((Mutex::new(Lines::default()), Condvar::new()));
        let shared = Arc::clone(&lines);
        let out = thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let parsed = line.map_err(|error| error.to_string()).and_then(|line| {
                    serde_json::from_str(&line).map_err(|error| format!("{error} in: {line}"))
                });
                let mut lines = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                match parsed {
                    Ok(value) => {
                        lines.read.push(value);
                        lines.times.push(Instant::now());
                    }
                    Err(error) => lines.broken = Some(error),
                }
                shared.1.notify_all();
            }
            shared.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
            shared.1.notify_all();
        });
        let err = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let shown = format!("ctwatch drops --format json {}", args.join(" "));
        Ok(Self { child, lines, readers: Some((out, err)), shown })
    }

    /// Waits until `done` holds for the lines read so far.
    pub fn wait_for(&self, what: &str, done: impl Fn(&[Value]) -> bool) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(broken) = &lines.broken {
                bail!("`{}` wrote a line that is no JSON: {broken}", self.shown);
            }
            if done(&lines.read) {
                return Ok(());
            }
            if lines.closed {
                bail!("`{}` ended before {what}", self.shown);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = lines.read.last().map(Value::to_string).unwrap_or_default();
                bail!("`{}`: no {what} within {PATIENCE:?}; last line: {last}", self.shown);
            }
            let waited = self.lines.1.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until it watches.
    pub fn wait_for_start(&self) -> Result<()> {
        self.wait_for("the start line", |lines| lines.iter().any(|line| line["type"] == "start"))
    }

    /// Waits for a notice with this code.
    pub fn wait_for_notice(&self, code: &str) -> Result<()> {
        self.wait_for(&format!("notice `{code}`"), |lines| {
            lines.iter().any(|line| line["type"] == "notice" && line["code"] == code)
        })
    }

    /// Waits for `more` further ticks.
    pub fn wait_for_ticks(&self, more: usize) -> Result<()> {
        let before = self.ticks();
        self.wait_for("tick", |lines| count_ticks(lines) >= before + more)
    }

    /// How many ticks were read so far.
    pub fn ticks(&self) -> usize {
        count_ticks(&self.lines.0.lock().unwrap_or_else(PoisonError::into_inner).read)
    }

    /// The last tick that was read.
    pub fn last_tick(&self) -> Option<Tick> {
        let lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.read.iter().rev().find(|line| line["type"] == "tick")?;
        serde_json::from_value(line.clone()).ok()
    }

    /// A cause's total in the last tick, 0 before the first.
    pub fn last_counted(&self, cause: &str) -> u64 {
        self.last_tick().and_then(|tick| tick.counted.get(cause).copied()).unwrap_or(0)
    }

    /// All ticks read so far, with the moments they were read at.
    pub fn ticks_with_times(&self) -> Vec<(Instant, Tick)> {
        let lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .times
            .iter()
            .zip(&lines.read)
            .filter(|(_, line)| line["type"] == "tick")
            .filter_map(|(at, line)| Some((*at, serde_json::from_value(line.clone()).ok()?)))
            .collect()
    }

    /// The process, for whoever wants to send it something else than SIGINT.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Stops it as Ctrl-C does and returns all it wrote.
    pub fn stop(self) -> Result<Run> {
        self.stop_with(Signal::SIGINT)
    }

    /// Stops it with a signal and returns all it wrote.
    pub fn stop_with(mut self, signal: Signal) -> Result<Run> {
        kill(self.pid(), signal).with_context(|| format!("sending {signal} to ctwatch"))?;
        self.finish()
    }

    /// Waits for its own end (`--duration`) and returns all it wrote.
    pub fn finish(&mut self) -> Result<Run> {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().context("waiting for ctwatch")? {
                break status;
            }
            ensure!(Instant::now() < until, "`{}` did not end within {PATIENCE:?}", self.shown);
            thread::sleep(Duration::from_millis(20));
        };
        let (out, err) = self.readers.take().context("ctwatch was read to its end before")?;
        let _ = out.join();
        let stderr = err.join().unwrap_or_default();
        let lines = std::mem::take(&mut *self.lines.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(broken) = lines.broken {
            bail!("`{}` wrote a line that is no JSON: {broken}", self.shown);
        }
        parse(lines.read, status, stderr).with_context(|| format!("`{}` ended with {status}", self.shown))
    }
}

impl std::ops::Drop for Drops {
    fn drop(&mut self) {
        if self.readers.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn count_ticks(lines: &[Value]) -> usize {
    lines.iter().filter(|line| line["type"] == "tick").count()
}

fn parse(lines: Vec<Value>, status: ExitStatus, stderr: String) -> Result<Run> {
    let (mut start, mut end) = (None, None);
    let (mut ticks, mut drops, mut notices) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        let shown = line.to_string();
        let kind = line["type"].as_str().unwrap_or_default().to_owned();
        let broken = || format!("a `{kind}` line that breaks the contract: {shown}");
        match kind.as_str() {
            "start" => start = Some(serde_json::from_value(line).with_context(broken)?),
            "tick" => ticks.push(serde_json::from_value(line).with_context(broken)?),
            "drop" => drops.push(serde_json::from_value(line).with_context(broken)?),
            "notice" => notices.push(serde_json::from_value(line).with_context(broken)?),
            "end" => end = Some(serde_json::from_value(line).with_context(broken)?),
            _ => {}
        }
    }
    let start = start.with_context(|| format!("no start line; stderr: {stderr}"))?;
    let end = end.with_context(|| format!("no end line; stderr: {stderr}"))?;
    Ok(Run { start, ticks, drops, notices, end, status, stderr })
}
