//! What the firewall's rules say of a case: of each service, whether exempting it breaks something, and of themselves,
//! whether they are needed. The same for a host that is asked now and for a recording.

use std::collections::BTreeMap;

use super::case::{Firewall as Rules, ServiceFacts};
use super::netns_commands::NetnsCommands;
use super::target::ServiceTarget;
use crate::firewall::{self, Commands, Firewall, Objection, ObjectionKind, Scope};
use crate::foreign::Foreign;
use crate::machine::{Machine, Published};
use crate::model::{Direction, Protocol};

/// Adds what the rules say of a service.
pub fn judge(
    known: &mut ServiceFacts,
    target: &ServiceTarget,
    machine: &Machine,
    firewall: &Firewall,
    inside: &NetnsCommands,
) {
    let scope = match target.direction {
        Some(Direction::Loopback) => Scope::Loopback,
        Some(Direction::In) => Scope::Served,
        Some(Direction::Out) => Scope::Outgoing,
        Some(Direction::Forwarded) => {
            // Never advised; but why not is worth a word where a container engine or a rule takes the port.
            known.objections.extend(translations(target, firewall));
            return;
        }
        None => return,
    };
    let exempt = firewall::ExemptTarget { proto: target.proto, port: target.port, scope };
    for objection in firewall.objections(&exempt) {
        if objection.kind == ObjectionKind::AlreadyUntracked {
            known.untracked = true;
        } else if objection.kind.forbids() {
            known.objections.push(objection);
        } else {
            known.warnings.push(format!("{} ({})", objection.text, objection.located_rule()));
        }
    }
    let published = machine.published.iter().filter(|published| {
        published.port == target.port && Some(target.proto) == Protocol::from_name(published.proto.raw())
    });
    known.objections.extend(published.map(self::published));
    known.objections.extend(machine.published_is_cut.then(published_elsewhere));
    if firewall.can_nft() || firewall.can_iptables() {
        let mut commands = firewall.notrack_commands(&exempt, firewall.preferred_tool());
        if machine.is_openwrt {
            commands = for_openwrt(commands);
        }
        known.notrack = Some(inside.commands(commands));
    }
}

/// OpenWrt's firewall reads /etc/nftables.d within its own table, where another one is an error; whole tables belong here.
fn for_openwrt(commands: Commands) -> Commands {
    const WITHIN: &str = "/etc/nftables.d";
    const AFTER: &str = "/usr/share/nftables.d/ruleset-post";
    let is_elsewhere = |line: &String| line.contains("/etc/nftables.conf") || line.contains("/etc/sysconfig");
    let moved = |lines: Vec<String>| {
        lines.into_iter().filter(|line| !is_elsewhere(line)).map(|line| line.replace(WITHIN, AFTER)).collect()
    };
    Commands { now: commands.now, keep: moved(commands.keep), undo: moved(commands.undo) }
}

/// The rules that send a port elsewhere.
fn translations(target: &ServiceTarget, firewall: &Firewall) -> impl Iterator<Item = Objection> {
    let is_meant = |one: &firewall::Published| {
        let (first, last) = one.ports;
        // A rule without a port is behind another one that asks for it.
        (first, last) != (0, u16::MAX)
            && (first..=last).contains(&target.port)
            && one.proto.is_none_or(|proto| Protocol(proto) == target.proto)
    };
    let found: Vec<_> = firewall.published().into_iter().filter(is_meant).collect();
    let (port, proto) = (target.port, target.proto);
    found.into_iter().map(move |firewall::Published { by, to, place, rule, .. }| Objection {
        kind: ObjectionKind::PublishedPort,
        rule,
        place,
        text: format!("{by} publishes {port}/{proto} to {to}: untracked packets aren't translated"),
        remedy: None,
    })
}

/// What the firewall as a whole says: whether it could do without state.
#[must_use]
pub fn rules(
    firewall: &Firewall,
    machine: &Machine,
    known: &BTreeMap<ServiceTarget, ServiceFacts>,
    inside: &NetnsCommands,
) -> Rules {
    let tracking = firewall.tracking_rules();
    let (removal, mut objections) = match firewall.without_tracking() {
        Ok(commands) => (Some(inside.commands(commands)), Vec::new()),
        Err(objections) => (None, objections),
    };
    objections.extend(machine.published.iter().take(3).map(published));
    objections.extend(machine.published_is_cut.then(published_elsewhere));
    // Helpers that the kernel assigns without a rule.
    let by_sysctl = |one: &&Objection| one.place == "sysctl";
    objections.extend(known.values().flat_map(|known| &known.objections).find(by_sysctl).cloned());
    Rules {
        nat: firewall.has_nat(),
        tracking: tracking.into_iter().map(|one| format!("{}: {}", one.place, one.rule)).collect(),
        removal,
        objections,
    }
}

/// Where not all ports that are published are known.
fn published_elsewhere() -> Objection {
    Objection {
        kind: ObjectionKind::Unknown,
        rule: Foreign::default(),
        place: Foreign::default(),
        text: "whether a program publishes this port for a container is unknown: there are more sockets or processes than could be \
               looked at"
            .to_owned(),
        remedy: None,
    }
}

fn published(published: &Published) -> Objection {
    let Published { program, pid, proto, port, .. } = published;
    Objection {
        kind: ObjectionKind::PublishedPort,
        rule: format!("{} (pid {pid})", program.raw()).into(),
        place: Foreign::default(),
        text: format!("{program} publishes {port}/{proto} for a container, whose packets may need NAT"),
        remedy: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Dump;

    #[test]
    fn where_not_all_published_ports_are_known_nothing_is_exempted() {
        let target = ServiceTarget { port: 8080, proto: Protocol::TCP, direction: Some(Direction::Loopback) };
        let (firewall, _) = Firewall::parse(&Dump::default());
        let inside = NetnsCommands::here(true);
        let refused = |published_is_cut| {
            let machine = Machine { published_is_cut, ..Machine::default() };
            let mut known = ServiceFacts::default();
            judge(&mut known, &target, &machine, &firewall, &inside);
            let of_all = rules(&firewall, &machine, &BTreeMap::new(), &inside).objections;
            let is_it =
                |one: &Objection| one.kind == ObjectionKind::Unknown && one.text.contains("publishes");
            (known.objections.iter().any(is_it), of_all.iter().any(is_it))
        };
        assert_eq!(refused(true), (true, true));
        assert_eq!(refused(false), (false, false));
    }
}
