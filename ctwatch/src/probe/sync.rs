//! Tells the programs where each netns's counters stand on each CPU, and takes the same numbers as the baseline.
//! Both come from one read in the kernel, so no loss can fall between "before us" and "ours".

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, PerCpuHashMap};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun};
use ctwatch_common::Cause;
use ctwatch_common::classify::Counters;
use ctwatch_common::netns::NetCpu;

use crate::model::NetnsId;

/// How the programs should take a netns (see the sync program).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It was there before us: what it has counted is not ours.
    AsItIs,
    /// It came up while we watched: all it counts is ours.
    AsNew,
}

/// [`NetCpu`] as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct State(pub NetCpu);

// SAFETY: integers only, without padding.
unsafe impl aya::Pod for State {}

/// Runs the sync program on the calling thread: the netns it is in becomes known by address.
pub fn find_here(program: &RawTracePoint) -> Result<()> {
    run(program, [0; 3], None)
}

/// Runs the sync program on every online CPU for one netns.
pub fn take(program: &RawTracePoint, net: u64, take: Take) -> Result<()> {
    let what = match take {
        Take::AsItIs => 1,
        Take::AsNew => 2,
    };
    for cpu in online_cpus(Path::new("/sys"))? {
        run(program, [what, net, 0], Some(cpu))?;
    }
    Ok(())
}

/// Has the programs own up to losses whose packets they missed, in one netns on every online CPU.
pub fn settle(program: &RawTracePoint, net: u64) -> Result<()> {
    // Those that explain two counters come first.
    let causes = [Cause::ChainTooLong, Cause::Clash, Cause::Dying, Cause::TableFull, Cause::Evicted];
    for cpu in online_cpus(Path::new("/sys"))? {
        for cause in causes {
            run(program, [3, net, cause as u64], Some(cpu))?;
        }
    }
    Ok(())
}

/// What the programs know of a netns.
#[derive(Debug)]
pub struct Taken {
    /// What they call it.
    pub id: NetnsId,
    /// The counters each CPU's watch began with.
    pub bases: Vec<Option<Counters>>,
}

/// Reads what the sync program noted.
pub fn taken(states: &PerCpuHashMap<MapData, u64, State>, net: u64) -> Result<Taken> {
    let values = states.get(&net, 0).context("reading what the sync program noted")?;
    let synced = |State(state): &State| (state.synced != 0).then_some(*state);
    let id = values.iter().find_map(synced).context("the sync program noted nothing")?.id;
    let bases = values.iter().map(|state| synced(state).map(|state| state.base)).collect();
    Ok(Taken { id: NetnsId(id), bases })
}

fn run(program: &RawTracePoint, arguments: [u64; 3], cpu: Option<u32>) -> Result<()> {
    let mut options = RawTracePointRunOptions::new();
    options.args[..3].copy_from_slice(&arguments);
    options.cpu = cpu;
    let result = program.test_run(options).context("running the sync program (BPF_PROG_TEST_RUN)")?;
    if result.return_value != 0 {
        bail!(
            "the sync program could not read the conntrack counters of a netns: its BTF offsets may be wrong"
        );
    }
    Ok(())
}

/// Numbers of the CPUs that are online ("0-3,5").
pub fn online_cpus(sys: &Path) -> Result<Vec<u32>> {
    let file = sys.join("devices/system/cpu/online");
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    parse_cpus(text.trim()).with_context(|| format!("parsing {}: {text:?}", file.display()))
}

fn parse_cpus(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_have_ranges_and_single_numbers() {
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(parse_cpus("x"), None);
    }
}
