//! What a recording costs: 24 hours of a busy host with a storm in the middle, recorded as fast as it goes.
//! The samples are made up; all behind them is what `ctwatch record` runs.

use ctwatch::foreign::Foreign;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use ::ctwatch::kernel::roots::Roots;
use ::ctwatch::model::{
    Backend, Census, CensusKey, FlowOffset, KernelCounters, Loss, Name, NetnsAccess, NetnsSample, Owner,
    PortDetail, ProcessId, Protocol, Role, Sample, SlotSample, Tuple, WallMono,
};
use ::ctwatch::record::recorder::{Plan, Recorder};
use ::ctwatch::record::rows::{EndReason, Run};
use ::ctwatch::record::writer_thread::WriterThread;
use ::ctwatch::record::{Lock, Recording, RetentionLimits, Writer};
use ::ctwatch::state::StateConfig;
use ::ctwatch::testing::{self, HOST, slot};
use anyhow::{Context, Result};
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK};
use jiff::{SignedDuration, Timestamp};

const SECONDS: u64 = 86_400;
/// The storm: ten minutes in which each lost packet has a tuple of its own.
const STORM: std::ops::Range<u64> = 43_200..43_800;
const TUPLES: u64 = 1_000_000;
/// Service ports of the host, and how many of them move in a tick.
const PORTS: u16 = 200;
const MOVING: u64 = 30;

const FILE_GOAL: u64 = 100_000_000;
const RSS_GOAL: u64 = 32 << 20;

/// Records, prints, and says whether the goals were reached.
pub fn run(folder: &Path) -> Result<bool> {
    let folder = tempfile::tempdir_in(folder).context("making a folder for the recording")?;
    let path = folder.path().join("day.ctw");
    let began = Clock::now();
    let before = cpu_s();
    let host = record(&path)?;
    let (cpu, took) = (cpu_s() - before, began.elapsed().as_secs_f64());
    let rss = peak_rss()?;
    let bytes = std::fs::metadata(&path)?.len();
    let before = cpu_s();
    let read = read(&path)?;
    let reading = cpu_s() - before;
    anyhow::ensure!(read == host.lost, "{} losses were recorded of {}", read, host.lost);
    println!(
        "24 h at 1 s, a storm of {TUPLES} distinct tuples in ten minutes, {MOVING} ports moving each second:"
    );
    println!("file        {:>8.1} MB   (goal {} MB)", bytes as f64 / 1e6, FILE_GOAL / 1_000_000);
    println!("peak RSS    {:>8.1} MiB  (goal {} MiB)", rss as f64 / f64::from(1 << 20), RSS_GOAL >> 20);
    println!("CPU         {cpu:>8.1} s    {:.3} % of one core over the day", cpu / SECONDS as f64 * 100.0);
    println!("wall clock  {took:>8.1} s");
    println!("reading it  {reading:>8.2} s    of CPU, every tick with its checksums");
    Ok(bytes <= FILE_GOAL && rss <= RSS_GOAL)
}

fn record(path: &Path) -> Result<Host> {
    let start = Timestamp::now() - SignedDuration::from_secs(SECONDS as i64);
    let started = WallMono { time: start, mono_us: 0 };
    let run = Run { started, host: Some("bench".into()), ..testing::run() };
    let limits = RetentionLimits {
        keep: Duration::from_secs(7 * SECONDS),
        max_size: 500_000_000,
        detail: Duration::from_secs(120),
    };
    let lock = Arc::new(Lock::take(path)?);
    let writer = Writer::open(path, &run)?;
    let next_tick = writer.next_tick();
    let writer = WriterThread::start(writer, limits, lock)?;
    let plan = Plan {
        when: vec!["drops>0".parse().map_err(anyhow::Error::msg)?],
        before: Duration::from_secs(120),
        after: Duration::from_secs(300),
        interval: Duration::from_secs(1),
    };
    let settings = StateConfig::totals(Backend::Kprobe, true);
    let mut recorder = Recorder::new(plan, settings, &Roots::default(), writer, next_tick);
    let mut host = Host::new(start);
    for second in 1..=SECONDS {
        host.second(second, &mut recorder);
        let sample = host.sample(second);
        // A day takes a minute: unlike a real one it has to wait for the disk.
        while !recorder.keeps_up() {
            std::thread::sleep(Duration::from_millis(1));
        }
        recorder.sample(&sample)?;
    }
    recorder.finish(EndReason::Duration)?;
    Ok(host)
}

/// A busy host.
struct Host {
    start: Timestamp,
    flows: Vec<[u64; 2]>,
    losses: Vec<u64>,
    lost: u64,
    random: u64,
    who: Arc<Owner>,
}

