//! Reads what iptables-save and ip6tables-save print, of either variant.
//! An option that isn't known here makes its match unknown; a target that isn't may end the packet.

use super::dump::Save;
use super::ir::{Action, Base, Chain, Hook, Kind, Nat, Rule, RuleTable, Stays, Step, Target, Tool};
use super::options;
use crate::foreign::is_hidden;
use crate::text::shell::quote;
use std::collections::HashMap;

/// The tables that iptables knows, of either variant.
const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// What lists them. What its name is without "-save" becomes a command.
const SAVES: [&str; 6] = [
    "iptables-save",
    "ip6tables-save",
    "iptables-nft-save",
    "ip6tables-nft-save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
];

/// Whether a tool of iptables' prints a table by this name.
#[must_use]
pub fn is_table(name: &str) -> bool {
    TABLES.contains(&name)
}

/// Whether this is a tool of iptables' that prints tables.
#[must_use]
pub fn is_save(tool: &str) -> bool {
    SAVES.contains(&tool)
}

/// Whether a word is no option of a rule's, but one of iptables itself: `--modprobe`, which runs what it names, or another command.
/// No save has one.
fn is_iptables_own(word: &str) -> bool {
    const OF_RULES: [&str; 10] = ["-", "-s", "-d", "-i", "-o", "-p", "-f", "-m", "-j", "-g"];
    match word.strip_prefix("--") {
        // Any beginning of an option will do.
        Some(option) => {
            let name = option.split('=').next().unwrap_or_default();
            !name.is_empty() && "modprobe".starts_with(name)
        }
        None => word.starts_with('-') && !OF_RULES.contains(&word),
    }
}

/// The tables of one save.
#[must_use]
pub fn parse(save: &Save) -> Vec<RuleTable> {
    let (tool, family) = if save.ipv6 { (Tool::Ip6tables, "ip6") } else { (Tool::Iptables, "ip") };
    let mut tables: Vec<RuleTable> = Vec::new();
    let mut chains: HashMap<String, usize> = HashMap::new();
    let program = save.tool.strip_suffix("-save").unwrap_or(&save.tool);
    for line in save.text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('*') {
            chains.clear();
            tables.push(RuleTable {
                tool,
                family,
                name: name.to_owned(),
                program: program.to_owned(),
                chains: Vec::new(),
            });
        } else if let Some(table) = tables.last_mut() {
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_whitespace();
                let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or("-"));
                chains.insert(name.to_owned(), table.chains.len());
                table.chains.push(Chain {
                    name: name.to_owned(),
                    base: (policy != "-").then(|| base(&table.name, name, policy == "DROP")).flatten(),
                    rules: Vec::new(),
                });
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (name, rest) = rule.split_once(' ').unwrap_or((rule, ""));
                // Word by word: a comment or a prefix may hold anything.
                let is_option = |word: &str| {
                    word == "!"
                        || (word.starts_with('-')
                            && word.bytes().all(|byte| byte == b'-' || byte.is_ascii_alphanumeric()))
                };
                let plain = words(rule);
                let has_own = plain.iter().any(|word| is_iptables_own(word));
                let quoted: Vec<String> = plain
                    .into_iter()
                    .map(|word| if is_option(&word) { word } else { quote(&word) })
                    .collect();
                let delete = format!("{program} -w -t {} -D {}", quote(&table.name), quoted.join(" "));
                let can_be_typed =
                    !has_own && is_save(&save.tool) && is_table(&table.name) && !line.chars().any(is_hidden);
                let rule = Rule {
                    steps: steps(&words(rest)),
                    text: line.into(),
                    delete: can_be_typed.then_some(delete),
                };
                if let Some(chain) = chains.get(name) {
                    table.chains[*chain].rules.push(rule);
                }
            }
        }
    }
    tables
}

/// The built-in chains' priorities: enum nf_ip_hook_priorities, include/uapi/linux/netfilter_ipv4.h, 6.12.
fn base(table: &str, chain: &str, drops: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let (kind, priority) = match table {
        "raw" => (Kind::Filter, -300),
        "mangle" => (Kind::Filter, -150),
        "nat" => (Kind::Nat, if matches!(hook, Hook::Prerouting | Hook::Output) { -100 } else { 100 }),
        "security" => (Kind::Filter, 50),
        _ => (Kind::Filter, 0),
    };
    Some(Base { kind, hook, priority, drops })
}

/// Splits a line as iptables-restore does: blanks, double quotes, backslashes inside them.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            char if char.is_whitespace() && !quoted => words.extend(word.take()),
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

fn steps(words: &[String]) -> Vec<Step> {
    let target = words.iter().position(|word| word == "-j" || word == "-g").unwrap_or(words.len());
    let mut steps: Vec<Step> = options::conditions(&words[..target]).into_iter().map(Step::If).collect();
    if let [how, name, arguments @ ..] = &words[target..] {
        if how == "-g" {
            steps.push(Step::Do(Action::Goto(name.clone())));
        } else {
            steps.extend(action(name, arguments));
        }
    }
    steps
}

