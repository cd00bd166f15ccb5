//! `ctwatch check`: can it run here, with which backend, and what would change that.
//! It attaches nothing and leaves nothing behind.

use anyhow::{Context, Result};

use super::{VERSION, backend, view};
use crate::cli::{BackendChoice, Check, Config};
use crate::error::Exit;
use crate::kernel::Kernel;
use crate::kernel::preflight::look;
use crate::kernel::roots::Roots;
use crate::probe::{Probe, offsets};
use crate::state::report::{self, CheckProgram, SCHEMA};

/// Runs it.
pub fn run(config: &Config, check: &Check) -> Result<Exit> {
    let roots = Roots { proc: config.proc_root.clone(), sys: config.sys_root.clone() };
    let kernel = Kernel::read(&roots);
    let try_bpf = || {
        let (symbols, btf) = kernel.both()?;
        Probe::try_load(&offsets::resolve(btf, symbols)?)
    };
    let found = look(&roots, &kernel, Some(&try_bpf));
    let chosen = backend::choose(BackendChoice::Auto, &found).ok().map(|(backend, _)| backend);
    let programs = if check.verifier { verify(&kernel)? } else { Vec::new() };
    let rejected = programs.iter().any(|program| !program.ok);
    view(check.format, &config.look, None)
        .check(&report::Check {
            schema: SCHEMA,
            version: VERSION.to_owned(),
            kernel_release: roots.release(),
            backend: chosen.map(|backend| backend.name()),
            items: found.items,
            programs,
        })
        .context("writing the result")?;
    Ok(match (chosen, rejected) {
        (_, true) => Exit::Failed,
        (Some(_), false) => Exit::Done,
        (None, false) => Exit::CannotWatch,
    })
}

/// Loads every program there is.
fn verify(kernel: &Kernel) -> Result<Vec<CheckProgram>> {
    let (symbols, btf) = kernel.both()?;
    let config = offsets::resolve(btf, symbols)?;
    let mut programs: Vec<_> = Probe::verify(&config)?
        .into_iter()
        .map(|(name, result)| CheckProgram {
            name,
            ok: result.is_ok(),
            verified_instructions: result.as_ref().ok().copied().flatten(),
            log: result.err().map_or_else(String::new, |error| format!("{error:#}")),
        })
        .collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}
