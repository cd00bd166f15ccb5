//! `ctwatch check`: can it run here, with which backend, and what would change that.
//! What it says of rights has been tried, and what was tried is taken away again.

use anyhow::{Context, Result};

use super::live::backend;
use super::preflight::{self, Trials, look};
use super::{VERSION, confine, view};
use crate::cli::{BackendChoice, CheckConfig, Config};
use crate::conntrack::census;
use crate::contract::{self, CheckItem, CheckProgram, SCHEMA};
use crate::error::{Exit, shortage};
use crate::kernel::{Kernel, calls};
use crate::netns;
use crate::probe::{Probe, offsets};
use crate::sandbox::{self, Files, Support, Work};
use crate::stderr::Progress;
use crate::watch;
use ctwatch_common::config::Config as Offsets;

/// Runs it.
pub fn run(config: &Config, check: &CheckConfig) -> Result<Exit> {
    let roots = config.roots();
    let confines = confines();
    let standing = confine(config, Work::Watches, &Files::default());
    let kernel = Kernel::read(&roots);
    let program = || {
        let (symbols, btf) = kernel.both()?;
        Probe::try_load(&offsets::resolve(btf, symbols)?)
    };
    let kprobe = || {
        let (symbols, btf) = kernel.both()?;
        Probe::try_kprobe(&offsets::resolve(btf, symbols)?, symbols)
    };
    let hooks = || {
        let btf = kernel.btf.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        watch::missing_hooks(&kernel, preflight::raw_tracepoints(btf, &roots))
    };
    let other_netns = || netns::try_to_enter(netns::discover()?.values());
    let trials = Trials {
        program: &program,
        kprobe: &kprobe,
        hooks: &hooks,
        listing: &census::try_to_list,
        netns: &other_netns,
    };
    let progress = Progress::show(|| "trying what this kernel has and allows".to_owned());
    let mut found = look(&roots, &kernel, &standing, &calls::refused(), Some(&trials));
    found.items.push(confines);
    let chosen = backend::choose(BackendChoice::Auto, &found);
    let programs = if check.verifier { verify(&kernel)? } else { Vec::new() };
    drop(progress);
    let rejected = programs.iter().any(|program| !program.ok);
    let (backend, reason) = match chosen {
        Ok((backend, reason)) => (Some(backend), reason),
        Err(_) => (None, None),
    };
    view(check.format, &config.look)
        .check(&contract::Check {
            schema: SCHEMA,
            version: VERSION.to_owned(),
            kernel_release: roots.release(),
            backend,
            backend_reason: reason,
            items: found.items,
            programs,
        })
        .context("writing the result")?;
    Ok(match (backend, rejected) {
        (_, true) => Exit::Failed,
        (Some(_), false) => Exit::Done,
        (None, false) => Exit::CannotWatch,
    })
}

/// What this kernel has to confine ctwatch with. It watches the same without.
fn confines() -> CheckItem {
    const REMEDY: &str = "nothing: it works the same. From 5.13 on, with `landlock` in lsm=, readers of recordings see no other file";
    const REMEDY_OF_FAILURE: &str = "ctwatch works, with more rights than it needs. Filters and Landlock domains are inherited, and the \
                                     kernel allows only so many: start it from elsewhere";
    let Support { has, lacks, fails } = sandbox::support();
    let ok = match (&lacks, &fails) {
        (_, Some(_)) => Some(false),
        (Some(_), None) => None,
        (None, None) => Some(true),
    };
    let also = |what: &str, these: &Option<String>| these.as_ref().map(|these| format!("; {what}: {these}"));
    let (not_there, failed) = (also("not there", &lacks), also("fails", &fails));
    CheckItem {
        name: "sandbox".to_owned(),
        ok,
        found: [Some(has), not_there, failed].into_iter().flatten().collect(),
        remedy: fails.map(|_| REMEDY_OF_FAILURE).or(lacks.map(|_| REMEDY)).map(str::to_owned),
    }
}

/// Loads every program there is: with all switches off, and with all of them on, since the verifier skips what a
/// switch turns off.
fn verify(kernel: &Kernel) -> Result<Vec<CheckProgram>> {
    let (symbols, btf) = kernel.both()?;
    let least = offsets::resolve(btf, symbols)?;
    let most = Offsets {
        by_kfree_skb: 1,
        early_drop_probed: 1,
        flows: 1,
        insert_events: 1,
        loss_events: 1,
        owners: 1,
        event_details: 1,
        exit_probed: 1,
        ..least
    };
    let mut programs = Vec::new();
    for (config, suffix) in [(&least, ""), (&most, " (all switches on)")] {
        for (name, result) in Probe::verify(config)? {
            let (verified_instructions, error) = match result {
                Ok(instructions) => (instructions, None),
                // The kernel said nothing of the program.
                Err(error) if shortage::remedy(&error).is_some() => return Err(error),
                Err(error) => (None, Some(error)),
            };
            programs.push(CheckProgram {
                name: name + suffix,
                ok: error.is_none(),
                verified_instructions,
                log: error.map_or_else(String::new, |error| format!("{error:#}")),
            });
        }
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}
