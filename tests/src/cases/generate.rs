//! Rule sets by the ten thousand: kube-proxy's services and a log watcher's bans, as their makers write them.

use std::fmt::Write as _;

use serde::Deserialize;

/// What to make, and how many.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rules {
    /// Cluster services of three endpoints each.
    Kube(u32),
    /// Addresses that are refused one by one.
    Bans(u32),
}

impl Rules {
    /// For iptables-restore.
    pub fn text(&self) -> String {
        match *self {
            Self::Kube(count) => kube(count),
            Self::Bans(count) => bans(count),
        }
    }
}

const FILTER: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n";

fn bans(count: u32) -> String {
    let mut text = FILTER.to_owned();
    text += ":banned - [0:0]\n-A INPUT -m conntrack --ctstate INVALID -j DROP\n";
    text += "-A INPUT -p tcp -m multiport --dports 22,8080 -j banned\n";
    for i in 0..count {
        let (a, b, c) = (50 + i / 50_000, i / 200 % 250, i % 200 + 1);
        let _ =
            writeln!(text, "-A banned -s 10.{a}.{b}.{c}/32 -j REJECT --reject-with icmp-port-unreachable");
    }
    text + "-A banned -j RETURN\nCOMMIT\n"
}

fn kube(count: u32) -> String {
    const CHANCES: [&str; 3] = [
        "-m statistic --mode random --probability 0.33333333349 ",
        "-m statistic --mode random --probability 0.50000000000 ",
        "",
    ];
    let (mut chains, mut rules) = (String::new(), String::new());
    for i in 0..count {
        let (service, ip) = (format!("KUBE-SVC-{i:06}"), format!("10.96.{}.{}", i / 250, i % 250 + 1));
        let port = 8000 + i % 900;
        let _ = writeln!(chains, ":{service} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -d {ip}/32 -p tcp -m comment --comment \"ns/svc{i} cluster IP\" -m tcp --dport {port} -j {service}\n\
             -A {service} ! -s 10.244.0.0/16 -d {ip}/32 -p tcp -m tcp --dport {port} -j KUBE-MARK-MASQ"
        );
        for (e, chance) in CHANCES.iter().enumerate() {
            let end = format!("KUBE-SEP-{i:06}-{e}");
            let pod = format!("10.244.{}.{}", i / 80, i as usize % 80 * 3 + e + 1);
            let _ = writeln!(chains, ":{end} - [0:0]");
            let _ = writeln!(
                rules,
                "-A {service} {chance}-j {end}\n-A {end} -s {pod}/32 -j KUBE-MARK-MASQ\n\
                 -A {end} -p tcp -m tcp -j DNAT --to-destination {pod}:80"
            );
        }
    }
    format!(
        "{FILTER}-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n\
         :INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {rules}COMMIT\n"
    )
}
