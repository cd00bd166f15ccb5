//! Running something inside a netns, on a thread that ends with the visit.
//! The rest of the process never changes its netns.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use super::{Netns, id_of};
use crate::children::threads;
use crate::foreign::Shown as _;
use crate::kernel::capabilities::Capability;
use crate::kernel::roots::Roots;
use crate::kernel::standing::Standing;

/// Runs something on a thread of its own, which may change its netns; the rest of the process never does.
pub fn on_netns_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let visit = threads::start_within(scope, "netns-visit", 256 << 10, work)
            .context("starting a thread to visit a netns")?;
        visit.join().ok().flatten().context("a visit to a netns panicked")
    })
}

/// Runs something inside a netns.
pub fn run_inside<T: Send>(netns: &Netns, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_netns_thread(|| {
        enter(netns)?;
        work()
    })?
}

/// Moves this thread into a netns, unless it is there already.
pub fn enter(netns: &Netns) -> Result<()> {
    let here = id_of(Path::new("/proc/thread-self/ns/net"))?;
    if here.inode() == netns.id.inode() {
        return Ok(());
    }
    let file =
        File::open(&netns.path).with_context(|| format!("opening the netns {}", netns.path.shown()))?;
    let found = file.metadata().context("looking up an open netns")?.ino();
    ensure!(found == u64::from(netns.id.inode()), "{} leads to another netns by now", netns.path.shown());
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| {
        let how = Standing::look(&Roots::default()).how_to_get(&[Capability::SysAdmin]);
        format!("entering the netns {} (this needs CAP_SYS_ADMIN: {how})", netns.path.shown())
    })
}

/// What came of trying to enter another netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// Another one than that of this process.
    Another,
    /// None is to be seen; the kernel would let this process into its own.
    OnlyOwn,
}

/// Enters one of these that isn't this process's, or its own again where there is no other: setns asks for the same rights.
pub fn try_to_enter<'a>(namespaces: impl IntoIterator<Item = &'a Netns>) -> Result<Entered> {
    let own = id_of(Path::new("/proc/self/ns/net"))?;
    let mut refused = None;
    for netns in namespaces {
        if netns.id.inode() == own.inode() {
            continue;
        }
        match run_inside(netns, || Ok(())) {
            Ok(()) => return Ok(Entered::Another),
            // It went meanwhile, which says nothing.
            Err(_) if !super::leads_there(netns) => {}
            Err(error) => refused = Some(error),
        }
    }
    if let Some(error) = refused {
        return Err(error);
    }
    on_netns_thread(|| {
        let file = File::open("/proc/thread-self/ns/net").context("opening this netns")?;
        setns(file, CloneFlags::CLONE_NEWNET).context("entering this netns again")?;
        Ok(Entered::OnlyOwn)
    })?
}
