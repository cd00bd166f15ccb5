//! Rules by the ten thousand: judged in a time that grows with their number and not with its square. The figures:
//!     cargo test --release -p ctwatch --test firewall many -- --nocapture --test-threads 1

use std::fmt::Write as _;
use std::time::Duration;

use ctwatch::firewall::{Dump, ExemptTarget, Firewall, Save, Scope, Tools};
use ctwatch::model::Protocol;
use nix::time::ClockId;

use super::host;

/// What one asks in such a night, all together.
const ASKED: [(Protocol, u16, Scope); 12] = [
    (Protocol::TCP, 6379, Scope::Loopback),
    (Protocol::TCP, 3306, Scope::Loopback),
    (Protocol::TCP, 22, Scope::Served),
    (Protocol::TCP, 80, Scope::Served),
    (Protocol::TCP, 443, Scope::Served),
    (Protocol::TCP, 8080, Scope::Served),
    (Protocol::UDP, 53, Scope::Served),
    (Protocol::TCP, 443, Scope::Outgoing),
    (Protocol::UDP, 53, Scope::Outgoing),
    (Protocol::TCP, 5432, Scope::Outgoing),
    (Protocol::TCP, 80, Scope::Outgoing),
    (Protocol::UDP, 123, Scope::Outgoing),
];
/// CPU time, since other tests run beside it; without optimization it is a multiple.
const PATIENCE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 60 } else { 2 });

/// A cluster of so many services with two endpoints each, as kube-proxy's iptables mode writes it.
fn services(count: u32) -> String {
    let (mut chains, mut portals, mut parts) = (String::new(), String::new(), String::new());
    for service in 0..count {
        let cluster = format!("10.{}.{}.{}", 96 + (service >> 16), service >> 8 & 255, service & 255);
        let port = [80, 443, 53, 6379, 8080][service as usize % 5];
        let name = format!("KUBE-SVC-{service:016X}");
        let _ = writeln!(chains, ":{name} - [0:0]");
        let _ = writeln!(
            portals,
            "-A KUBE-SERVICES -d {cluster}/32 -p tcp -m comment --comment \"ns/svc{service} cluster IP\" -m tcp --dport {port} -j {name}"
        );
        let _ = writeln!(
            parts,
            "-A {name} ! -s 10.244.0.0/16 -d {cluster}/32 -p tcp -m tcp --dport {port} -j KUBE-MARK-MASQ"
        );
        for endpoint in 0..2 {
            let sep = format!("KUBE-SEP-{service:014X}{endpoint:02X}");
            let pod = format!(
                "10.{}.{}.{}",
                244 + (service >> 15),
                service >> 7 & 255,
                (service & 127) * 2 + endpoint
            );
            let _ = writeln!(chains, ":{sep} - [0:0]");
            let half =
                if endpoint == 0 { "-m statistic --mode random --probability 0.50000000000 " } else { "" };
            let _ = writeln!(parts, "-A {name} {half}-j {sep}");
            let _ = writeln!(parts, "-A {sep} -s {pod}/32 -j KUBE-MARK-MASQ");
            let _ = writeln!(parts, "-A {sep} -p tcp -m tcp -j DNAT --to-destination {pod}:8080");
        }
    }
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n{portals}{parts}COMMIT\n"
    )
}

/// So many banned addresses, no two of them neighbours.
fn bans(count: u32) -> String {
    let mut rules = String::new();
    for ban in 0..count {
        let address = std::net::Ipv4Addr::from_bits((198 << 24) + ban * 2);
        let _ = writeln!(rules, "-A INPUT -s {address}/32 -j DROP");
    }
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         {rules}COMMIT\n"
    )
}

/// CPU time of this thread.
fn now() -> Duration {
    let time = ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("the clock is there");
    Duration::from(time)
}

/// Resident memory of this process at its highest, MB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

fn judged(what: &str, text: String) -> Vec<(String, usize)> {
    let save = Save { tool: "iptables-legacy-save".to_owned(), ipv6: false, legacy: true, text };
    let dump = Dump {
        saves: vec![save],
        tools: Tools { nft: true, iptables: true, ip6tables: true },
        host: host(),
        ..Dump::default()
    };
    let start = now();
    let (firewall, notes) = Firewall::parse(&dump);
    let read = now() - start;
    assert_eq!(notes, []);
    let answers: Vec<_> = ASKED
        .iter()
        .map(|(proto, port, scope)| {
            let target = ExemptTarget { proto: *proto, port: *port, scope: *scope };
            let asked = now();
            let found = firewall.objections(&target);
            println!("    {target} {scope:?}: {:?}", now() - asked);
            assert!(
                found.iter().all(|objection| !objection.text.contains("branch too much")),
                "{what}, {target} {scope:?}: {found:?}"
            );
            (format!("{target} {scope:?}"), found.iter().filter(|objection| objection.kind.forbids()).count())
        })
        .collect();
    let all = now() - start;
    println!(
        "{what}: read in {read:?}, {} ports judged in {:?}, peak {} MB",
        ASKED.len(),
        all - read,
        peak()
    );
    assert!(all < PATIENCE, "{what}: {all:?}");
    answers
}

#[test]
fn many_services_are_judged_in_a_second() {
    let answers = judged("10,000 services", services(10_000));
    let advised =
        |name: &str| answers.iter().find(|(of, _)| of == name).is_some_and(|(_, against)| *against == 0);
    assert!(advised("6379/tcp Loopback"), "no rule concerns a destination on lo: {answers:?}");
    assert!(advised("22/tcp Served"), "none of the services' addresses is the node's: {answers:?}");
    assert!(!advised("443/tcp Outgoing"), "services are asked at 443: {answers:?}");
}

#[test]
fn many_bans_are_judged_in_a_second() {
    let answers = judged("20,000 bans", bans(20_000));
    let advised =
        |name: &str| answers.iter().find(|(of, _)| of == name).is_some_and(|(_, against)| *against == 0);
    // Whoever is banned is so before his connection is known.
    assert!(advised("8080/tcp Served"), "{answers:?}");
    assert!(advised("6379/tcp Loopback"), "{answers:?}");
}
