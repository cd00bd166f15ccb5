//! Runs `ctwatch drops --format json` as a script would, and reads its lines into typed views.
//! A line that breaks the JSON contract is an error here; whether its numbers are right is for the scenarios.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

/// Software emulation is about thirty times slower than a real host; nothing here waits for less.
const PATIENCE: Duration = Duration::from_secs(90);

/// A `rows[]` member. Dimensions that don't belong to the key are absent.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// Inode of the netns.
    pub netns: Option<u64>,
    /// "tcp", "udp", "icmp", "icmpv6", "sctp" …
    pub proto: Option<String>,
    /// Service port: the original direction's destination port.
    pub port: Option<u16>,
    /// Destination port, in rows by flow.
    pub dport: Option<u16>,
    /// Source port, in rows by flow.
    pub sport: Option<u16>,
    /// Source address.
    pub src: Option<String>,
    /// Destination address.
    pub dst: Option<String>,
    /// Whether the flow stays on loopback.
    pub loopback: Option<bool>,
    /// Whose packets, in rows by process; absent or null if unknown.
    pub process: Option<Process>,
    /// What lost it; absent only in the rest row.
    pub cause: Option<String>,
    /// "packets" or "entries".
    pub unit: Option<String>,
    /// Losses in the tick; in the end line, in the run.
    pub losses: u64,
    /// "exact" or "inferred".
    pub certainty: Option<String>,
    /// Whether no event was missed for this number.
    pub exact: Option<bool>,
    /// The sum of what --top cut.
    #[serde(default)]
    pub rest: bool,
    /// A loss whose tuple was missed.
    #[serde(default)]
    pub unattributed: bool,
    /// In rows by container.
    pub container: Option<String>,
}

impl Row {
    /// The row's cause, or "" in the rest row.
    pub fn cause(&self) -> &str {
        self.cause.as_deref().unwrap_or_default()
    }

    /// The row's protocol, or "".
    pub fn proto(&self) -> &str {
        self.proto.as_deref().unwrap_or_default()
    }

    /// The service port under either name.
    pub fn service_port(&self) -> Option<u16> {
        self.port.or(self.dport)
    }
}

/// A process that a row or an event names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Process {
    /// In the host's pid namespace.
    pub pid: u32,
    /// The kernel's name for it.
    pub name: String,
    /// "sender" or "listener".
    pub role: String,
}

/// The line everything starts with.
#[derive(Clone, Debug, Deserialize)]
pub struct Start {
    /// "kprobe", "tracepoint" or "counters".
    pub backend: String,
    /// What is attached where.
    pub hooks: Vec<Hook>,
    /// The kernel's counters at attach.
    pub since_boot: BTreeMap<String, u64>,
    /// The running kernel.
    pub kernel_release: String,
}

/// One attached program.
#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    /// Kernel function or tracepoint.
    pub function: String,
    /// kprobe, kretprobe, raw_tracepoint …
    pub kind: String,
}

/// A table's state in a tick.
#[derive(Clone, Debug, Deserialize)]
pub struct Table {
    /// Inode of the netns.
    pub netns: u64,
    /// Entries; unknown of a netns that was gone before anyone looked.
    pub count: Option<u64>,
    /// Limit.
    pub max: u64,
    /// count / max; null when unlimited.
    pub fill: Option<f64>,
    /// Arrivals.
    pub new_per_s: Option<f64>,
    /// Seconds until full.
    pub full_in_s: Option<f64>,
    /// Who fills it.
    #[serde(default)]
    pub occupants: Vec<Occupant>,
    /// Whether the occupants' numbers are exact.
    pub occupancy_exact: Option<bool>,
    /// The netns has vanished.
    #[serde(default)]
    pub gone: bool,
    /// The container that the netns is of.
    pub container: Option<String>,
}

/// One service port's entries in a table.
#[derive(Clone, Debug, Deserialize)]
pub struct Occupant {
    /// Protocol.
    pub proto: String,
    /// Service port.
    pub port: Option<u16>,
    /// Entries.
    pub entries: u64,
    /// Its part of the table.
    pub share: f64,
}

/// One interval.
#[derive(Clone, Debug, Deserialize)]
pub struct Tick {
    /// Tables that matter.
    pub tables: Vec<Table>,
    /// Keys that lost something.
    pub rows: Vec<Row>,
    /// Totals by cause since the baseline.
    pub counted: BTreeMap<String, u64>,
    /// kernel − counted, per kernel counter.
    pub unexplained: BTreeMap<String, i64>,
}

