//! Whose rule it is: what a program made it will make again, so the change for good belongs into that program's settings.
//! Told from table and chain, which each of them names by a scheme of its own.

use std::collections::BTreeSet;

/// A maker of rules, and where it is told what to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleOwner {
    /// The program.
    pub name: &'static str,
    /// Where to change it for good.
    pub changed_in: &'static str,
}

const KUBE_PROXY: RuleOwner = RuleOwner {
    name: "kube-proxy",
    changed_in: "the Service it is for, or kube-proxy's configuration: kube-proxy rewrites its rules all the time",
};
const DOCKER: RuleOwner = RuleOwner {
    name: "Docker",
    changed_in: "how the container publishes its ports (-p, compose), or /etc/docker/daemon.json; rules of one's own belong into \
                 the chain DOCKER-USER",
};
const FIREWALLD: RuleOwner = RuleOwner {
    name: "firewalld",
    changed_in: "firewalld: `firewall-cmd --permanent …`, then `firewall-cmd --reload`",
};
const UFW: RuleOwner = RuleOwner {
    name: "ufw",
    changed_in: "/etc/ufw/before.rules, after.rules or user.rules and their IPv6 siblings, then `ufw reload`",
};
const OPENWRT: RuleOwner = RuleOwner {
    name: "OpenWrt's firewall",
    changed_in: "/etc/config/firewall, then `service firewall restart`",
};
const PODMAN: RuleOwner = RuleOwner {
    name: "podman",
    changed_in: "how the container publishes its ports: netavark recreates its rules",
};
const LIBVIRT: RuleOwner = RuleOwner {
    name: "libvirt",
    changed_in: "the virtual network: `virsh net-edit`, then restart the network",
};

/// Table names of their own, as nft has them.
const TABLES: [(&str, RuleOwner); 6] = [
    ("kube-proxy", KUBE_PROXY),
    ("docker-bridges", DOCKER),
    ("firewalld", FIREWALLD),
    ("fw4", OPENWRT),
    ("netavark", PODMAN),
    ("libvirt_network", LIBVIRT),
];

/// How chains begin in tables that programs share.
const CHAINS: [(&str, RuleOwner); 16] = [
    ("KUBE-", KUBE_PROXY),
    ("DOCKER", DOCKER),
    ("ufw-", UFW),
    ("ufw6-", UFW),
    ("NETAVARK", PODMAN),
    ("nv_", PODMAN),
    ("LIBVIRT", LIBVIRT),
    // firewalld over iptables.
    ("INPUT_direct", FIREWALLD),
    ("INPUT_ZONES", FIREWALLD),
    ("FORWARD_direct", FIREWALLD),
    ("FORWARD_IN_ZONES", FIREWALLD),
    ("FORWARD_OUT_ZONES", FIREWALLD),
    ("OUTPUT_direct", FIREWALLD),
    ("PREROUTING_ZONES", FIREWALLD),
    ("POSTROUTING_ZONES", FIREWALLD),
    // OpenWrt's fw3, over iptables.
    ("zone_", OPENWRT),
];

/// Whose rule is in this place: "inet firewalld filter_INPUT", "iptables filter ufw-before-input".
#[must_use]
pub fn owner_of(place: &str) -> Option<RuleOwner> {
    let mut words = place.split_ascii_whitespace().skip(1);
    let (table, chain) = (words.next()?, words.next().unwrap_or_default());
    let of_table = TABLES.iter().find(|(name, _)| *name == table);
    let of_chain = || CHAINS.iter().find(|(start, _)| chain.starts_with(start));
    of_table.or_else(of_chain).map(|(_, owner)| *owner)
}

/// A sentence for each owner of these places.
pub(super) fn notes<'a>(places: impl Iterator<Item = &'a str>) -> Vec<String> {
    let owners: BTreeSet<RuleOwner> = places.filter_map(owner_of).collect();
    let note = |owner: RuleOwner| {
        format!("{} made that rule: for good it is changed in {}", owner.name, owner.changed_in)
    };
    owners.into_iter().map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_s_rules_are_known_by_its_names() {
        for (place, name) in [
            ("iptables nat KUBE-SERVICES", "kube-proxy"),
            ("ip kube-proxy nat-prerouting", "kube-proxy"),
            ("iptables nat DOCKER", "Docker"),
            ("ip filter DOCKER-FORWARD", "Docker"),
            ("inet firewalld filter_INPUT", "firewalld"),
            ("ip filter ufw-before-input", "ufw"),
            ("ip6tables filter ufw6-before-input", "ufw"),
            ("inet fw4 input", "OpenWrt's firewall"),
            ("inet netavark NETAVARK-INPUT", "podman"),
        ] {
            assert_eq!(owner_of(place).map(|owner| owner.name), Some(name), "{place}");
        }
    }

    #[test]
    fn what_people_write_themselves_is_nobody_s() {
        for place in ["inet filter input", "iptables raw OUTPUT", "sysctl", "", "ip nat"] {
            assert_eq!(owner_of(place), None, "{place}");
        }
    }

    #[test]
    fn several_rules_of_one_program_are_one_note() {
        let places = ["inet fw4 input", "inet fw4 forward", "inet mine in", "ip filter ufw-user-input"];
        let notes = notes(places.into_iter());
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes.iter().any(|note| note.contains("/etc/config/firewall")));
    }
}
