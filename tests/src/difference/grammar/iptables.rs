//! Tables, chains and rules for iptables-restore, of one family.

use std::fmt::Write as _;

use super::super::ground::{Addresses, Asked};
use super::super::random::Random;
use super::{address, port};
use crate::lab::Proto;

pub(super) fn text(random: &mut Random, asked: &Asked, of: &Addresses) -> String {
    let mut text = String::new();
    for (table, chains, percent) in [
        ("raw", &["PREROUTING", "OUTPUT"][..], 35),
        ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"], 25),
        ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"], 65),
        ("filter", &["INPUT", "FORWARD", "OUTPUT"], 85),
    ] {
        if random.chance(percent) {
            text += &Table { random, asked, of, table }.text(chains);
        }
    }
    if text.is_empty() {
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n".to_owned()
    } else {
        text
    }
}

struct Table<'a> {
    random: &'a mut Random,
    asked: &'a Asked,
    of: &'a Addresses,
    table: &'static str,
}

impl Table<'_> {
    fn text(&mut self, chains: &[&str]) -> String {
        let mut text = format!("*{}\n", self.table);
        let mut rules = String::new();
        for chain in chains {
            let wanted = match (self.table, *chain) {
                ("nat", "PREROUTING") => 60,
                ("nat", "POSTROUTING") => 80,
                ("nat", _) => 15,
                ("filter", "OUTPUT") => 25,
                _ => 60,
            };
            let used = self.random.chance(wanted);
            let drops = used && self.table == "filter" && self.random.chance(35);
            let _ = writeln!(text, ":{chain} {} [0:0]", if drops { "DROP" } else { "ACCEPT" });
            if drops {
                rules += &self.stateful(chain);
            }
            if used {
                for _ in 0..1 + self.random.below(3) {
                    rules += &self.rule(chain);
                }
            }
        }
        text += ":more - [0:0]\n";
        if self.table != "nat" {
            rules += &self.rule("more");
        }
        text + &rules + "COMMIT\n"
    }

    fn stateful(&mut self, chain: &str) -> String {
        let (random, proto) = (&mut *self.random, self.asked.proto);
        let mut lines = Vec::new();
        if random.chance(90) {
            match chain {
                "INPUT" => lines.push("-i lo -j ACCEPT".to_owned()),
                "OUTPUT" => lines.push("-o lo -j ACCEPT".to_owned()),
                _ => lines.push("-i lan0 -j ACCEPT".to_owned()),
            }
        }
        lines.push(
            random
                .pick(&[
                    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                    "-m conntrack --ctstate RELATED,ESTABLISHED,UNTRACKED -j ACCEPT",
                    "-m state --state RELATED,ESTABLISHED -j ACCEPT",
                    "-m conntrack --ctdir REPLY -j ACCEPT",
                    "-m conntrack --ctstate INVALID -j DROP",
                ])
                .to_owned(),
        );
        let new = random.pick(&["", "", " -m conntrack --ctstate NEW"]);
        lines.push(format!("-p {proto} -m {proto} --dport {}{new} -j ACCEPT", port(random, self.asked)));
        if random.chance(50) {
            lines.push("-m conntrack --ctstate DNAT -j ACCEPT".to_owned());
        }
        lines.iter().map(|line| format!("-A {chain} {line}\n")).collect()
    }

    fn rule(&mut self, chain: &str) -> String {
        let mut line = format!("-A {chain}");
        let mut has_port = false;
        let most = if self.table == "nat" { 3 } else { 2 };
        let mut used = [false; 6];
        for _ in 0..1 + self.random.below(most) {
            let (random, asked) = (&mut *self.random, self.asked);
            let kind = random.below(if matches!(self.table, "raw" | "nat") { 4 } else { 6 });
            if std::mem::replace(&mut used[kind], true) {
                continue;
            }
            let not = random.pick(&["", "", "", " !"]);
            match kind {
                0 => {
                    let dev = random.pick(&["lan0", "wan0", "wan0", "dmz0", "lo"]);
                    let way = match chain {
                        "INPUT" | "PREROUTING" => "-i",
                        "OUTPUT" | "POSTROUTING" => "-o",
                        "FORWARD" => random.pick(&["-i", "-o"]),
                        _ => continue,
                    };
                    let _ = write!(line, "{not} {way} {dev}");
                }
                1 => {
                    let end = random.pick(&["-s", "-d"]);
                    let _ = write!(line, "{not} {end} {}", address(random, self.of));
                }
                2 => {
                    let (proto, number) = (asked.proto, port(random, asked));
                    let end = random.pick(&["--dport", "--dport", "--dport", "--sport"]);
                    has_port = true;
                    if asked.proto == Proto::Tcp && random.chance(8) {
                        let flags = random.pick(&["SYN", "ACK", "PSH,ACK", "FIN,ACK"]);
                        let all = "FIN,SYN,RST,PSH,ACK,URG";
                        let _ = write!(line, " -p tcp -m tcp {end} {number} --tcp-flags {all} {flags}");
                    } else if random.chance(20) {
                        let _ = write!(line, " -p {proto} -m multiport {end}s {number},22");
                    } else {
                        let _ = write!(line, " -p {proto} -m {proto} {end} {number}");
                    }
                }
                3 => {
                    let _ = write!(line, " -m addrtype{not} --dst-type LOCAL");
                }
                4 => {
                    line += random.pick(&[
                        " -m conntrack --ctstate NEW",
                        " -m conntrack --ctstate INVALID",
                        " -m conntrack --ctstate ESTABLISHED",
                        " -m conntrack ! --ctstate ESTABLISHED",
                        " -m conntrack --ctstate UNTRACKED",
                        " -m conntrack --ctstate DNAT",
                        " -m conntrack --ctdir ORIGINAL",
                        " -m connmark --mark 7",
                        " -m conntrack --ctstate NEW,UNTRACKED",
                        " -m conntrack --ctstatus SEEN_REPLY",
                        " -m conntrack ! --ctstatus CONFIRMED",
                        " -m helper --helper ftp",
                    ]);
                }
                _ => {
                    line += random.pick(&[
                        " -m mark --mark 7",
                        " -m limit --limit 9000/sec --limit-burst 9000",
                        " -m comment --comment \"x y\"",
                        " -m connlimit --connlimit-above 4000",
                        " -m pkttype --pkt-type unicast",
                        " -m length --length 0:900",
                        " -m recent --set --name seen",
                        " -m recent --rcheck --name seen",
                        " -m hashlimit --hashlimit-upto 9000/sec --hashlimit-mode srcip --hashlimit-name a",
                    ]);
                }
            }
        }
        let Asked { proto, port, other } = *self.asked;
        let random = &mut *self.random;
        let mut target = match self.table {
            "raw" => random
                .pick(&[
                    "-j ACCEPT",
                    "-j ACCEPT",
                    "-j CT --notrack",
                    "-j CT --notrack",
                    "-j CT --zone 5",
                    "-j RETURN",
                    "-j MARK --set-xmark 0x7/0xffffffff",
                    "-j DROP",
                    "-j more",
                ])
                .to_owned(),
            "mangle" => random
                .pick(&[
                    "-j MARK --set-xmark 0x7/0xffffffff",
                    "-j CONNMARK --restore-mark",
                    "-j CONNMARK --save-mark",
                    "-j CONNMARK --set-xmark 0x7/0xffffffff",
                    "-j ACCEPT",
                    "-j RETURN",
                    "-j DROP",
                ])
                .to_owned(),
            "filter" => random
                .pick(&[
                    "-j ACCEPT",
                    "-j ACCEPT",
                    "-j DROP",
                    "-j REJECT",
                    "-j RETURN",
                    "-j more",
                    "-g more",
                    "",
                ])
                .to_owned(),
            _ => {
                if !has_port && chain != "POSTROUTING" {
                    let _ = write!(line, " -p {proto} -m {proto} --dport {other}");
                }
                let bracket = |address: &str| {
                    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
                };
                match chain {
                    "POSTROUTING" => match random.below(8) {
                        0..5 => "-j MASQUERADE".to_owned(),
                        5 => "-j MASQUERADE --random-fully".to_owned(),
                        6 => format!("-j SNAT --to-source {}", self.of.wan),
                        _ if random.chance(30) && !self.of.lan_net.contains(':') => {
                            format!("-s {} -j NETMAP --to 198.51.101.0/24", self.of.lan_net)
                        }
                        _ if has_port => format!("-j MASQUERADE --to-ports {port}-{}", port + 300),
                        _ => "-j MASQUERADE".to_owned(),
                    },
                    "INPUT" => format!("-j SNAT --to-source {}", self.of.neighbour),
                    _ => match random.below(6) {
                        0..3 => format!("-j REDIRECT --to-ports {port}"),
                        3 => "-j RETURN".to_owned(),
                        _ => {
                            let to =
                                random.pick(&[self.of.client, self.of.neighbour, self.of.wan, self.of.lan]);
                            format!("-j DNAT --to-destination {}:{port}", bracket(to))
                        }
                    },
                }
            }
        };
        if chain == "more" && target.contains("more") {
            target = "-j RETURN".to_owned();
        }
        format!("{line} {target}\n")
    }
}
