//! A running watch in the kernel: programs loaded and attached, maps open. Dropping it detaches everything.
//! The kernel does the same when the process dies, however it dies: nothing is pinned.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, PerCpuHashMap, RingBuf};
use aya::programs::{KProbe, Program, RawTracePoint, TracePoint};
use ctwatch_common::classify::Counters;
use ctwatch_common::config::Config;
use ctwatch_common::netns::late_key;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::decode::decode;
use super::diagnostics::Diagnostics;
use super::kprobe::Kprobes;
use super::object::{self, Loader, MapSizes};
use super::plan::{Attachment, HookKind, Plan};
use super::refusal::{HookRefused, remedy};
use super::shared::Shared;
use super::sync::{self, Baseline, LateBase, RegisteredNetns, State};
use crate::kernel::symbols::Symbols;
use crate::model::{FromKernel, NetnsId};
use crate::netns::{self, Netns};

/// A watch in the kernel.
pub struct Probe {
    ebpf: Ebpf,
    /// Attached until they are closed.
    _kprobes: Vec<OwnedFd>,
    /// Exact counters and totals.
    pub shared: Shared,
    ring: RingBuf<MapData>,
    states: PerCpuHashMap<MapData, u64, State>,
    late_bases: HashMap<MapData, u64, LateBase>,
    diagnostics: Option<Diagnostics>,
}

impl Probe {
    /// Loads and attaches what the plan says. Losses count only after [`Shared::start_watching`].
    pub fn attach(
        loader: Option<Loader>,
        plan: &Plan,
        symbols: &Symbols,
        config: &Config,
        sizes: MapSizes,
        log_level: u8,
    ) -> Result<Self> {
        let mut ebpf = object::load(loader, config, sizes, log_level).map_err(with_remedy)?;
        // Programs first: they hold on to their maps, which are taken out of the object below.
        let names = plan.attachments.iter().map(|attachment| attachment.program).chain(["sync"]);
        load_programs(&mut ebpf, &names.collect::<Vec<_>>())?;
        let mut kprobes = Vec::new();
        for attachment in &plan.attachments {
            kprobes.extend(attach(&mut ebpf, attachment, symbols)?);
        }
        let [losses, flows, control] = ["LOSSES", "FLOWS", "CONTROL"].map(|name| take(&mut ebpf, name));
        let (losses, flows, control) = (losses?, flows?, control?);
        let shared = Shared::new(losses.as_array()?, flows.as_array()?, control.as_array()?)?;
        let ring = RingBuf::try_from(take(&mut ebpf, "EVENTS")?.0).context("opening the ring buffer")?;
        let states =
            PerCpuHashMap::try_from(take(&mut ebpf, "NETS")?.0).context("opening the map of netns")?;
        let late_bases =
            HashMap::try_from(take(&mut ebpf, "LATE_BASES")?.0).context("opening the map of late CPUs")?;
        let diagnostics = (log_level > 0).then(|| Diagnostics::open(&mut ebpf)).transpose()?;
        Ok(Self { ebpf, _kprobes: kprobes, shared, ring, states, late_bases, diagnostics })
    }

    /// Makes a netns known to the programs; returns what they call it, and the counters each CPU's watch begins with.
    pub fn register_netns(&self, netns: &Netns, baseline: Baseline) -> Result<RegisteredNetns> {
        let program = self.sync_program()?;
        netns::run_inside(netns, || sync::locate_current_netns(program))?;
        let net = self.shared.sync_net();
        sync::register_netns(program, net, baseline)?;
        sync::registered(&self.states, net)
    }

    /// What the programs call a netns that came up while they ran. It gets a record when it loses something.
    pub fn identify_netns(&self, netns: &Netns) -> Result<NetnsId> {
        let program = self.sync_program()?;
        netns::run_inside(netns, || sync::locate_current_netns(program))?;
        Ok(NetnsId::from_packed(self.shared.sync_id()))
    }

    /// The id of the netns at this address.
    pub fn netns_at(&self, address: u64) -> Result<NetnsId> {
        sync::locate_netns(self.sync_program()?, address)?;
        Ok(NetnsId::from_packed(self.shared.sync_id()))
    }

    /// Has what the netns at this address counted until now be none of ours, where it can't be entered to be registered. Before
    /// [`Shared::start_watching`].
    pub fn begin_now_at(&self, address: u64) -> Result<()> {
        sync::register_netns(self.sync_program()?, address, Baseline::Current)
    }

