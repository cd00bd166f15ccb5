//! Where this process stands: which capabilities it has, in which user namespace, as which user; and how it would get more.
//! Read before anything is given up; nothing is tried out.

use std::path::Path;

use super::capabilities::{Capabilities, Capability};
use super::roots::Roots;

/// Where /proc/PID/ns/user leads in the initial user namespace: PROC_USER_INIT_INO, include/linux/proc_ns.h, the same from 3.8
/// to 7.3.
pub const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// Which user namespace this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserNamespace {
    /// The one that the kernel began with: bpf(), perf_event_open() and the host's netns ask for capabilities there.
    Initial,
    /// Another one: capabilities count only inside it.
    Other,
    /// /proc doesn't tell.
    Unknown,
}

/// What this process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The effective set, whatever it is worth; `None` if /proc doesn't tell.
    pub effective: Option<Capabilities>,
    /// Where it counts.
    pub user_namespace: UserNamespace,
    /// Its effective user is 0; `None` if /proc doesn't tell.
    pub is_root: Option<bool>,
}

impl Standing {
    /// Looks.
    #[must_use]
    pub fn look(roots: &Roots) -> Self {
        let status = std::fs::read_to_string(roots.proc("self/status")).unwrap_or_default();
        Self {
            effective: Capabilities::in_status(&status),
            user_namespace: user_namespace(roots),
            is_root: effective_user(&status).map(|user| user == 0),
        }
    }

    /// Whether this capability is there where the kernel's own things ask for it; `None` if that can't be told.
    #[must_use]
    pub fn has(&self, capability: Capability) -> Option<bool> {
        match (self.effective?.has(capability), self.user_namespace) {
            (false, _) | (true, UserNamespace::Other) => Some(false),
            (true, UserNamespace::Initial) => Some(true),
            (true, UserNamespace::Unknown) => None,
        }
    }

    /// Which of these are surely missing.
    #[must_use]
    pub fn missing(&self, capabilities: &[Capability]) -> Vec<Capability> {
        capabilities.iter().copied().filter(|one| self.has(*one) == Some(false)).collect()
    }

    /// How this process would have to be started to have these.
    #[must_use]
    pub fn how_to_get(&self, capabilities: &[Capability]) -> String {
        if self.user_namespace == UserNamespace::Other {
            return OUTSIDE.to_owned();
        }
        if self.is_root == Some(false) {
            return format!("run as root: sudo ctwatch …; in a container: {}", self.flags(capabilities));
        }
        self.flags(capabilities)
    }

    /// How this process would have to be started to list tables of the netns it is in. ctnetlink asks the user namespace that
    /// owns the netns (nfnetlink_rcv, net/netfilter/nfnetlink.c, 5.10 to 7.3), so that a container in a user namespace and a
    /// netns of its own takes no more than the capability there.
    #[must_use]
    pub fn how_to_list_here(&self) -> String {
        const WANTED: &[Capability] = &[Capability::NetAdmin];
        let is_outside = self.user_namespace == UserNamespace::Other;
        if is_outside && self.has_here(Capability::NetAdmin) == Some(false) {
            let flags = self.flags(WANTED);
            return format!("{flags}; for a netns that isn't this user namespace's own: {OUTSIDE}");
        }
        self.how_to_get(WANTED)
    }

    /// Whether this capability is there, be it in this user namespace alone; `None` if that can't be told.
    #[must_use]
    pub fn has_here(&self, capability: Capability) -> Option<bool> {
        Some(self.effective?.has(capability))
    }

    /// The flags and settings that give these to a container or a unit. Another user than root gets none of them by exec().
    fn flags(&self, capabilities: &[Capability]) -> String {
        let names: Vec<&str> = capabilities.iter().map(|one| one.name()).collect();
        let short: Vec<&str> = names.iter().map(|name| name.trim_start_matches("CAP_")).collect();
        let added: Vec<String> = short.iter().map(|name| format!("--cap-add {name}")).collect();
        let (added, short, names) = (added.join(" "), short.join(", "), names.join(" "));
        if self.is_root == Some(false) {
            return format!(
                "docker, podman: --user 0 {added}; Kubernetes: securityContext: runAsUser: 0 and capabilities: add: [{short}]; \
                 systemd: User=root or AmbientCapabilities= with {names}"
            );
        }
        format!(
            "docker, podman: {added}; Kubernetes: securityContext: capabilities: add: [{short}]; systemd: CapabilityBoundingSet= \
             with {names}"
        )
    }
}