fn argument<'a>(arguments: &'a [String], option: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|word| word == option)?;
    arguments.get(at + 1).map(String::as_str)
}

fn action(name: &str, arguments: &[String]) -> Vec<Step> {
    let nat = |kind, to: &str| vec![Step::Do(Action::Nat(translation(kind, arguments, to)))];
    let one = |action| vec![Step::Do(action)];
    match name {
        "ACCEPT" => one(Action::Accept),
        "DROP" | "REJECT" => one(Action::Drop),
        "RETURN" => one(Action::Return),
        "QUEUE" | "NFQUEUE" => one(Action::Queue),
        "DNAT" => nat("dnat", "--to-destination"),
        "REDIRECT" => nat("redirect", "--to-ports"),
        "SNAT" => nat("snat", "--to-source"),
        "NETMAP" => nat("netmap", "--to"),
        "MASQUERADE" => nat("masquerade", "--to-ports"),
        "TPROXY" => {
            let mut steps = nat("tproxy", "--on-port");
            steps.extend(argument(arguments, "--tproxy-mark").map(set_mark).map(Step::Do));
            steps.push(Step::Do(Action::Accept));
            steps
        }
        "NOTRACK" => one(Action::Notrack),
        "CT" => {
            let has = |option: &str| arguments.iter().any(|word| word == option);
            let mut steps = Vec::new();
            steps.extend(
                argument(arguments, "--helper").map(|name| Step::Do(Action::Helper(name.to_owned()))),
            );
            steps.push(Step::Do(if has("--notrack") {
                Action::Notrack
            } else {
                let zones = ["--zone", "--zone-orig", "--zone-reply"];
                let zones =
                    zones.into_iter().filter_map(|of| Some(format!("{of} {}", argument(arguments, of)?)));
                Action::Template { zone: zones.reduce(|all, one| format!("{all} {one}")) }
            }));
            steps
        }
        "MARK" => {
            let set = argument(arguments, "--set-xmark").map(set_mark);
            one(set.unwrap_or_else(|| Action::MarkUnknown(Stays::Packet, arguments.join(" "))))
        }
        "CONNMARK" | "CONNSECMARK" => {
            let restores = arguments.iter().any(|word| word == "--restore-mark" || word == "--restore");
            one(if restores { Action::MarkFromConnection } else { Action::WriteConnection })
        }
        "SET" => of_set(arguments),
        "TCPMSS" | "CLASSIFY" | "DSCP" | "TOS" | "TTL" | "HL" | "SECMARK" | "ECN" => written_by(name),
        "LOG" | "NFLOG" | "ULOG" | "TRACE" | "TCPOPTSTRIP" | "CHECKSUM" | "AUDIT" | "TEE" | "RATEEST"
        | "IDLETIMER" | "LED" => Vec::new(),
        // A chain, or a target nobody here knows: following the jump finds no chain then, and calls it unknown.
        _ => one(Action::Jump(name.to_owned())),
    }
}

/// What SET writes: a list, and with --map-set the packet.
fn of_set(arguments: &[String]) -> Vec<Step> {
    let lists = ["--add-set", "--del-set"].into_iter().filter_map(|option| argument(arguments, option));
    let mut steps: Vec<Step> = lists.map(|list| Step::Do(Action::Writes(list.to_owned()))).collect();
    if arguments.iter().any(|word| word == "--map-mark") {
        steps.push(Step::Do(Action::MarkUnknown(Stays::Flow, arguments.join(" "))));
    }
    if arguments.iter().any(|word| word == "--map-prio") {
        steps.extend(written_by("CLASSIFY"));
    }
    steps
}

/// The fields of a packet that a target writes, by the names that both tools have for them.
fn written_by(target: &str) -> Vec<Step> {
    let names: &[&str] = match target {
        "TCPMSS" => &["maxseg", "tcpmss"],
        "CLASSIFY" => &["priority"],
        "DSCP" | "TOS" => &["dscp", "tos", "ecn"],
        "TTL" => &["ttl"],
        "HL" => &["hoplimit", "hl"],
        "SECMARK" => &["secmark"],
        _ => &["ecn"],
    };
    names.iter().map(|name| Step::Do(Action::Writes((*name).to_owned()))).collect()
}

/// What DNAT, SNAT, MASQUERADE, REDIRECT, NETMAP or TPROXY make of a packet.
fn translation(kind: &'static str, arguments: &[String], option: &str) -> Nat {
    let given = arguments.iter().filter(|word| *word == option).count();
    let to = argument(arguments, option).map(str::to_owned);
    let mut nat = Nat::unknown(kind, to.clone());
    match (kind, to) {
        ("masquerade" | "redirect", None) => nat.ports = Target::Kept,
        ("masquerade" | "redirect", Some(text)) => {
            nat.ports = options::port_range(&text).map_or(Target::Any, Target::Within);
        }
        ("netmap", Some(text)) => {
            nat.addresses = options::network(&text).map_or(Target::Any, Target::Within);
            nat.ports = Target::Kept;
        }
        ("dnat" | "snat", Some(text)) if given == 1 => (nat.addresses, nat.ports) = endpoint(&text),
        _ => {}
    }
    nat
}