/// The totals at the end.
#[derive(Clone, Debug, Deserialize)]
pub struct End {
    /// Totals by cause since the baseline.
    pub counted: BTreeMap<String, u64>,
    /// The kernel's counters since the baseline.
    pub kernel_counters: BTreeMap<String, u64>,
    /// Events the ring had no room for.
    pub lost_events: u64,
    /// kernel − counted, per kernel counter.
    pub unexplained: BTreeMap<String, i64>,
    /// Every key that lost something during the run.
    pub rows: Vec<Row>,
    /// Tracepoint backend: drops seen that may be a firewall's.
    pub ambiguous: Option<u64>,
    /// Namespaces whose last counts nobody read.
    pub netns_gone: u64,
}

impl End {
    /// A cause's total; 0 when it isn't listed.
    pub fn counted(&self, cause: &str) -> u64 {
        self.counted.get(cause).copied().unwrap_or(0)
    }

    /// Losses of one cause and protocol per service port, in one netns, split from rows without a port.
    pub fn per_port(&self, netns: u64, proto: &str, cause: &str) -> BTreeMap<u16, u64> {
        let mut ports = BTreeMap::new();
        for row in &self.rows {
            if row.netns == Some(netns)
                && row.proto() == proto
                && row.cause() == cause
                && let Some(port) = row.service_port()
            {
                *ports.entry(port).or_default() += row.losses;
            }
        }
        ports
    }

    /// Losses in rows without a tuple; a normal run has none.
    pub fn unattributed(&self) -> u64 {
        self.rows.iter().filter(|row| row.unattributed).map(|row| row.losses).sum()
    }

    /// Sum of a cause over all rows.
    pub fn row_sum(&self, cause: &str) -> u64 {
        self.rows.iter().filter(|row| row.cause() == cause).map(|row| row.losses).sum()
    }

    /// Packets lost to conntrack by any cause.
    pub fn packets_lost(&self) -> u64 {
        ["table_full", "no_memory", "clash", "chain_too_long", "dying", "tcp_race", "other"]
            .iter()
            .map(|cause| self.counted(cause))
            .sum()
    }

    /// All zero, as it must be once traffic is quiet?
    pub fn all_explained(&self) -> bool {
        self.unexplained.values().all(|value| *value == 0)
    }
}

/// One lost packet or entry (`--events`).
#[derive(Clone, Debug, Deserialize)]
pub struct Drop {
    /// What lost it.
    pub cause: String,
    /// "exact" or "inferred".
    pub certainty: String,
    /// Inode of the netns.
    pub netns: u64,
    /// Protocol name.
    pub proto: String,
    /// Source address.
    pub src: String,
    /// Destination address.
    pub dst: String,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// ICMP type.
    pub icmp_type: Option<u8>,
    /// ICMP code.
    pub icmp_code: Option<u8>,
    /// ICMP identifier.
    pub icmp_id: Option<u16>,
    /// "output", "prerouting" or null.
    pub hook: Option<String>,
    /// Incoming device.
    #[serde(rename = "in")]
    pub device_in: Option<String>,
    /// Outgoing device.
    #[serde(rename = "out")]
    pub device_out: Option<String>,
    /// Entries at that instant.
    pub count: Option<u64>,
    /// Limit at that instant.
    pub max: Option<u64>,
    /// count / max.
    pub fill: Option<f64>,
    /// "event" or "sample".
    pub fill_source: Option<String>,
    /// The entry's reply direction.
    pub reply: Option<Ends>,
    /// The entry's original direction.
    pub original: Option<Ends>,
    /// Whether the reply direction is another one than the original's mirror.
    pub nat: Option<bool>,
    /// What kind of entry it was.
    pub entry: Option<EntryState>,
    /// The new flow for which an entry was evicted.
    pub pushed_out_by: Option<Ends>,
    /// Whose packet it was, or who listens.
    pub process: Option<Process>,
    /// The container of that process or of the netns.
    pub container: Option<String>,
}

/// Two ends of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ends {
    /// Source address.
    pub src: String,
    /// Destination address.
    pub dst: String,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
}

/// What an entry was like when it was lost.
#[derive(Clone, Debug, Deserialize)]
pub struct EntryState {
    /// Both sides had talked.
    pub assured: bool,
    /// The other side had answered.
    pub seen_reply: bool,
    /// Name of the TCP state.
    pub tcp_state: Option<String>,
}

/// A remark on the run.
#[derive(Clone, Debug, Deserialize)]
pub struct Notice {
    /// Stable name.
    pub code: String,
    /// For people.
    pub text: String,
}

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
        drops.wait_for("the start line", |lines| lines.iter().any(|line| line["type"] == "start"))?;
        Ok(drops)
    }

    /// Starts it without waiting for anything.
    pub fn spawn(args: &[&str]) -> Result<Self> {
        let mut child = Command::new("ctwatch")
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