impl Host {
    fn new(start: Timestamp) -> Self {
        let process = ProcessId { pid: 812, name: Name::new(b"nginx"), role: Role::Sender };
        let cgroup = Some(Foreign::from("/system.slice/nginx.service"));
        let container = Some(Foreign::from("unit:nginx.service"));
        Self {
            start,
            flows: vec![[0; 2]; usize::from(PORTS)],
            losses: vec![0; 20],
            lost: 0,
            random: 88_172_645_463_325_252,
            who: Arc::new(Owner { process: Some(process), cgroup, container, unattributable: false }),
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn second(&mut self, second: u64, recorder: &mut Recorder) {
        for _ in 0..MOVING {
            let port = self.random(u64::from(PORTS)) as usize;
            let (came, went) = (self.random(300), self.random(300));
            self.flows[port][0] += came;
            self.flows[port][1] += went;
        }
        if !STORM.contains(&second) {
            return;
        }
        let each = TUPLES / (STORM.end - STORM.start);
        for n in 0..each {
            let tuple = (second - STORM.start) * each + n;
            let port = (tuple % self.losses.len() as u64) as usize;
            self.losses[port] += 1;
            self.lost += 1;
            recorder.loss(&self.loss(second, tuple, 6379 + port as u16));
        }
    }

    fn loss(&self, second: u64, tuple: u64, dport: u16) -> Loss {
        let mut loss = testing::loss(self.time(second));
        let src = IpAddr::from([10, (tuple >> 16) as u8, (tuple >> 8) as u8, tuple as u8]);
        loss.packet.at_ns = second * 1_000_000_000 + tuple % 1000;
        loss.packet.tuple = Some(Tuple { src, dst: src, sport: (tuple % 28_000 + 32_768) as u16, dport });
        (loss.packet.count, loss.packet.max) = (Some(262_144), Some(262_144));
        Loss { owner: Some(Arc::clone(&self.who)), ..loss }
    }

    fn time(&self, second: u64) -> Timestamp {
        self.start + SignedDuration::from_secs(second as i64)
    }

    fn sample(&mut self, second: u64) -> Sample {
        let flows = (1..).zip(&self.flows).map(|(port, [count, deletes])| SlotSample {
            key: slot(port, KIND_FLOWS),
            count: *count,
            deletes: *deletes,
            failed: 0,
        });
        let losses = (6379..).zip(&self.losses).map(|(port, count)| SlotSample {
            key: slot(port, 1 | KIND_LOOPBACK),
            count: *count,
            deletes: 0,
            failed: 0,
        });
        let slots = flows.chain(losses.filter(|slot| slot.count > 0)).collect();
        let count = if STORM.contains(&second) { 262_144 } else { 100_000 + self.random(50_000) as u32 };
        let counters = KernelCounters { drop: self.lost, ..KernelCounters::default() };
        let mut sample = Sample {
            mono_us: second as i64 * 1_000_000,
            counters_from: None,
            time: self.time(second),
            interval_s: 1.0,
            netns: vec![NetnsSample {
                id: HOST,
                name: Some("host".into()),
                container: None,
                count: Some(count),
                max: Some(262_144),
                before: counters,
                after: counters,
                gone: false,
                complete: false,
                access: NetnsAccess::Readable,
            }],
            slots,
            retired: Vec::new(),
            overflow: [0; CAUSES],
            lost_events: [0; CAUSES],
            ambiguous: 0,
            flows: Default::default(),
        };
        // As often as the watch renews it on a busy host.
        if second % 60 == 1 {
            sample.flows.censuses.push(self.census());
        }
        sample
    }

    fn census(&mut self) -> Census {
        let ports = 1..=PORTS;
        let mut details = Vec::new();
        for port in ports.clone().step_by(4) {
            let mut detail = PortDetail::new(Protocol::TCP, Some(port));
            for _ in 0..500 {
                let (state, left) = if self.random(3) == 0 { (3, 432_000) } else { (7, 120) };
                detail.add(state, true, self.random(left) as u32);
            }
            details.push(detail);
        }
        let key = |port| CensusKey { proto: Protocol::TCP, port, entries: 500, assured: 480, time_wait: 333 };
        Census {
            netns: HOST,
            keys: ports.clone().map(key).collect(),
            details,
            bases: ports.map(|port| FlowOffset { proto: Protocol::TCP, port, entries: 500 }).collect(),
            replaces_offsets: true,
            ..Census::default()
        }
    }
}

/// Reads every tick; returns how many packets were lost.
fn read(path: &Path) -> Result<u64> {
    let recording = Recording::open(path)?;
    let mut lost = 0;
    for run in recording.runs()? {
        for tick in recording.ticks(&run, i64::MIN..=i64::MAX)? {
            lost += tick?.tick.losses.iter().map(|(_, losses)| losses).sum::<i64>();
        }
    }
    Ok(lost.cast_unsigned())
}

fn cpu_s() -> f64 {
    // SAFETY: rusage is plain data, and getrusage fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn peak_rss() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmHWM is no number")?;
    Ok(kib << 10)
}
