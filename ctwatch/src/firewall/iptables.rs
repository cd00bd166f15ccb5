//! Reads what iptables-save and ip6tables-save print, of either variant.
//! An option that isn't known here makes its match unknown; a target that isn't may end the packet.

use super::dump::Save;
use super::ir::{Action, Base, Chain, Hook, Kind, Nat, Rule, RuleTable, Step, Tool};
use super::options;

/// The tables of one save.
#[must_use]
pub fn parse(save: &Save) -> Vec<RuleTable> {
    let (tool, family) = if save.ipv6 { (Tool::Ip6tables, "ip6") } else { (Tool::Iptables, "ip") };
    let mut tables: Vec<RuleTable> = Vec::new();
    let program = save.tool.strip_suffix("-save").unwrap_or(&save.tool);
    for line in save.text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('*') {
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
                table.chains.push(Chain {
                    name: name.to_owned(),
                    base: (policy != "-").then(|| base(&table.name, name, policy == "DROP")).flatten(),
                    rules: Vec::new(),
                });
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (name, rest) = rule.split_once(' ').unwrap_or((rule, ""));
                let delete = format!("{program} -w -t {} -D {rule}", table.name);
                let rule = Rule { steps: steps(&words(rest)), text: line.to_owned(), delete: Some(delete) };
                if let Some(chain) = table.chains.iter_mut().find(|chain| chain.name == name) {
                    chain.rules.push(rule);
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
    let nat = |kind, to: &str| {
        vec![Step::Do(Action::Nat(Nat { kind, to: argument(arguments, to).map(str::to_owned) }))]
    };
    let one = |action| vec![Step::Do(action)];
    match name {
        "ACCEPT" => one(Action::Accept),
        "DROP" | "REJECT" => one(Action::Drop),
        "RETURN" => one(Action::Return),
        "QUEUE" | "NFQUEUE" => one(Action::Queue),
        "DNAT" => nat("dnat", "--to-destination"),
        "REDIRECT" => nat("redirect", "--to-ports"),
        "SNAT" => nat("snat", "--to-source"),
        "NETMAP" => nat("dnat", "--to"),
        "MASQUERADE" => nat("masquerade", "--to-ports"),
        "TPROXY" => {
            let mut steps = nat("tproxy", "--on-port");
            steps.extend(argument(arguments, "--tproxy-mark").map(set_mark).map(Step::Do));
            steps.push(Step::Do(Action::Accept));
            steps
        }
        "NOTRACK" => one(Action::Notrack),
        "CT" => {
            let notrack = arguments.iter().any(|word| word == "--notrack").then_some(Action::Notrack);
            let helper = argument(arguments, "--helper").map(|name| Action::Helper(name.to_owned()));
            notrack.or(helper).map_or_else(|| one(Action::WriteConnection), one)
        }
        "MARK" => {
            let set = argument(arguments, "--set-xmark").map(set_mark);
            one(set.unwrap_or(Action::MarkUnknown))
        }
        "CONNMARK" | "CONNSECMARK" => {
            let restores = arguments.iter().any(|word| word == "--restore-mark");
            one(if restores { Action::MarkFromConnection } else { Action::WriteConnection })
        }
        "LOG" | "NFLOG" | "ULOG" | "TRACE" | "TCPMSS" | "TCPOPTSTRIP" | "CLASSIFY" | "DSCP" | "TOS"
        | "TTL" | "HL" | "CHECKSUM" | "AUDIT" | "SECMARK" | "SET" | "TEE" | "RATEEST" | "IDLETIMER"
        | "LED" | "ECN" => Vec::new(),
        // A chain, or a target nobody here knows: following the jump finds no chain then, and calls it unknown.
        _ => one(Action::Jump(name.to_owned())),
    }
}

/// "0x4000/0x4000" of --set-xmark: mark = (mark & !mask) ^ value.
fn set_mark(text: &str) -> Action {
    match options::value_and_mask(text) {
        Some((value, mask)) => Action::SetMark { mask, value },
        None => Action::MarkUnknown,
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn quotes_are_undone_as_iptables_restore_does() {
        assert_eq!(
            words(r#"-m comment --comment "web \"front\" \\ x" -j ACCEPT"#),
            ["-m", "comment", "--comment", "web \"front\" \\ x", "-j", "ACCEPT"]
        );
        assert_eq!(words(r#"--log-prefix "" -j LOG"#), ["--log-prefix", "", "-j", "LOG"]);
    }
}