    /// What a CPU that is offline has counted in a netns so far: the programs begin there when it comes up. Before
    /// [`Shared::start_watching`].
    pub fn add_late_base(&mut self, netns: NetnsId, cpu: u32, base: Counters) -> Result<()> {
        self.late_bases
            .insert(late_key(netns.inode(), cpu), LateBase(base), 0)
            .context("noting what a CPU that is offline has counted")
    }

    /// Makes known where a CPU that is offline has its counters.
    pub fn note_offset(&self, cpu: u32) -> Result<()> {
        sync::note_offset(self.sync_program()?, cpu)
    }

    /// Counts what the kernel counted and the programs missed: without a tuple, but counted.
    pub fn reconcile(&self, netns: &Netns) -> Result<()> {
        let program = self.sync_program()?;
        netns::run_inside(netns, || sync::locate_current_netns(program))?;
        sync::reconcile(program, self.shared.sync_net())
    }

    /// The kernel's jiffies now.
    pub fn jiffies(&self) -> Result<u64> {
        sync::locate_current_netns(self.sync_program()?)?;
        Ok(self.shared.control().jiffies)
    }

    fn sync_program(&self) -> Result<&RawTracePoint> {
        let program = self.ebpf.program("sync").context("the eBPF object has no program \"sync\"")?;
        program.try_into().context("the program \"sync\" has an unexpected type")
    }

    /// Hands over at most `limit` waiting events; returns how many there were.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(FromKernel)) -> usize {
        let mut count = 0;
        while count < limit {
            let Some(item) = self.ring.next() else { break };
            if let Some(said) = decode(&item) {
                each(said);
            }
            count += 1;
        }
        count
    }

    /// Writes what the programs say of themselves, if they were asked to.
    pub fn write_diagnostics(&mut self) {
        if let Some(diagnostics) = &mut self.diagnostics {
            diagnostics.write();
        }
    }

    /// The ring buffer's readiness: readable once much is waiting.
    pub fn ring(&self) -> Result<AsyncFd<OwnedFd>> {
        // SAFETY: the ring buffer outlives the borrow, and the copy lives as long as its registration.
        unsafe {
            let copy = BorrowedFd::borrow_raw(self.ring.as_raw_fd())
                .try_clone_to_owned()
                .context("copying the ring buffer's fd")?;
            AsyncFd::register_with_interest(copy, Interest::READABLE).context("waiting for the ring buffer")
        }
    }

    /// Whether this kernel takes our maps and a program.
    pub fn try_load(config: &Config) -> Result<()> {
        load_program(&mut object::load(None, config, MapSizes::SMALL, 0).map_err(with_remedy)?, "sync")
    }

    /// Whether a program may be attached to a kernel function: one is, and it is taken away again. It counts nothing, as its maps
    /// are nobody's. False where the function isn't there, since nf_conntrack isn't loaded.
    pub fn try_kprobe(config: &Config, symbols: &Symbols) -> Result<bool> {
        let Some(function) = symbols.function("early_drop") else { return Ok(false) };
        let attachment = Attachment {
            program: "early_drop_return",
            function: function.name.clone(),
            kind: HookKind::Kretprobe,
        };
        let mut ebpf = object::load(None, config, MapSizes::SMALL, 0).map_err(with_remedy)?;
        load_program(&mut ebpf, attachment.program)?;
        attach(&mut ebpf, &attachment, symbols)?;
        Ok(true)
    }

    /// Whether programs may be attached to all kernel functions of a plan: one is, to each, and it is taken away again.
    pub fn try_hooks(config: &Config, symbols: &Symbols, planned: &[Attachment]) -> Result<()> {
        let mut ebpf = object::load(None, config, MapSizes::SMALL, 0).map_err(with_remedy)?;
        let program = "early_drop_return";
        load_program(&mut ebpf, program)?;
        let is_function = |one: &&Attachment| matches!(one.kind, HookKind::Kprobe | HookKind::Kretprobe);
        for Attachment { function, .. } in planned.iter().filter(is_function) {
            // What may be probed at its return may be probed where it begins.
            let attachment = Attachment { program, function: function.clone(), kind: HookKind::Kretprobe };
            attach(&mut ebpf, &attachment, symbols)?;
        }
        Ok(())
    }

    /// All programs of the object, each loaded (so: verified), with the number of instructions the verifier
    /// went through if the kernel tells, or with its words.
    pub fn verify(config: &Config) -> Result<Vec<(String, Result<Option<u64>>)>> {
        let mut ebpf = object::load(None, config, MapSizes::SMALL, 0)?;
        let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        Ok(names
            .into_iter()
            .map(|name| {
                let result = load_program(&mut ebpf, &name).map(|()| {
                    let info = ebpf.program(&name)?.info().ok()?;
                    info.verified_instruction_count().map(u64::from)
                });
                (name, result)
            })
            .collect())
    }
}