/// What helps in a user namespace: nothing but leaving it.
pub const OUTSIDE: &str = "run it on the host, or without a user namespace of its own: docker: --userns=host; podman: sudo podman; \
                           Kubernetes: without hostUsers: false; systemd-nspawn: without -U; LXC: a privileged container";

fn user_namespace(roots: &Roots) -> UserNamespace {
    if let Ok(link) = std::fs::read_link(roots.proc("self/ns/user")) {
        let is_initial = link == Path::new(INITIAL_USER_NAMESPACE);
        return if is_initial { UserNamespace::Initial } else { UserNamespace::Other };
    }
    let Ok(map) = std::fs::read_to_string(roots.proc("self/uid_map")) else { return UserNamespace::Unknown };
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    // One that maps all users to themselves may be the initial one or not.
    if words.is_empty() || words == ["0", "0", "4294967295"] {
        UserNamespace::Unknown
    } else {
        UserNamespace::Other
    }
}

/// Of the real, effective, saved and file system user the second.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ALL: &str = "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n";

    fn standing(status: &str, user: Option<&str>, map: Option<&str>) -> Standing {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("self/ns")).unwrap();
        fs::write(folder.path().join("self/status"), status).unwrap();
        if let Some(user) = user {
            std::os::unix::fs::symlink(user, folder.path().join("self/ns/user")).unwrap();
        }
        if let Some(map) = map {
            fs::write(folder.path().join("self/uid_map"), map).unwrap();
        }
        Standing::look(&Roots { proc: folder.path().to_owned(), sys: folder.path().to_owned() })
    }

    #[test]
    fn all_capabilities_of_another_user_namespace_are_none() {
        let inside = standing(ALL, Some("user:[4026532577]"), Some("0 1000 1\n"));
        assert_eq!(inside.has(Capability::SysAdmin), Some(false));
        assert_eq!(inside.missing(&[Capability::Bpf, Capability::NetAdmin]).len(), 2);
        assert!(inside.how_to_get(&[Capability::SysAdmin]).contains("on the host"));
        let host = standing(ALL, Some(INITIAL_USER_NAMESPACE), None);
        assert_eq!(host.has(Capability::SysAdmin), Some(true));
    }

    #[test]
    fn which_user_namespace_it_is_stays_unknown_where_proc_does_not_tell() {
        for (map, expected) in [
            (None, UserNamespace::Unknown),
            (Some("         0          0 4294967295\n"), UserNamespace::Unknown),
            (Some("0 100000 65536\n"), UserNamespace::Other),
        ] {
            assert_eq!(standing(ALL, None, map).user_namespace, expected, "{map:?}");
        }
        assert_eq!(standing(ALL, None, None).has(Capability::SysAdmin), None);
        // What isn't there isn't there in any of them.
        let without = standing("Uid:\t0\t0\t0\t0\nCapEff:\t0000000000001000\n", None, None);
        assert_eq!(without.has(Capability::SysAdmin), Some(false));
    }

    #[test]
    fn root_is_not_told_to_become_root() {
        let none = |user: &str| {
            let status = format!("Uid:\t{user}\t{user}\t{user}\t{user}\nCapEff:\t0000000000000000\n");
            standing(&status, Some(INITIAL_USER_NAMESPACE), None)
                .how_to_get(&[Capability::SysAdmin, Capability::Syslog])
        };
        let user = none("1000");
        assert!(user.starts_with("run as root: sudo ctwatch …; in a container: "), "{user}");
        for words in ["--user 0 --cap-add SYS_ADMIN", "runAsUser: 0", "User=root or AmbientCapabilities="] {
            assert!(user.contains(words), "there is no sudo in a container: {words}: {user}");
        }
        let root = none("0");
        assert!(!root.contains("sudo") && !root.contains("as root"), "{root}");
        assert!(root.contains("--cap-add SYS_ADMIN --cap-add SYSLOG"), "{root}");
        assert!(
            root.contains("add: [SYS_ADMIN, SYSLOG]") && root.contains("CAP_SYS_ADMIN CAP_SYSLOG"),
            "{root}"
        );
    }

    #[test]
    fn listing_the_own_netns_of_a_user_namespace_takes_the_flag_and_no_way_out() {
        let inside = |capabilities: &str| {
            let status = format!("Uid:\t0\t0\t0\t0\nCapEff:\t{capabilities}\n");
            standing(&status, Some("user:[4026532577]"), Some("0 100000 65536\n")).how_to_list_here()
        };
        let podman = inside("00000000800405fb");
        assert!(podman.starts_with("docker, podman: --cap-add NET_ADMIN; "), "{podman}");
        // It is there: the netns is somebody else's.
        assert_eq!(inside("0000000000001000"), OUTSIDE);
    }
}
