//! Kinds of rules that were once advised though they do harm, where tests/cases can't have them: the machine may lack the module.

use ctwatch::firewall::ObjectionKind::*;
use ctwatch::firewall::Scope::{Loopback, Outgoing, Served};
use ctwatch::firewall::{Dump, ExemptTarget, Firewall, HostFacts, ObjectionKind, Save, Scope, Tools};
use ctwatch::model::Protocol;

use super::{host, kinds};

fn nft(objects: &str, host: HostFacts) -> Firewall {
    let nft_json = format!(r#"{{"nftables": [{objects}]}}"#);
    let tools = Tools { nft: true, iptables: false, ip6tables: false };
    Firewall::parse(&Dump { nft_json, tools, host, ..Dump::default() }).0
}

fn iptables(rules: &str) -> Firewall {
    let save = Save { tool: "iptables-save".to_owned(), ipv6: false, legacy: true, text: rules.to_owned() };
    Firewall::parse(&Dump { saves: vec![save], host: host(), ..Dump::default() }).0
}

/// A filter table whose INPUT has these rules.
fn input(rules: &[&str]) -> Firewall {
    let rules: String = rules.iter().map(|rule| format!("-A INPUT {rule}\n")).collect();
    iptables(&format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n"
    ))
}

fn of(firewall: &Firewall, scope: Scope) -> Vec<ObjectionKind> {
    kinds(firewall, Protocol::TCP, 8080, scope)
}