/// A map taken out of the object.
struct TakenMap(Map);

impl TakenMap {
    fn as_array(&self) -> Result<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        match &self.0 {
            Map::Array(data) => Ok(data.fd().as_fd()),
            _ => Err(anyhow!("a map of the eBPF object is no array")),
        }
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<TakenMap> {
    ebpf.take_map(name).map(TakenMap).with_context(|| format!("the eBPF object has no map {name:?}"))
}

/// Loads these programs, as many at once as there are CPUs: of a start, the kernel's verifier takes the most time.
fn load_programs(ebpf: &mut Ebpf, names: &[&str]) -> Result<()> {
    let mut programs: Vec<_> = ebpf.programs_mut().filter(|(name, _)| names.contains(name)).collect();
    for name in names {
        ensure!(programs.iter().any(|(one, _)| one == name), "the eBPF object has no program {name:?}");
    }
    programs.sort_by_key(|(name, _)| names.iter().position(|one| one == name));
    let helpers = thread::available_parallelism().map_or(0, |cpus| cpus.get().min(programs.len()) - 1);
    let queue = Mutex::new(programs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let load_each = || {
        while let Some((name, program)) = next() {
            load(name, program)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        // Without a helper this thread does it all.
        let helpers: Vec<_> =
            (0..helpers).filter_map(|_| thread::Builder::new().spawn_scoped(scope, load_each).ok()).collect();
        let own = load_each();
        helpers
            .into_iter()
            .map(|helper| helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .fold(own, Result::and)
    })
}

fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program =
        ebpf.program_mut(name).with_context(|| format!("the eBPF object has no program {name:?}"))?;
    load(name, program)
}

fn load(name: &str, program: &mut Program) -> Result<()> {
    match program {
        Program::KProbe(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::TracePoint(program) => program.load(),
        _ => return Err(anyhow!("the program {name:?} has an unexpected type")),
    }
    .map_err(|error| {
        with_remedy(error.into()).context(format!("loading the program {name:?} into the kernel"))
    })
}

/// Attaches one program that is loaded; a kprobe stays until the descriptor is closed, the others are the object's. The error is a
/// [`HookRefused`] if the kernel refuses this hook alone.
fn attach(ebpf: &mut Ebpf, attachment: &Attachment, symbols: &Symbols) -> Result<Option<OwnedFd>> {
    let Attachment { program: name, function, kind } = attachment;
    let program =
        ebpf.program_mut(name).with_context(|| format!("the eBPF object has no program {name:?}"))?;
    attach_as(program, function, *kind, symbols).map_err(|error| {
        match HookRefused::of(&error, function, *kind) {
            Some(refused) => refused.into(),
            None => with_remedy(error).context(format!("attaching the {} on {function}", kind.name())),
        }
    })
}

fn attach_as(
    program: &mut Program,
    function: &str,
    kind: HookKind,
    symbols: &Symbols,
) -> Result<Option<OwnedFd>> {
    match kind {
        HookKind::Kprobe | HookKind::Kretprobe => {
            let program: &mut KProbe = program.try_into()?;
            let symbol = symbols.get(function).context("it is not in /proc/kallsyms")?;
            let at_return = kind == HookKind::Kretprobe;
            return Kprobes::read()?.attach(program, symbol.address, at_return).map(Some);
        }
        HookKind::Tracepoint(category) => {
            let program: &mut TracePoint = program.try_into()?;
            program.attach(category, function)?;
        }
        HookKind::RawTracepoint => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.attach(function)?;
        }
    }
    Ok(None)
}

fn with_remedy(error: anyhow::Error) -> anyhow::Error {
    match remedy(&error) {
        Some(remedy) => error.context(remedy),
        None => error,
    }
}
