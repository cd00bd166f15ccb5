//! Rules and configurations, as other programs print or write them.

use crate::firewall::{Dump, ExemptTarget, Firewall, HostFacts, Save, Scope, Tool, Tools};
use crate::machine::managers::kube_proxy as kube;
use crate::model::Protocol;

/// What `nft -j list ruleset` printed, and behind a zero byte what it says in words.
pub(super) fn nft(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (json, words) = text.split_once('\0').unwrap_or((&text, ""));
    judge(&Dump { nft_json: json.to_owned(), nft_text: words.to_owned(), ..host() });
}

/// What iptables-save printed; from a zero byte on what ip6tables-save did.
pub(super) fn iptables(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (v4, v6) = text.split_once('\0').unwrap_or((&text, ""));
    for legacy in [false, true] {
        let save = |tool: &str, text: &str, ipv6| Save {
            tool: tool.to_owned(),
            text: text.to_owned(),
            ipv6,
            legacy,
        };
        let saves = vec![save("iptables-save", v4, false), save("ip6tables-save", v6, true)];
        judge(&Dump { saves, ..host() });
    }
}

fn host() -> Dump {
    let own = |address: &str| Some(vec![address.to_owned()]);
    let host = HostFacts {
        own_v4: own("192.0.2.1/32"),
        own_v6: own("2001:db8::1/128"),
        forwards_v4: Some(true),
        forwards_v6: None,
        vrfs: Vec::new(),
    };
    let tools = Tools { nft: true, iptables: true, ip6tables: true };
    Dump { host, tools, local_ports: Some((32_768, 60_999)), ..Dump::default() }
}

fn judge(dump: &Dump) {
    let settled = dump.clone().without_counts();
    assert_eq!(settled.clone().without_counts(), settled, "what is settled moves again");
    let (firewall, notes) = Firewall::parse(dump);
    let is_unknown = notes.iter().any(|note| note.text.contains("rules are unknown"));
    for scope in [Scope::Loopback, Scope::Served, Scope::Outgoing] {
        let target = ExemptTarget { proto: Protocol::TCP, port: 8080, scope };
        let objections = firewall.objections(&target);
        assert!(!is_unknown || !objections.is_empty(), "judged although {notes:?}");
        for objection in objections {
            drop(objection.located_rule());
        }
        for tool in [Tool::Nft, Tool::Iptables] {
            drop(firewall.notrack_commands(&target, tool));
        }
    }
    drop((
        firewall.untracked(),
        firewall.tracking_rules(),
        firewall.without_tracking(),
        firewall.published(),
    ));
    let _ = (firewall.has_nat(), firewall.preferred_tool());
}

/// A configuration of kube-proxy or of k3s, or the flags of one.
pub(super) fn kube_proxy(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for (sysctl, _) in kube::of_text(&text) {
        assert!(sysctl.contains("nf_conntrack"), "{sysctl}");
    }
}
