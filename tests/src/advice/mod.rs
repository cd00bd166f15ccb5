//! Advice put to the proof: the story's host asks `ctwatch advise`, and another one does what it was told.
//! Only in throw-away VMs; what was promised and what came of it is compared elsewhere.

mod apply;
mod ask;
pub mod settings;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::shell::run;
use crate::traffic::http::Load;
use crate::{sys, sysctl};

pub use apply::{Apply, apply};
pub use ask::ask;

/// Requests a second; each is a flow to port 80 and one to port 6379.
const RATE: f64 = 100.0;
/// Too little for them.
const MAX: u64 = 5000;
/// So that things are steady within a minute, seconds.
const TIME_WAIT: u64 = 30;

/// Brings the story's servers up, with these settings.
fn story_up(keepalive: bool) -> Result<()> {
    let keepalive = format!("STORY_KEEPALIVE={}", u8::from(keepalive));
    run(&["env", &format!("STORY_MAX={MAX}"), &keepalive, "bash", "/ctw/story.sh", "up"])?;
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait";
    fs::write(path, TIME_WAIT.to_string()).with_context(|| format!("writing {path}"))
}

fn load(seconds: f64, per_connection: u32) -> Load {
    Load { per_connection, ..Load::new(([127, 0, 0, 1], 80).into(), RATE, seconds) }
}

/// Reads the number of entries twice a second: from the sysctl, since a dump would take expired entries away.
struct Sampler {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<(Duration, u64)>>>,
}

/// The table over some time.
#[derive(Clone, Debug, Default, Serialize)]
struct Entries {
    mean: f64,
    least: u64,
    most: u64,
    /// Milliseconds and entries, from the sampler's start on.
    all: Vec<(u64, u64)>,
}

impl Sampler {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = thread::spawn(move || {
            sys::run_first();
            let began = Instant::now();
            let mut samples = Vec::new();
            while !until.load(Ordering::Relaxed) {
                samples.push((began.elapsed(), sysctl::read(sysctl::COUNT)?));
                thread::sleep(Duration::from_millis(500));
            }
            Ok(samples)
        });
        Self { over, thread }
    }

    /// What it saw from that time after its start on.
    fn stop(self, from: Duration) -> Result<Entries> {
        self.over.store(true, Ordering::Relaxed);
        let samples = self.thread.join().expect("a thread that only reads doesn't panic")?;
        let counts = || samples.iter().filter(|(at, _)| *at >= from).map(|(_, count)| *count);
        let (least, most) = counts().min().zip(counts().max()).context("no sample in that time")?;
        Ok(Entries {
            mean: counts().sum::<u64>() as f64 / counts().count() as f64,
            least,
            most,
            all: samples.iter().map(|(at, count)| (at.as_millis() as u64, *count)).collect(),
        })
    }
}
