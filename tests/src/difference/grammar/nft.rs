//! Tables, chains, sets and rules for `nft -f`.

use std::fmt::Write as _;

use super::super::ground::{Addresses, Asked, V4, V6};
use super::super::random::Random;
use super::{address, port};

pub(super) fn text(random: &mut Random, asked: &Asked) -> String {
    let mut text = String::new();
    for number in 0..1 + random.below(3) {
        let family = random.pick(&["inet", "inet", "inet", "ip", "ip", "ip6"]);
        text += &Table { random, asked, family }.text(number);
    }
    if random.chance(12) {
        text += &at_a_device(random, asked);
    }
    text
}

/// Chains of other families, which may mark what rules of IP ask for.
fn at_a_device(random: &mut Random, asked: &Asked) -> String {
    let dev = random.pick(&["lan0", "wan0", "dmz0"]);
    let (proto, port) = (asked.proto, port(random, asked));
    let what = random.pick(&["meta mark set 7", "meta mark set 7", "counter", "meta priority set 1:1"]);
    if random.chance(15) {
        let head =
            "table bridge b {\n\tchain c {\n\t\ttype filter hook prerouting priority 0; policy accept;\n";
        return format!("{head}\t\tmeta mark set 7\n\t}}\n}}\n");
    }
    format!(
        "table netdev n {{\n\tchain c {{\n\t\ttype filter hook ingress device \"{dev}\" priority 0; policy accept;\n\t\t{proto} dport \
         {port} {what}\n\t}}\n}}\n"
    )
}

struct Table<'a> {
    random: &'a mut Random,
    asked: &'a Asked,
    family: &'static str,
}

/// What a rule may be at a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Filter,
    /// Before conntrack.
    Raw,
    Nat,
}

