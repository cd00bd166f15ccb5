//! The sockets of this thread's netns that others may connect or send to, read once for all who ask whose they are.
//! Whoever lives in the netns may have any number of them: what was cut is said, and nothing follows from what is missing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::kernel::roots::Roots;
use crate::model::Protocol;
use crate::process::handle::Process;
use crate::process::sockets::{self, Extent, Limit};

/// How long the tables may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Sockets remembered.
const MOST: usize = 1 << 16;
/// Files of a process that is believed, and of one that isn't.
const FILES: usize = 1 << 16;
const FIRST_FILES: usize = 256;

/// By inode number: protocol, address and port.
#[derive(Clone, Debug, Default)]
pub(super) struct Listening {
    pub(super) by_inode: HashMap<u64, (Protocol, IpAddr, u16)>,
    /// There are more.
    pub(super) is_cut: bool,
}

impl Listening {
    /// Those of these protocols.
    pub(super) fn read(roots: &Roots, protocols: &[Protocol]) -> Self {
        let mut limit = Limit::new(PATIENCE, u64::MAX);
        let mut found = Self::default();
        for protocol in protocols {
            let Self { by_inode, is_cut } = &mut found;
            let folder = roots.proc("thread-self/net");
            let extent = sockets::each_listening(&folder, *protocol, &mut limit, |address, port, inode| {
                if by_inode.len() < MOST {
                    by_inode.insert(inode, (*protocol, address, port));
                } else {
                    *is_cut = true;
                }
            });
            *is_cut |= extent == Extent::Cut;
        }
        found
    }

    /// Those that a process holds; and whether it may hold more.
    pub(super) fn of(&self, process: &Process) -> (Vec<(Protocol, IpAddr, u16)>, bool) {
        let held = process.sockets(FILES).filter_map(|inode| self.by_inode.get(&inode).copied()).collect();
        (held, process.has_more_files(FILES))
    }

    /// Whether a process holds one, as far as its first files tell: they are anybody's, so no more are looked at.
    pub(super) fn is_of(&self, process: &Process) -> bool {
        process.sockets(FIRST_FILES).any(|inode| self.by_inode.contains_key(&inode))
    }
}
