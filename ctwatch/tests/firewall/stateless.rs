//! Which rules that make conntrack track may go, and with which commands.
//! Whether these work is what the VM scenario `stateless` shows.

use ctwatch::firewall::ObjectionKind::*;
use ctwatch::firewall::{Dump, Firewall, ObjectionKind, Save};

use super::{iptables_nft, legacy, nft, parsed};

fn kinds(firewall: &Firewall) -> Vec<ObjectionKind> {
    firewall.without_tracking().err().unwrap_or_default().iter().map(|objection| objection.kind).collect()
}

/// The filter table of iptables with these rules.
fn filter(tool: &str, policy: &str, rules: &[&str]) -> Firewall {
    let text = format!(
        "*filter\n:INPUT {policy} [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{}\nCOMMIT\n",
        rules.join("\n")
    );
    let save = Save { tool: format!("{tool}-save"), ipv6: tool.starts_with("ip6"), legacy: true, text };
    parsed(&Dump { saves: vec![save], ..Dump::default() })
}

const ESTABLISHED: &str = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
const INVALID: &str = "-A INPUT -m conntrack --ctstate INVALID -j DROP";
const SSH: &str = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";

#[test]
fn rules_of_the_field_have_to_stay_where_something_depends_on_state() {
    assert_eq!(kinds(&nft("established")), [EstablishedOnly]);
    // Its policy is to drop, and replies from servers elsewhere are let in as ESTABLISHED.
    assert_eq!(kinds(&nft("simple")), [EstablishedOnly]);
    assert_eq!(kinds(&nft("vmap")), [EstablishedOnly]);
    for name in ["docker.v4", "kube.v4"] {
        assert!(kinds(&iptables_nft(name)).contains(&NatRule), "{name}");
        assert!(kinds(&legacy(name)).contains(&NatRule), "{name}");
    }
    assert_eq!(kinds(&iptables_nft("ufw.v4")), kinds(&legacy("ufw.v4")));
    assert!(kinds(&iptables_nft("ufw.v4")).contains(&EstablishedOnly));
}

#[test]
fn a_firewall_that_lets_everything_in_needs_no_state() {
    let commands = filter("iptables-legacy", "ACCEPT", &[ESTABLISHED, INVALID, SSH])
        .without_tracking()
        .expect("nothing is dropped but what belongs to no connection");
    let file = "/run/ctwatch-firewall.iptables-legacy.filter.v4";
    assert_eq!(
        commands.now,
        [
            format!(
                "[ -f {file} ] || {{ ( iptables-legacy-save -c -t filter ) > {file}.part && mv {file}.part {file}; }}"
            ),
            format!("iptables-legacy -w -t filter -D {}", &ESTABLISHED[3..]),
            format!("iptables-legacy -w -t filter -D {}", &INVALID[3..]),
        ]
    );
    assert_eq!(
        commands.undo,
        [format!("[ ! -f {file} ] || {{ iptables-legacy-restore -w -c < {file} && rm -f {file}; }}")]
    );
    assert!(commands.keep.iter().any(|line| line.contains(ESTABLISHED)), "{:?}", commands.keep);
}

#[test]
fn state_that_decides_what_passes_stays() {
    let kinds = |policy, rules: &[&str]| kinds(&filter("iptables", policy, rules));
    assert_eq!(kinds("DROP", &[ESTABLISHED, SSH]), [EstablishedOnly]);
    assert_eq!(
        kinds("ACCEPT", &[ESTABLISHED, "-A INPUT -p tcp -m tcp --dport 23 -j REJECT"]),
        [EstablishedOnly]
    );
    assert_eq!(kinds("ACCEPT", &["-A INPUT -m conntrack --ctstate NEW -j DROP"]), [OpensAccess]);
    assert_eq!(kinds("ACCEPT", &["-A INPUT -m conntrack --ctstate INVALID,NEW -j DROP"]), [OpensAccess]);
    // Nobody knows what is behind it.
    assert_eq!(kinds("ACCEPT", &["-A INPUT -m state --state NEW -j NFQUEUE --queue-num 1"]), [Unknown]);
    // The shell doesn't read it.
    let odd = "-A INPUT -m conntrack --ctstate NEW -m comment --comment \"$(reboot)\" -j ACCEPT";
    let commands = filter("iptables", "ACCEPT", &[odd]).without_tracking().expect("nothing needs state");
    assert!(
        commands.now.iter().any(|line| line.contains("--comment '$(reboot)' -j ACCEPT")),
        "{:?}",
        commands.now
    );
    assert_eq!(kinds("ACCEPT", &[SSH]), []);
}
