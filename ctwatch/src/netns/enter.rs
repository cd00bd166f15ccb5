//! Running something inside a netns, on a thread that ends with the visit.
//! The rest of the process never changes its netns.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::LazyLock;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use super::{Netns, id_of};
use crate::children::threads;
use crate::foreign::Shown as _;
use crate::kernel::calls::LET_CALLS_PASS;
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
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|error| {
        let needs = match error {
            Errno::EPERM | Errno::EACCES | Errno::ENOSYS => format!(" ({})", *NEEDED),
            _ => String::new(),
        };
        anyhow::Error::new(error).context(format!("entering the netns {}{needs}", netns.path.shown()))
    })
}

/// Looked at once: whoever may not enter one netns is refused in each of them, tick after tick, and rights don't change any more once a
/// command has given up what it doesn't need.
static NEEDED: LazyLock<String> = LazyLock::new(|| needs(&Standing::look(&Roots::default())));

/// What setns() takes that isn't there. The kernel itself asks for CAP_SYS_ADMIN alone (netns_install, net/core/net_namespace.c,
/// 5.10 to 7.3).
fn needs(standing: &Standing) -> String {
    if standing.has(Capability::SysAdmin) == Some(true) {
        return format!("setns() is refused by a seccomp profile or a security module: {LET_CALLS_PASS}");
    }
    format!("this needs CAP_SYS_ADMIN: {}", standing.how_to_get(&[Capability::SysAdmin]))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::capabilities::Capabilities;
    use crate::kernel::standing::UserNamespace;

    #[test]
    fn who_has_the_capability_is_told_of_the_filter_and_who_lacks_it_of_the_capability() {
        let standing = |status: &str, user_namespace| Standing {
            effective: Capabilities::in_status(status),
            user_namespace,
            is_root: Some(true),
        };
        let all = "CapEff:\t000001ffffffffff\n";
        let filtered = needs(&standing(all, UserNamespace::Initial));
        assert!(filtered.contains("seccomp=unconfined") && !filtered.contains("CAP_SYS_ADMIN"), "{filtered}");
        for (status, user_namespace) in [
            ("CapEff:\t0000000000000000\n", UserNamespace::Initial),
            (all, UserNamespace::Other),
            (all, UserNamespace::Unknown),
        ] {
            let lacking = needs(&standing(status, user_namespace));
            assert!(lacking.starts_with("this needs CAP_SYS_ADMIN: "), "{lacking}");
        }
    }
}