#[test]
fn packets_that_are_tracked_at_a_bridge_are_not_exempted_behind_it() {
    let bridge = |expr: &str| {
        format!(
            r#"{{"table": {{"family": "bridge", "name": "b", "handle": 1}}}},
            {{"chain": {{"family": "bridge", "table": "b", "name": "c", "handle": 1, "type": "filter", "hook": "prerouting", "prio": 0, "policy": "accept"}}}},
            {{"rule": {{"family": "bridge", "table": "b", "chain": "c", "handle": 2, "expr": [{expr}, {{"drop": null}}]}}}}"#
        )
    };
    let asks = bridge(r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}"#);
    let tracked = nft(&asks, host());
    assert_eq!(
        [of(&tracked, Served), of(&tracked, Outgoing), of(&tracked, Loopback)],
        [vec![Unknown], vec![Unknown], vec![]]
    );
    let plain = bridge(r#"{"match": {"op": "==", "left": {"meta": {"key": "protocol"}}, "right": "arp"}}"#);
    assert_eq!(of(&nft(&plain, host()), Served), []);
}

#[test]
fn with_a_vrf_nobody_knows_which_addresses_are_local() {
    let with = nft("", HostFacts { vrfs: vec!["mgmt".to_owned()], ..host() });
    assert_eq!(
        [of(&with, Served), of(&with, Outgoing), of(&with, Loopback)],
        [vec![Unknown], vec![Unknown], vec![]]
    );
    let target = ExemptTarget { proto: Protocol::TCP, port: 8080, scope: Served };
    assert_eq!(with.objections(&target)[0].rule.raw(), "mgmt");
    assert_eq!(of(&nft("", host()), Served), []);
}

#[test]
fn lists_that_rules_fill_are_not_the_same_for_untracked_packets() {
    let fills = "-p tcp -m tcp --dport 8080 -m conntrack --ctstate NEW -j SET --add-set seen src";
    let asks = "-p tcp -m tcp --dport 8080 -m set --match-set seen src -j ACCEPT";
    let drops = "-p tcp -m tcp --dport 8080 -j DROP";
    assert!(of(&input(&[fills, asks, drops]), Served).contains(&Unknown));
    assert_eq!(of(&input(&[asks, drops]), Served), [], "a person fills it");
    let marks = "-p tcp -m tcp --dport 8080 -m mark --mark 0x1 -j ACCEPT";
    let by_list = "-j SET --map-set seen src --map-mark";
    assert_eq!(of(&input(&[by_list, marks, drops]), Served), [], "as for tracked ones");
    assert!(of(&input(&[fills, by_list, marks, drops]), Served).contains(&Unknown));
}

#[test]
fn marks_that_no_rule_sets_may_be_set_by_others() {
    let drops = "-p tcp -m mark --mark 0x4000/0x4000 -m conntrack --ctstate UNTRACKED -j DROP";
    assert_eq!(of(&input(&[drops]), Served), [Unknown]);
    let sets =
        "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n";
    let both = format!("{sets}*filter\n:INPUT ACCEPT [0:0]\n-A INPUT {drops}\nCOMMIT\n");
    assert_eq!(of(&iptables(&both), Served), [], "it is the rules' own, and set for others alone");
}

#[test]
fn a_transparent_proxy_refuses_the_ports_that_it_takes() {
    let proxy = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING ! -d 192.0.2.0/24 -p tcp -m tcp --dport 8080 -j TPROXY --on-port 3129 \
                 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1\nCOMMIT\n";
    assert!(of(&iptables(proxy), Served).contains(&NatRule));
    assert!(of(&iptables(proxy), Outgoing).contains(&NatRule));
    assert_eq!(kinds(&iptables(proxy), Protocol::TCP, 22, Served), []);
    let divert = "*mangle\n:PREROUTING ACCEPT [0:0]\n:DIVERT - [0:0]\n-A PREROUTING -p tcp -m socket --transparent -j DIVERT\n\
                  -A DIVERT -j MARK --set-xmark 0x1/0xffffffff\n-A DIVERT -j ACCEPT\nCOMMIT\n";
    assert_eq!(of(&iptables(divert), Served), [NatRule]);
    assert_eq!(kinds(&iptables(divert), Protocol::UDP, 53, Served), []);
}

#[test]
fn labels_that_come_from_the_connection_are_lost() {
    assert_eq!(of(&input(&["-j CONNSECMARK --restore"]), Served), [ConnectionMark]);
    assert_eq!(of(&input(&["-j CONNSECMARK --save"]), Served), []);
}

#[test]
fn a_question_may_be_all_that_comes() {
    let rules = [
        "-s 192.0.2.0/24 -p udp -m udp --dport 53 -j ACCEPT",
        "-p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT",
        "-j DROP",
    ];
    assert_eq!(kinds(&input(&rules), Protocol::UDP, 53, Served), [EstablishedOnly]);
}

#[test]
fn what_leaves_for_a_group_counts_as_well() {
    let output = |rules: &str| {
        iptables(&format!(
            "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n"
        ))
    };
    let group = "-A OUTPUT -d 224.0.0.251/32 -p udp -m udp --dport 5353 -m conntrack --ctstate NEW -j ACCEPT\n\
                 -A OUTPUT -d 224.0.0.0/4 -j DROP\n";
    assert_eq!(kinds(&output(group), Protocol::UDP, 5353, Outgoing), [EstablishedOnly]);
    let by_type = "-A OUTPUT -m addrtype --dst-type MULTICAST -m conntrack --ctstate UNTRACKED -j DROP\n";
    assert_eq!(kinds(&output(by_type), Protocol::UDP, 5353, Outgoing), [EstablishedOnly]);
    assert_eq!(kinds(&output(by_type), Protocol::TCP, 443, Outgoing), []);
    // It answers the group from the port where it is asked.
    assert_eq!(kinds(&output(by_type), Protocol::UDP, 5353, Served), [EstablishedOnly]);
}

#[test]
fn a_connection_whose_end_is_refused_today_is_one() {
    let end = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG FIN,ACK -j DROP";
    let opens = "-p tcp -m tcp --dport 8080 -m conntrack --ctstate NEW -j DROP";
    assert_eq!(of(&input(&[end, opens]), Served), [OpensAccess]);
    let breaks = "-p tcp -m tcp --dport 8080 -m conntrack --ctstate UNTRACKED -j DROP";
    assert_eq!(of(&input(&[end, breaks]), Served), [EstablishedOnly]);
}
