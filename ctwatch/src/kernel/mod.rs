//! What the running kernel is like: its BTF, its symbols, its release, what it allows.
//! Nothing here loads or attaches anything, and what `calls` tries does nothing; /proc and /sys roots are arguments, so fixtures can stand in.

pub mod btf;
pub mod calls;
pub mod capabilities;
pub mod cpus;
pub mod netlink;
pub mod nf_tables;
pub mod release;
pub mod roots;
pub mod routes;
pub mod standing;
pub mod symbols;
pub mod vrfs;

use std::thread;

use anyhow::Result;

/// The running kernel's symbols and types: read once, they are the slow part of the start.
pub struct Kernel {
    /// /proc/kallsyms
    pub symbols: Result<symbols::Symbols>,
    /// /sys/kernel/btf/vmlinux
    pub btf: Result<btf::Btf>,
    /// /sys/kernel/btf/nf_conntrack; none before Linux 5.11, where it is built in, or not loaded.
    pub conntrack_btf: Option<btf::Btf>,
    /// nf_conntrack is there, and is no module.
    pub conntrack_is_built_in: bool,
}

impl Kernel {
    /// Reads both at a time.
    #[must_use]
    pub fn read(roots: &roots::Roots) -> Self {
        let types = || btf::Btf::read(&roots.sys("kernel/btf/vmlinux"));
        let (symbols, btf) = thread::scope(|scope| {
            // Without a thread to be had one comes after the other.
            let beside = thread::Builder::new().name("types".to_owned()).spawn_scoped(scope, types);
            let symbols = symbols::Symbols::read(&roots.proc("kallsyms"));
            let btf = match beside {
                Ok(beside) => beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => types(),
            };
            (symbols, btf)
        });
        Self {
            symbols,
            btf,
            conntrack_btf: btf::Btf::read(&roots.sys("kernel/btf/nf_conntrack")).ok(),
            conntrack_is_built_in: roots.sys("module/nf_conntrack").exists()
                && !roots.sys("module/nf_conntrack/initstate").exists(),
        }
    }

    /// What is known of conntrack's functions.
    #[must_use]
    pub fn functions(&self) -> Option<btf::Functions<'_>> {
        Some(btf::Functions {
            kernel: self.btf.as_ref().ok()?,
            module: self.conntrack_btf.as_ref(),
            built_in: self.conntrack_is_built_in,
        })
    }

    /// Both, or the first error.
    pub fn both(&self) -> Result<(&symbols::Symbols, &btf::Btf)> {
        let again = |error: &anyhow::Error| anyhow::anyhow!("{error:#}");
        Ok((self.symbols.as_ref().map_err(again)?, self.btf.as_ref().map_err(again)?))
    }
}
