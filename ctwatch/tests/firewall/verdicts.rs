//! The verdicts, one rule set a test: (protocol, port, way) and what speaks against it.
//! Whether the verdicts are true of a kernel is what the VM scenario `notrack` shows.

use ctwatch::firewall::ObjectionKind::*;
use ctwatch::firewall::Scope::{Loopback, Outgoing, Served};
use ctwatch::firewall::{Firewall, ObjectionKind, Scope};
use ctwatch::model::Protocol;

use super::{iptables_nft, kinds, nft};

const TCP: Protocol = Protocol::TCP;
const UDP: Protocol = Protocol::UDP;

fn check(firewall: &Firewall, expected: &[(Protocol, u16, Scope, &[ObjectionKind])]) {
    for (proto, port, scope, wanted) in expected {
        let found = kinds(firewall, *proto, *port, *scope);
        let all = firewall.objections(&ctwatch::firewall::ExemptTarget {
            proto: *proto,
            port: *port,
            scope: *scope,
        });
        assert_eq!(found, *wanted, "{proto} {port} {scope:?}: {all:#?}");
    }
}

#[test]
fn without_rules_nothing_speaks_against_it() {
    check(
        &Firewall::default(),
        &[(TCP, 6379, Loopback, &[]), (TCP, 80, Served, &[]), (UDP, 53, Outgoing, &[])],
    );
}

#[test]
fn a_stateless_accept_lets_untracked_packets_in() {
    check(
        &nft("simple"),
        &[
            (TCP, 6379, Loopback, &[]),
            // ICMP errors come behind `ct state invalid drop`.
            (TCP, 443, Served, &[IcmpErrors]),
            // Not let in today: then it isn't known what the flows are that were seen.
            (TCP, 6379, Served, &[Unknown]),
            // Replies from servers elsewhere are let in as ESTABLISHED only.
            (TCP, 443, Outgoing, &[EstablishedOnly, IcmpErrors]),
            (UDP, 53, Outgoing, &[EstablishedOnly, IcmpErrors]),
        ],
    );
}

#[test]
fn an_accept_of_new_and_established_refuses_untracked_packets() {
    check(
        &nft("established"),
        &[
            (TCP, 6379, Loopback, &[EstablishedOnly]),
            (TCP, 6379, Served, &[EstablishedOnly, IcmpErrors]),
            (TCP, 9999, Loopback, &[Unknown]),
        ],
    );
}

#[test]
fn sets_maps_ranges_and_negations_are_followed() {
    check(
        &nft("vmap"),
        &[
            (TCP, 6379, Loopback, &[]),
            (TCP, 80, Served, &[IcmpErrors]),
            (TCP, 8050, Served, &[IcmpErrors]),
            (TCP, 9000, Served, &[IcmpErrors]),
            (TCP, 22, Served, &[Unknown]),
            (TCP, 6379, Served, &[IcmpErrors]),
            (TCP, 9100, Served, &[IcmpErrors]),
            (TCP, 60_001, Served, &[IcmpErrors]),
            (TCP, 25, Served, &[Unknown]),
            // Every untracked packet goes through the limit, not the first of a flow alone.
            (UDP, 5005, Served, &[IcmpErrors, Unknown]),
        ],
    );
}

#[test]
fn firewalld_accepts_untracked_where_it_accepts_new() {
    check(
        &nft("firewalld"),
        &[
            (TCP, 6379, Loopback, &[]),
            (TCP, 80, Served, &[IcmpErrors]),
            (TCP, 2022, Served, &[NatRule]),
            (TCP, 443, Outgoing, &[EstablishedOnly, IcmpErrors]),
        ],
    );
}

#[test]
fn a_port_published_by_docker_is_refused() {
    check(
        &iptables_nft("docker.v4"),
        &[
            (TCP, 6379, Served, &[PublishedPort]),
            (TCP, 6379, Loopback, &[PublishedPort]),
            (TCP, 80, Served, &[]),
            // The host's flows to its own address on the bridge are translated.
            (TCP, 80, Loopback, &[NatRule]),
            (UDP, 5353, Loopback, &[NatRule]),
            // What a container behind the masquerade may use as its own port.
            (TCP, 40_000, Served, &[NatRule]),
            (TCP, 443, Outgoing, &[NatRule]),
        ],
    );
}

#[test]
fn ufw_lets_in_what_its_rules_name_and_nothing_else_untracked() {
    check(
        &iptables_nft("ufw.v4"),
        &[
            (TCP, 6379, Loopback, &[]),
            (TCP, 80, Served, &[IcmpErrors]),
            (TCP, 8010, Served, &[IcmpErrors]),
            (TCP, 5432, Served, &[IcmpErrors]),
            // `recent` counts new connections: it wouldn't see untracked ones.
            (TCP, 22, Served, &[OpensAccess, IcmpErrors]),
            // The limit for ssh, too, could be passed by from port 443.
            (TCP, 443, Outgoing, &[EstablishedOnly, OpensAccess, IcmpErrors]),
        ],
    );
}

#[test]
fn kube_proxy_publishes_what_its_services_name() {
    for firewall in [iptables_nft("kube.v4"), nft("kube")] {
        check(
            &firewall,
            &[
                (TCP, 6379, Loopback, &[]),
                (TCP, 30_379, Served, &[PublishedPort]),
                (UDP, 53, Outgoing, &[PublishedPort]),
                (TCP, 443, Outgoing, &[]),
                (TCP, 443, Served, &[]),
            ],
        );
    }
}

#[test]
fn translations_helpers_marks_and_limits_are_objections() {
    check(
        &nft("mixed"),
        &[
            (TCP, 8080, Served, &[NatRule]),
            (TCP, 8080, Loopback, &[ConnectionMark]),
            (TCP, 8081, Loopback, &[NatRule]),
            (TCP, 5432, Served, &[NatRule, ConnectionMark]),
            (TCP, 7000, Served, &[NatRule, ConnectionMark]),
            (TCP, 9091, Served, &[NatRule]),
            (TCP, 3128, Served, &[NatRule]),
            (TCP, 21, Served, &[Helper, ConnectionMark]),
            (TCP, 8443, Served, &[NatRule, ConnectionMark, OpensAccess, Unknown]),
            (TCP, 9999, Loopback, &[ConnectionMark]),
            (UDP, 53, Served, &[AlreadyUntracked]),
        ],
    );
}

#[test]
fn options_of_iptables_are_read_or_else_distrusted() {
    check(
        &iptables_nft("raw.v4"),
        &[
            // `--ports 9002,9003` means the client's port, too: so some are let in.
            (TCP, 21, Served, &[Helper, EstablishedOnly, ConnectionMark]),
            (TCP, 9001, Served, &[EstablishedOnly, ConnectionMark, OpensAccess, Unknown]),
            (TCP, 9002, Served, &[EstablishedOnly, ConnectionMark, OpensAccess, Unknown]),
            // Only the SYN is let in without state; clients that use 9002 themselves meet the limit.
            (TCP, 5432, Served, &[EstablishedOnly, ConnectionMark, Unknown]),
            // u32 looks into packets.
            (TCP, 9000, Served, &[EstablishedOnly, ConnectionMark, OpensAccess, Unknown]),
        ],
    );
}
