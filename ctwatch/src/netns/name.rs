//! What a netns is called: by a name in /run/netns, or after the container that lives in it.
//! A few processes of each netns are asked, not all.

use std::collections::BTreeMap;

use super::Netns;
use crate::foreign::Foreign;
use crate::kernel::roots::Roots;
use crate::model::NetnsId;
use crate::process::cgroup;
use crate::process::container::{self, CgroupKind};

/// Processes of one netns whose cgroups are read until one is a container's.
const ASKED: u8 = 3;

/// Which container lives in which netns, by the first processes that were found there.
#[derive(Debug, Default)]
pub(super) struct NetnsNamer(BTreeMap<NetnsId, Candidate>);

#[derive(Debug, Default)]
struct Candidate {
    asked: u8,
    found: Option<(CgroupKind, Foreign)>,
}

impl NetnsNamer {
    pub fn add_process(&mut self, id: NetnsId, pid: u32) {
        let candidate = self.0.entry(id).or_default();
        let settled = matches!(candidate.found, Some((CgroupKind::Container, _)));
        if settled || candidate.asked >= ASKED {
            return;
        }
        candidate.asked += 1;
        let path = cgroup::of_process(&Roots::default(), pid);
        candidate.prefer(path.as_ref().map(Foreign::raw).unwrap_or_default());
    }

    pub fn name(self, namespaces: &mut BTreeMap<NetnsId, Netns>) {
        for (id, candidate) in self.0 {
            let Some((netns, (_, name))) = namespaces.get_mut(&id).zip(candidate.found) else { continue };
            netns.name.get_or_insert_with(|| name.clone());
            netns.container = Some(name);
        }
    }
}

impl Candidate {
    /// A container runtime's word is worth more than a unit's, and that more than a session's.
    fn prefer(&mut self, cgroup: &str) {
        if let Some(container) = container::of_path(cgroup)
            && self.found.as_ref().is_none_or(|(kind, _)| container.kind < *kind)
        {
            self.found = Some((container.kind, container.netns_name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_netns_is_called_after_the_container_rather_than_the_unit_that_lives_in_it() {
        let id = NetnsId::from_packed(1);
        let mut candidate = Candidate::default();
        let docker = format!("/system.slice/docker-{}.scope", "ab".repeat(32));
        for path in [
            "",
            "/user.slice/user-0.slice/session-1.scope",
            "/system.slice/vpn.service",
            &docker,
            "/init.scope",
        ] {
            candidate.prefer(path);
        }
        let netns = |name: Option<&str>| Netns {
            id,
            path: PathBuf::from("/x"),
            name: name.map(Into::into),
            container: None,
        };
        for (name, expected) in [(None, "docker:abababababab"), (Some("blue"), "blue")] {
            let mut namespaces = BTreeMap::from([(id, netns(name))]);
            let found = candidate.found.clone();
            NetnsNamer(BTreeMap::from([(id, Candidate { asked: 3, found })])).name(&mut namespaces);
            assert_eq!(namespaces[&id].name.as_ref().map(|text| text.raw()), Some(expected));
            assert_eq!(
                namespaces[&id].container.as_ref().map(|text| text.raw()),
                Some("docker:abababababab")
            );
        }
    }
}