/// "192.0.2.1", "192.0.2.1-192.0.2.9:80-90", "[2001:db8::1]:80", ":8080".
fn endpoint(text: &str) -> (Target, Target) {
    let (address, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':').unwrap_or("")),
        None if text.matches(':').count() == 1 => text.split_once(':').unwrap_or((text, "")),
        None => (text, ""),
    };
    // A base port to shift by is behind a slash: --to-destination 10.0.0.1:80-90/8080.
    let ports = match port {
        "" => Target::Kept,
        port => options::port_range(port).map_or(Target::Any, Target::Within),
    };
    let addresses = match address {
        "" => Target::Kept,
        address => options::range(address).map_or(Target::Any, Target::Within),
    };
    (addresses, ports)
}

/// "0x4000/0x4000" of --set-xmark: mark = (mark & !mask) ^ value.
fn set_mark(text: &str) -> Action {
    match options::value_and_mask(text) {
        Some((value, mask)) => Action::SetMark { mask, value },
        None => Action::MarkUnknown(Stays::Packet, text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Save, endpoint, parse, words};
    use crate::firewall::ir::Target;
    use crate::firewall::ranges::Ranges;

    #[test]
    fn where_a_translation_leads_is_read() {
        let within = |low: u32, high: u32| Target::Within(Ranges::span(low.into(), high.into()));
        let address = 0xc000_0201;
        assert_eq!(endpoint("192.0.2.1"), (within(address, address), Target::Kept));
        assert_eq!(endpoint("192.0.2.1-192.0.2.9:80-90"), (within(address, address + 8), within(80, 90)));
        assert_eq!(endpoint(":8080"), (Target::Kept, within(8080, 8080)));
        assert_eq!(endpoint("[2001:db8::1]:80").1, within(80, 80));
        assert_eq!(endpoint("2001:db8::1").1, Target::Kept);
        assert_eq!(endpoint("host:name"), (Target::Any, Target::Any));
    }

    #[test]
    fn a_rules_own_words_reach_the_shell_as_words() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT ! -i lo -m comment --comment \"a; reboot `id` $(id) 'x\" -j DROP\nCOMMIT\n";
        let save =
            Save { tool: "iptables-save".to_owned(), ipv6: false, legacy: true, text: text.to_owned() };
        let tables = parse(&save);
        let delete = tables[0].chains[0].rules[0].delete.as_deref();
        assert_eq!(
            delete,
            Some(
                "iptables -w -t filter -D INPUT ! -i lo -m comment --comment 'a; reboot `id` $(id) '\\''x' -j DROP"
            )
        );
    }

    #[test]
    fn quotes_are_undone_as_iptables_restore_does() {
        assert_eq!(
            words(r#"-m comment --comment "web \"front\" \\ x" -j ACCEPT"#),
            ["-m", "comment", "--comment", "web \"front\" \\ x", "-j", "ACCEPT"]
        );
        assert_eq!(words(r#"--log-prefix "" -j LOG"#), ["--log-prefix", "", "-j", "LOG"]);
    }

    #[test]
    fn a_rule_that_no_tool_prints_makes_no_command() {
        let delete = |tool: &str, table: &str, rule: &str| {
            let text = format!("*{table}\n:INPUT ACCEPT [0:0]\n-A INPUT {rule}\nCOMMIT\n");
            let save = Save { tool: tool.to_owned(), ipv6: false, legacy: false, text };
            parse(&save)[0].chains[0].rules[0].delete.clone()
        };
        assert!(delete("iptables-save", "filter", "-s 192.0.2.1/32 -m mark --mark 0x1 -j ACCEPT").is_some());
        for (tool, table, rule) in [
            ("/tmp/iptables-save", "filter", "-j ACCEPT"),
            ("sh-save", "filter", "-j ACCEPT"),
            ("iptables-save", "../../etc/passwd", "-j ACCEPT"),
            ("iptables-save", "filter", "-j ACCEPT --modprobe=/tmp/x"),
            ("iptables-save", "filter", "-j ACCEPT --mo /tmp/x"),
            ("iptables-save", "filter", "-j ACCEPT -M /tmp/x"),
            ("iptables-save", "filter", "-j ACCEPT -nM/tmp/x"),
            ("iptables-save", "filter", "-j ACCEPT -t nat"),
            ("iptables-save", "filter", "-m comment --comment \"a\u{1b}[2Jb\" -j ACCEPT"),
            ("iptables-save", "filter", "-m comment --comment \"a\u{202e}b\" -j ACCEPT"),
        ] {
            assert_eq!(delete(tool, table, rule), None, "{tool} {table} {rule}");
        }
    }
}
