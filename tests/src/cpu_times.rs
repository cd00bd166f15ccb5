//! How busy this machine's CPUs were, from /proc/stat.

use std::fs;

use anyhow::{Context, Result};

/// Ticks of all CPUs together since boot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuTimes {
    idle: u64,
    total: u64,
}

impl CpuTimes {
    /// As they are now.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::parse(&text).context("/proc/stat has no line of all CPUs")
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal; guests are part of the first two (proc_stat(5)).
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
        Some(Self { idle: ticks.get(3)? + ticks.get(4)?, total: ticks.iter().sum() })
    }

    /// Which part of the time since then no CPU had anything to do, in percent.
    #[must_use]
    pub fn idle_since(&self, before: &Self) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        self.idle.saturating_sub(before.idle) as f64 * 100.0 / total as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_neither_idle_nor_waiting_for_a_disk_was_busy() {
        let at = |line: &str| CpuTimes::parse(&format!("{line}\ncpu0 1 1 1 1\n")).unwrap();
        let before = at("cpu  100 0 50 800 50 0 0 0 7 7");
        let after = at("cpu  120 0 60 860 60 0 0 0 9 9");
        assert_eq!(after.idle_since(&before), 70.0);
        assert_eq!(CpuTimes::parse("cpu0 1 2 3 4 5 6 7 8\n"), None);
    }
}
