//! Registers each netns with the programs: where its counters stand on each CPU, and that as the baseline.
//! Both come from one read in the kernel, so no loss can fall between "before us" and "ours".

use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, PerCpuHashMap};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun};
use ctwatch_common::Cause;
use ctwatch_common::classify::Counters;
use ctwatch_common::netns::NetCpu;
use ctwatch_common::sync::SyncOp;

use crate::kernel::cpus;
use crate::model::NetnsId;

/// Where the programs start counting in a netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// At the kernel's current counts: the netns was there before us, and so were its losses.
    Current,
    /// At zero: the netns came up while we watched, so all its losses are ours.
    Zero,
}

impl Baseline {
    const fn op(self) -> SyncOp {
        match self {
            Self::Current => SyncOp::BaselineCurrent,
            Self::Zero => SyncOp::BaselineZero,
        }
    }
}

/// [`NetCpu`] in a form aya can read from a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct State(pub NetCpu);

// SAFETY: integers only, without padding.
unsafe impl aya::Pod for State {}

/// [`Counters`] in a form aya can write to a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct LateBase(pub Counters);

// SAFETY: integers only, without padding.
unsafe impl aya::Pod for LateBase {}

/// Looks up the address of the calling thread's netns; it is left in the control page.
pub fn locate_current_netns(program: &RawTracePoint) -> Result<()> {
    run(program, SyncOp::Locate, 0, 0, None)
}

/// Looks up the netns at this address; its id is left in the control page.
pub fn locate_netns(program: &RawTracePoint, net: u64) -> Result<()> {
    run(program, SyncOp::Locate, net, 0, None)
}

/// Registers the netns at this address on every online CPU.
pub fn register_netns(program: &RawTracePoint, net: u64, baseline: Baseline) -> Result<()> {
    on_online_cpus(|cpu| run(program, baseline.op(), net, 0, Some(cpu)))
}

/// Makes known where a CPU that is offline has its counters, so that they can be summed.
pub fn note_offset(program: &RawTracePoint, cpu: u32) -> Result<()> {
    run(program, SyncOp::NoteOffset, u64::from(cpu), 0, None)
}

/// Does something for every online CPU. One that goes offline meanwhile is none any more.
fn on_online_cpus(mut each: impl FnMut(u32) -> Result<()>) -> Result<()> {
    for cpu in cpus::online(Path::new("/sys"))? {
        if let Err(error) = each(cpu)
            && cpus::online(Path::new("/sys"))?.contains(&cpu)
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Counts, on every online CPU, what the kernel counted in a netns and the programs missed.
pub fn reconcile(program: &RawTracePoint, net: u64) -> Result<()> {
    // Causes that explain two counters come first.
    let causes = [Cause::ChainTooLong, Cause::Clash, Cause::Dying, Cause::TableFull, Cause::Evicted];
    on_online_cpus(|cpu| {
        causes.iter().try_for_each(|cause| run(program, SyncOp::Reconcile, net, *cause as u64, Some(cpu)))
    })
}

/// A netns as the programs know it.
#[derive(Debug)]
pub struct RegisteredNetns {
    /// Its id in counters and events.
    pub id: NetnsId,
    /// Where each CPU's counters stood when it was registered.
    pub bases: Vec<Option<Counters>>,
}

/// Reads back what [`register_netns`] made the programs note.
pub fn registered(states: &PerCpuHashMap<MapData, u64, State>, net: u64) -> Result<RegisteredNetns> {
    let values = states.get(&net, 0).context("reading what the sync program noted")?;
    let synced = |State(state): &State| (state.synced != 0).then_some(*state);
    let id = values.iter().find_map(synced).context("the sync program noted nothing")?.id;
    let bases = values.iter().map(|state| synced(state).map(|state| state.base)).collect();
    Ok(RegisteredNetns { id: NetnsId::from_packed(id), bases })
}

fn run(program: &RawTracePoint, op: SyncOp, net: u64, cause: u64, cpu: Option<u32>) -> Result<()> {
    let mut options = RawTracePointRunOptions::new();
    options.args[..3].copy_from_slice(&[op as u64, net, cause]);
    options.cpu = cpu;
    let result = program.test_run(options).context("running the sync program (BPF_PROG_TEST_RUN)")?;
    if result.return_value != 0 {
        bail!(
            "the sync program could not read the conntrack counters of a netns: its BTF offsets may be wrong"
        );
    }
    Ok(())
}