impl Table<'_> {
    fn text(&mut self, number: usize) -> String {
        let mut chains = String::new();
        for at in 0..1 + self.random.below(4) {
            chains += &self.base_chain(at);
        }
        // Those jumped to have to be there before.
        let mut text = format!("table {} t{number} {{\n", self.family);
        text += &self.sets();
        for name in ["first", "second"] {
            let count = 1 + self.random.below(2);
            let body = self.rules(Kind::Filter, "any", count, false);
            let _ = write!(text, "\tchain {name} {{\n{body}\t}}\n");
        }
        text + &chains + "}\n"
    }

    fn sets(&mut self) -> String {
        let Asked { port, other, .. } = *self.asked;
        let kind = if self.is_v6() { "ipv6_addr" } else { "ipv4_addr" };
        let of = self.addresses();
        let target = self.random.pick(&[of.client, of.neighbour, of.wan]);
        let timeout = self.random.pick(&["", ",timeout\n\t\ttimeout 1h"]);
        let verdicts = self.random.pick(&["accept", "accept", "drop", "return"]);
        format!(
            "\tset ports {{\n\t\ttype inet_service\n\t\telements = {{ {port}, {other} }}\n\t}}\n\
             \tset nets {{\n\t\ttype {kind}\n\t\tflags interval\n\t\telements = {{ {}, {} }}\n\t}}\n\
             \tset talking {{\n\t\ttype {kind}\n\t\tsize 65535\n\t\tflags dynamic\n\t}}\n\
             \tset seen {{\n\t\ttype {kind}\n\t\tsize 65535\n\t\tflags dynamic{timeout}\n\t}}\n\
             \tmap doors {{\n\t\ttype inet_service : verdict\n\t\telements = {{ {port} : {verdicts}, {other} : accept }}\n\t}}\n\
             \tmap ends {{\n\t\ttype inet_service : {kind}\n\t\telements = {{ {other} : {target} }}\n\t}}\n",
            of.lan_net, of.wan_net
        )
    }

    fn is_v6(&mut self) -> bool {
        self.family == "ip6"
    }

    fn addresses(&mut self) -> &'static Addresses {
        if self.is_v6() { &V6 } else { &V4 }
    }

    fn base_chain(&mut self, at: usize) -> String {
        let random = &mut *self.random;
        let (kind, hook, priority) = match random.below(100) {
            0..25 => {
                (Kind::Filter, "input", random.pick(&["filter", "filter", "filter", "10", "-10", "-199"]))
            }
            25..36 => (Kind::Filter, "forward", random.pick(&["filter", "filter", "-10"])),
            36..46 => (Kind::Filter, "output", random.pick(&["filter", "filter", "-10", "mangle"])),
            46..52 => (Kind::Filter, "prerouting", random.pick(&["mangle", "filter", "-110", "-90"])),
            52..56 => (Kind::Filter, "postrouting", random.pick(&["mangle", "filter", "110", "300"])),
            56..62 => (Kind::Raw, "prerouting", random.pick(&["raw", "raw", "-310", "-290", "-250", "-400"])),
            62..68 => (Kind::Raw, "output", random.pick(&["raw", "raw", "-310", "-290", "-250", "-400"])),
            68..84 => (Kind::Nat, "postrouting", random.pick(&["srcnat", "srcnat", "90", "110"])),
            84..94 => (Kind::Nat, "prerouting", random.pick(&["dstnat", "dstnat", "-110", "-90"])),
            94..98 => (Kind::Nat, "output", random.pick(&["-100", "-100", "-110"])),
            _ => (Kind::Nat, "input", "100"),
        };
        let what = if kind == Kind::Nat { "nat" } else { "filter" };
        let drops = kind == Kind::Filter
            && matches!(hook, "input" | "forward" | "output")
            && self.random.chance(if hook == "output" { 15 } else { 40 });
        let policy = if drops { "drop" } else { "accept" };
        let count = 1 + self.random.below(3);
        let mut rules = self.rules(kind, hook, count, drops);
        if drops {
            rules = self.stateful(hook) + &rules;
        }
        format!(
            "\tchain c{at}_{hook} {{\n\t\ttype {what} hook {hook} priority {priority}; policy {policy};\n{rules}\t}}\n"
        )
    }

    /// What a chain that drops begins with.
    fn stateful(&mut self, hook: &str) -> String {
        let mut lines = Vec::new();
        if hook == "input" && self.random.chance(90) {
            lines.push("iifname \"lo\" accept".to_owned());
        }
        if hook == "output" && self.random.chance(80) {
            lines.push("oifname \"lo\" accept".to_owned());
        }
        if self.random.chance(90) {
            lines.push(
                self.random
                    .pick(&[
                        "ct state established,related accept",
                        "ct state { established, related } accept",
                        "ct state vmap { established : accept, related : accept, invalid : drop }",
                        "ct state vmap { established : accept, related : accept, invalid : drop, untracked : accept }",
                        "ct state established,related,untracked accept",
                        "ct direction reply accept",
                        "ct state invalid drop",
                        "ct state != new accept",
                    ])
                    .to_owned(),
            );
        }
        let ports = self.ports();
        let new = self.random.pick(&["", "", "ct state new "]);
        lines.push(format!("{ports}{new}accept"));
        if self.random.chance(60) {
            lines.push("meta l4proto { icmp, ipv6-icmp } accept".to_owned());
        }
        if hook != "input" && self.random.chance(60) {
            lines.push(
                self.random
                    .pick(&["iifname \"lan0\" accept", "ct state new accept", "ct status dnat accept"])
                    .to_owned(),
            );
        }
        lines.iter().map(|line| format!("\t\t{line}\n")).collect()
    }

    fn ports(&mut self) -> String {
        let Asked { proto, port, other } = *self.asked;
        match self.random.below(5) {
            0 => format!("{proto} dport {port} "),
            1 => format!("{proto} dport {{ {port}, {other} }} "),
            2 => format!("{proto} dport @ports "),
            3 => format!("meta l4proto {{ tcp, udp }} th dport {port} "),
            _ => format!("{proto} dport {{ 22, {port}, 1000-2000 }} "),
        }
    }

    fn rules(&mut self, kind: Kind, hook: &str, count: usize, drops: bool) -> String {
        let mut text = String::new();
        for _ in 0..count {
            let mut matches = String::new();
            let most = if kind == Kind::Nat { 3 } else { 2 };
            for _ in 0..self.random.below(most) + usize::from(!drops) {
                matches += &self.one_match(kind, hook);
            }
            let statement = self.statement(kind, hook, &matches);
            let _ = writeln!(text, "\t\t{matches}{statement}");
        }
        text
    }

    fn one_match(&mut self, kind: Kind, hook: &str) -> String {
        let Asked { proto, .. } = *self.asked;
        let random = &mut *self.random;
        let not = random.pick(&["", "", "", "!= "]);
        let number = port(random, self.asked);
        let dev = random.pick(&["lan0", "wan0", "wan0", "dmz0", "lo"]);
        match random.below(if kind == Kind::Raw { 60 } else { 100 }) {
            0..16 => match hook {
                "input" | "prerouting" => format!("iifname {not}\"{dev}\" "),
                "output" | "postrouting" => format!("oifname {not}\"{dev}\" "),
                _ => format!("{} {not}\"{dev}\" ", random.pick(&["iifname", "oifname"])),
            },
            16..30 => {
                let v6 = self.family == "ip6" || (self.family == "inet" && random.chance(25));
                let (ip, of) = if v6 { ("ip6", &V6) } else { ("ip", &V4) };
                let end = random.pick(&["saddr", "daddr"]);
                if (self.family == "ip6") == v6 && random.chance(20) {
                    format!("{ip} {end} {not}@nets ")
                } else {
                    format!("{ip} {end} {not}{} ", address(random, of))
                }
            }
            30..48 => {
                let end = random.pick(&["dport", "dport", "dport", "sport"]);
                match random.below(5) {
                    0 => format!("{proto} {end} @ports "),
                    1 => format!("{proto} {end} {not}{number} "),
                    2 => format!("{proto} {end} {{ {number}, 22 }} "),
                    _ => format!("{proto} {end} {number} "),
                }
            }
            48..54 => format!("fib daddr type {not}local "),
            54..58 => format!("meta l4proto {proto} "),
            58..60 => "meta mark 7 ".to_owned(),
            60..70 if kind == Kind::Filter => random
                .pick(&[
                    "ct state new ",
                    "ct state invalid ",
                    "ct state established ",
                    "ct state != established ",
                    "ct state untracked ",
                    "ct state new,untracked ",
                    "ct state ! established ",
                    "ct state ! new,established ",
                    "ct state != new,established ",
                ])
                .to_owned(),
            70..78 if kind == Kind::Filter => random
                .pick(&[
                    "ct direction original ",
                    "ct direction reply ",
                    "ct status dnat ",
                    "ct status snat ",
                    "ct status assured ",
                    "ct status seen-reply ",
                    "ct mark 7 ",
                    "ct mark != 7 ",
                    "ct zone 0 ",
                ])
                .to_owned(),
            78..84 if kind == Kind::Filter => random
                .pick(&["limit rate 20000/second ", "limit rate over 20000/second ", "ct count over 4000 "])
                .to_owned(),
            84..87 => "fib saddr type local ".to_owned(),
            _ => self.rare_match(kind),
        }
    }

    /// What rules have now and then.
    fn rare_match(&mut self, kind: Kind) -> String {
        let Asked { proto, port, other } = *self.asked;
        let of = self.addresses();
        let ip = if self.family == "ip6" { "ip6" } else { "ip" };
        let random = &mut *self.random;
        let (near, far) = (address(random, of), address(random, of));
        let flags = random.pick(&["syn", "ack", "psh|ack", "fin|ack", "rst"]);
        let plain = [
            "meta nfproto ipv4 ".to_owned(),
            "meta pkttype host ".to_owned(),
            "meta length < 1000 ".to_owned(),
            "iif != \"lo\" ".to_owned(),
            format!("th sport {port} "),
            format!("th dport 1-{port} "),
            format!("@th,16,16 {port} "),
            format!("{ip} saddr . {proto} dport {{ {near} . {port}, {far} . {other} }} "),
            format!("{ip} saddr != {{ {near}, {far} }} "),
            format!("meta l4proto . th dport {{ {proto} . {port} }} "),
            "tcp flags & (syn | ack) == syn ".to_owned(),
            "tcp flags != syn ".to_owned(),
            "tcp flags ! syn ".to_owned(),
            format!("tcp flags & (fin | syn | rst | psh | ack | urg) == {flags} "),
            format!("{ip} saddr @seen "),
            format!("{ip} saddr != @seen "),
            "meta skuid 0 ".to_owned(),
        ];
        let of_state = [
            format!("ct original proto-dst {port} "),
            format!("ct original proto-src != {port} "),
            format!("ct reply proto-src {port} "),
            format!("ct original {ip} daddr {near} "),
            "ct expiration > 1s ".to_owned(),
            "ct status != confirmed ".to_owned(),
            "ct status seen-reply,assured ".to_owned(),
            format!("ct protocol {proto} "),
            "ct helper \"ftp\" ".to_owned(),
            "ct state new tcp flags syn ".to_owned(),
            "ct state related,new ".to_owned(),
            "ct mark and 0xff == 7 ".to_owned(),
        ];
        let all = if kind == Kind::Filter && random.chance(60) { &of_state[..] } else { &plain[..] };
        all[random.below(all.len())].clone()
    }

    fn statement(&mut self, kind: Kind, hook: &str, matches: &str) -> String {
        let Asked { proto, port, other } = *self.asked;
        let of = self.addresses();
        let inet = if self.family == "inet" { " ip" } else { "" };
        let random = &mut *self.random;
        match kind {
            Kind::Raw => random
                .pick(&[
                    "accept",
                    "accept",
                    "notrack",
                    "notrack",
                    "counter",
                    "ct zone set 5",
                    "meta mark set 7",
                    "return",
                    "drop",
                    "jump first",
                ])
                .to_owned(),
            Kind::Filter => match random.below(100) {
                0..25 => "accept".to_owned(),
                25..35 => "drop".to_owned(),
                35..40 => "reject".to_owned(),
                40..50 if hook != "any" => format!(
                    "{} {}",
                    random.pick(&["jump", "jump", "goto"]),
                    random.pick(&["first", "second"])
                ),
                50..55 => "return".to_owned(),
                55..60 => "meta mark set 7".to_owned(),
                60..66 => random
                    .pick(&["ct mark set 7", "ct mark set meta mark", "meta mark set ct mark"])
                    .to_owned(),
                66..70 => format!("{proto} dport vmap @doors"),
                70..71 if hook == "prerouting" => {
                    format!("{proto} dport {port} tproxy to :{other} meta mark set 1 accept")
                }
                70..72 => {
                    let ip = if self.family == "ip6" { "ip6" } else { "ip" };
                    format!(
                        "{}add @seen {{ {ip} saddr }}",
                        random.pick(&["", "ct state new ", "ct state new "])
                    )
                }
                72..78 => random
                    .pick(&[
                        "ct state vmap { established : accept, invalid : drop }",
                        "ct state vmap { new : jump second, established : accept }",
                        "ct state vmap { invalid : drop, untracked : return }",
                    ])
                    .replace("jump second", if hook == "any" { "accept" } else { "jump second" }),
                78..82 => {
                    let ip = if self.family == "ip6" { "ip6" } else { "ip" };
                    let what = random.pick(&["ct count over 4000", "limit rate over 20000/second"]);
                    format!("{proto} dport {port} add @talking {{ {ip} saddr {what} }} drop")
                }
                82..84 if proto.to_string() == "tcp" => {
                    "tcp flags syn tcp option maxseg size set rt mtu".to_owned()
                }
                84..87 => "ct state invalid drop".to_owned(),
                87..90 => "queue num 9 bypass".to_owned(),
                90..93 => format!(
                    "ct state . {proto} dport vmap {{ new . {port} : accept, established . {port} : accept }}"
                ),
                93..95 => "log group 3 continue".replace(" continue", ""),
                _ => "counter".to_owned(),
            },
            Kind::Nat => {
                let ported = format!("{proto} dport {other} ");
                let guard = if matches.contains("port ") { String::new() } else { ported };
                match hook {
                    "postrouting" => match random.below(10) {
                        0..6 => random
                            .pick(&[
                                "masquerade",
                                "masquerade",
                                "masquerade random",
                                "masquerade fully-random",
                            ])
                            .to_owned(),
                        6 => format!("meta l4proto {proto} masquerade to :20000-40000"),
                        7 => format!(
                            "meta l4proto {proto} snat{inet} to {}:{port}-{}",
                            bracket(of.wan),
                            port + 400
                        ),
                        8 => format!("snat{inet} to {}", of.dmz),
                        _ => format!("snat{inet} to {}", of.wan),
                    },
                    "input" => format!("snat{inet} to {}", of.neighbour),
                    _ => match random.below(10) {
                        0..4 => format!("{guard}redirect to :{port}"),
                        4 => format!("{guard}redirect"),
                        5 | 6 => {
                            let to = random.pick(&[of.client, of.neighbour, of.wan, of.lan, of.outside]);
                            format!("{guard}dnat{inet} to {}:{port}", bracket(to))
                        }
                        7 => format!(
                            "{guard}dnat{inet} to {}",
                            random.pick(&[of.client, of.neighbour, of.lan])
                        ),
                        8 => format!("dnat{inet} to {proto} dport map @ends"),
                        _ => {
                            let ip = if self.family == "ip6" { "ip6" } else { "ip" };
                            format!(
                                "{ip} daddr {} {proto} dport {other} dnat{inet} to {}:{port}",
                                of.virtual_one,
                                bracket(random.pick(&[of.client, of.lan, of.wan, of.neighbour]))
                            )
                        }
                    },
                }
            }
        }
    }
}

fn bracket(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}
