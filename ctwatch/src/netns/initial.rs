//! Which netns is the initial one, the host's: never a guess, since a container's own netns looks like any other.
//! Where it can't be told, no netns is called host, and the reason says what would help.

use std::os::unix::fs::MetadataExt;

use super::id_of;
use crate::kernel::roots::Roots;
use crate::model::NetnsId;

/// The inode number of the initial pid namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h, 5.10 to 7.3).
pub(super) const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// That of the initial netns (PROC_NET_INIT_INO, from 6.17 on). Before, it got one like all others, from 0xF0000000 on.
const INITIAL_NETNS: u32 = 0xEFFF_FFF9;
/// A setting that only the initial netns has (net_core_table, net/core/sysctl_net_core.c, 5.10 to 7.3), in a folder that
/// all have: it shows the netns of the thread that looks.
const ONLY_THERE: &str = "sys/net/core/netdev_budget";
const EVERYWHERE: &str = "sys/net/core/somaxconn";

/// What can be told of the initial netns from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialNetns {
    /// This is it.
    Known(NetnsId),
    /// It can't be told which it is, or it can't be reached.
    Unknown(WhyUnknown),
}

/// Why no netns is called host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyUnknown {
    /// Process 1 of this /proc is a container's.
    PidNamespace,
    /// Process 1 may not be looked at.
    Hidden,
}

/// Whether this /proc shows all processes: whether it is the initial pid namespace's. `None` if that can't be told.
#[must_use]
pub fn sees_all_processes(roots: &Roots) -> Option<bool> {
    let is_initial = |path: &str| {
        let metadata = std::fs::metadata(roots.proc(path)).ok()?;
        Some(metadata.ino() == INITIAL_PID_NAMESPACE)
    };
    // A process of the initial pid namespace appears in no other /proc than its own. Few may look at process 1.
    if is_initial("self/ns/pid") == Some(true) { Some(true) } else { is_initial("1/ns/pid") }
}

impl InitialNetns {
    /// Looks; `own` is the netns of this process.
    #[must_use]
    pub fn look(roots: &Roots, own: NetnsId) -> Self {
        let is_own = roots.proc(EVERYWHERE).exists().then(|| roots.proc(ONLY_THERE).exists());
        if own.inode() == INITIAL_NETNS || is_own == Some(true) {
            return Self::Known(own);
        }
        let pid_namespace = std::fs::metadata(roots.proc("1/ns/pid")).map(|metadata| metadata.ino());
        let first = id_of(&roots.proc("1/ns/net"));
        match (pid_namespace, first) {
            (_, Ok(first)) if first.inode() == INITIAL_NETNS => Self::Known(first),
            // The initial pid namespace's process 1 lives where the kernel put it.
            (Ok(INITIAL_PID_NAMESPACE), Ok(first)) if first != own || is_own.is_none() => Self::Known(first),
            (Ok(INITIAL_PID_NAMESPACE), _) | (Err(_), _) | (_, Err(_)) => Self::Unknown(WhyUnknown::Hidden),
            (Ok(_), Ok(_)) => Self::Unknown(WhyUnknown::PidNamespace),
        }
    }

    /// The initial netns, if it is known.
    #[must_use]
    pub const fn known(self) -> Option<NetnsId> {
        match self {
            Self::Known(id) => Some(id),
            Self::Unknown(_) => None,
        }
    }
}

impl WhyUnknown {
    /// In words.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::PidNamespace => {
                "the host's netns can't be found from here: process 1 is this container's own"
            }
            Self::Hidden => "the host's netns can't be found from here: process 1 may not be looked at",
        }
    }

    /// What would help.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::PidNamespace => {
                "start the container with the host's processes: hostPID: true in Kubernetes, --pid=host in Docker"
            }
            Self::Hidden => {
                "it takes CAP_SYS_PTRACE in the initial user namespace, and a /proc that shows process 1 (not mounted with hidepid)"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn look(files: &[&str]) -> InitialNetns {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for path in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, "").expect("a file");
        }
        InitialNetns::look(
            &Roots { proc: folder.path().to_owned(), sys: folder.path().to_owned() },
            NetnsId::from_inode(4_026_532_299),
        )
    }

    #[test]
    fn a_setting_of_the_initial_netns_is_proof_and_its_absence_makes_nobody_host() {
        let own = NetnsId::from_inode(4_026_532_299);
        assert_eq!(look(&[ONLY_THERE, EVERYWHERE]), InitialNetns::Known(own));
        assert_eq!(look(&[EVERYWHERE]), InitialNetns::Unknown(WhyUnknown::Hidden));
        // No sysctls at all, and a process 1 of another pid namespace.
        assert_eq!(look(&["1/ns/pid", "1/ns/net"]), InitialNetns::Unknown(WhyUnknown::PidNamespace));
    }

    #[test]
    fn who_lives_in_the_initial_pid_namespace_need_not_look_at_process_1() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir_all(folder.path().join("self/ns")).expect("a folder");
        std::os::unix::fs::symlink("/proc/self/ns/pid", folder.path().join("self/ns/pid")).expect("a link");
        let roots = Roots { proc: folder.path().to_owned(), sys: folder.path().to_owned() };
        let own = fs::metadata("/proc/self/ns/pid").expect("/proc is readable").ino();
        assert_eq!(sees_all_processes(&roots), (own == INITIAL_PID_NAMESPACE).then_some(true));
    }
}
