//! Reads `nft -j list ruleset`: tables, chains, sets and maps of the families that IP packets meet.
//! What the JSON holds and this doesn't know must come out as unknown, never be left out.

mod expression;
mod statement;

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::ir::{Base, Chain, Hook, Kind, Rule, RuleTable, Tool};

/// What the JSON says.
pub struct Listing {
    /// The tables that IP packets meet.
    pub tables: Vec<RuleTable>,
    /// The first rule on bridged packets that asks for their connection: table and chain, and its words. With such a rule packets are
    /// tracked at the bridge, before any chain of IP: nf_ct_bridge_pre, net/bridge/netfilter/nf_conntrack_bridge.c, 6.12.
    pub bridged: Option<(String, String)>,
}

/// Reads the JSON; `text` is what `nft -s -a list ruleset` printed, for the rules' own words and for what older versions
/// leave out of the JSON.
pub fn parse(json: &str, text: &str) -> Result<Listing> {
    #[derive(Deserialize)]
    struct Ruleset<'a> {
        #[serde(borrow)]
        nftables: Vec<&'a RawValue>,
    }
    let parsed: Ruleset = serde_json::from_str(json).context("reading the JSON of `nft -j list ruleset`")?;
    let words = Words::new(text);
    // Rules are many: each is read when its turn has come, and let go again.
    let is_rule =
        |raw: &&RawValue| raw.get().trim_start_matches(['{', ' ', '\t', '\n', '\r']).starts_with("\"rule\"");
    let (rules, others): (Vec<&RawValue>, Vec<&RawValue>) = parsed.nftables.into_iter().partition(is_rule);
    let read = |raw: &RawValue| -> Result<Value> {
        serde_json::from_str(raw.get()).context("reading an object of `nft -j list ruleset`")
    };
    let mut tables: Vec<RuleTable> = Vec::new();
    let mut sets: HashMap<String, Sets> = HashMap::new();
    let mut chains: HashMap<String, (usize, usize)> = HashMap::new();
    let mut without_hook = Vec::new();
    // Tables whose chains aren't called.
    let mut dormant: HashSet<usize> = HashSet::new();
    let mut with_hook = false;
    for raw in others {
        let object = read(raw)?;
        if let Some(table) = object.get("table") {
            // arp and netdev chains see no conntrack state of an IP packet: they treat both kinds alike.
            if let (Some(family), Some(name)) = (family(table), table["name"].as_str()) {
                let is_dormant = list(&table["flags"]).iter().any(|flag| flag == "dormant");
                if is_dormant || words.dormant.contains(&format!("{family} {name}")) {
                    dormant.insert(tables.len());
                }
                tables.push(RuleTable {
                    tool: Tool::Nft,
                    family,
                    name: name.to_owned(),
                    program: "nft".to_owned(),
                    chains: Vec::new(),
                });
            }
        } else if let Some(set) = object.get("set").or_else(|| object.get("map")) {
            let key = format!("{} {}", word(set, "family"), word(set, "table"));
            sets.entry(key).or_default().named.insert(word(set, "name").to_owned(), set.clone());
        } else if let Some(chain) = object.get("chain")
            && family(chain).is_some()
        {
            let name = word(chain, "name");
            let at = tables
                .iter()
                .position(|table| table.family == word(chain, "family") && table.name == word(chain, "table"))
                .with_context(|| format!("the chain {name} is in no table"))?;
            let place = format!("{} {} {name}", tables[at].family, tables[at].name);
            let base = base(chain).with_context(|| format!("reading the chain {place}"))?;
            with_hook |= base.is_some() || chain.get("hook").is_some();
            if chain.get("hook").is_none() {
                without_hook.push((at, tables[at].chains.len(), place.clone()));
            }
            chains.insert(place, (at, tables[at].chains.len()));
            tables[at].chains.push(Chain { name: name.to_owned(), base, rules: Vec::new() });
        }
    }
    // nft 0.9.8 and 0.9.9 print base chains without type, hook, priority and policy; the text has them.
    for (table, chain, place) in without_hook {
        match words.bases.get(&place) {
            Some(base) => {
                let of = &mut tables[table].chains[chain].base;
                *of = read_base(base).with_context(|| format!("reading the chain {place}: {base}"))?;
            }
            None if !with_hook && !words.chains.contains(&place) => {
                bail!("neither the JSON nor the text of nft says whether {place} is a base chain")
            }
            None => {}
        }
    }
    for table in dormant {
        tables[table].chains.iter_mut().for_each(|chain| chain.base = None);
    }
    // What a set holds that rules write is known only when all have been seen.
    let may_write = |raw: &&&RawValue| {
        const WORDS: [&str; 5] = ["add", "update", "delete", "meter", "\"set\""];
        WORDS.iter().any(|word| raw.get().contains(word))
    };
    for raw in rules.iter().filter(may_write) {
        let object = read(raw)?;
        let rule = &object["rule"];
        let of = sets.entry(format!("{} {}", word(rule, "family"), word(rule, "table"))).or_default();
        of.written.extend(list(&rule["expr"]).iter().filter_map(statement::written));
    }
    let mut bridged = None;
    for raw in rules {
        let object = read(raw)?;
        let rule = &object["rule"];
        if family(rule).is_none() {
            if word(rule, "family") == "bridge" && bridged.is_none() && tracks(&rule["expr"]) {
                let place = format!("bridge {} {}", word(rule, "table"), word(rule, "chain"));
                let key = (format!("bridge {}", word(rule, "table")), rule["handle"].as_u64().unwrap_or(0));
                let words = words.rules.get(&key).cloned().unwrap_or_else(|| rule["expr"].to_string());
                bridged = Some((place, words));
            }
            continue;
        }
        let table_key = format!("{} {}", word(rule, "family"), word(rule, "table"));
        let place = format!("{table_key} {}", word(rule, "chain"));
        let (table, chain) = *chains
            .get(&place)
            .with_context(|| format!("a rule is in the chain {place}, which isn't there"))?;
        let handle = rule["handle"].as_u64().unwrap_or(0);
        let text = words
            .rules
            .get(&(table_key.clone(), handle))
            .cloned()
            .unwrap_or_else(|| format!("{} (handle {handle})", rule["expr"]));
        let none = Sets::default();
        let steps = statement::steps(&rule["expr"], sets.get(&table_key).unwrap_or(&none));
        // A netns's owner may give a table any name; nft would take a part of it for a command.
        let names = [word(rule, "family"), word(rule, "table"), word(rule, "chain")];
        let delete = (handle > 0 && names.into_iter().all(is_plain))
            .then(|| format!("nft delete rule {place} handle {handle}"));
        tables[table].chains[chain].rules.push(Rule { steps, text: text.into(), delete });
    }
    Ok(Listing { tables, bridged })
}

/// Whether a rule on bridged packets makes the kernel track them.
fn tracks(expr: &Value) -> bool {
    let of_connections = |name: &String| name == "ct" || name.starts_with("ct ");
    match expr {
        Value::Object(object) => object.keys().any(of_connections) || object.values().any(tracks),
        Value::Array(list) => list.iter().any(tracks),
        // Words that this version has no JSON for.
        Value::String(words) => words.contains("ct ") && words.contains(' '),
        _ => false,
    }
}

/// Whether the shell and nft take this word for a name: `string` in src/scanner.l of nftables 1.1.
pub fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_/.-".contains(&byte);
    !name.is_empty() && !name.starts_with('-') && name.bytes().all(is_plain)
}

/// The items of a list. Some versions print a list of one as that one.
fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(list) => list,
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
}

/// The named sets and maps of a table.
#[derive(Default)]
struct Sets {
    named: HashMap<String, Value>,
    /// Those that rules write: "@seen". nft 1.0.6 doesn't print the flag `dynamic`.
    written: HashSet<String>,
}

impl Sets {
    /// The elements `reference` stands for: an anonymous set's own, or a named one's if nothing but a person changes it.
    fn elements<'a>(&'a self, reference: &'a Value) -> Option<&'a [Value]> {
        if let Some(elements) = reference.get("set") {
            return Some(elements.as_array().map_or(std::slice::from_ref(elements), Vec::as_slice));
        }
        let set = self.named(reference)?;
        if reference.as_str().is_some_and(|name| self.written.contains(name)) {
            return None;
        }
        let changes_by_itself = |flag: &Value| matches!(flag.as_str(), Some("dynamic" | "timeout"));
        if list(&set["flags"]).iter().any(changes_by_itself) {
            return None;
        }
        Some(list(&set["elem"]))
    }

    fn named(&self, reference: &Value) -> Option<&Value> {
        self.named.get(reference.as_str()?.strip_prefix('@')?)
    }

    /// Whether looking something up in it, or adding to it, counts connections by their entries.
    fn counts(&self, reference: &Value) -> bool {
        self.has_inside(reference, &["ct count"])
    }

    /// Whether its answer changes by itself: elements or the set bear a rate or an amount.
    fn changes(&self, reference: &Value) -> bool {
        self.has_inside(reference, &["limit", "quota", "last"])
    }

    fn has_inside(&self, reference: &Value, names: &[&str]) -> bool {
        let set = self.named(reference).unwrap_or(reference);
        names.iter().any(|name| {
            has_key(&set["stmt"], name) || has_key(&set["elem"], name) || has_key(&set["set"], name)
        })
    }
}

/// Whether an object anywhere inside has this key.
fn has_key(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(object) => object.contains_key(key) || object.values().any(|value| has_key(value, key)),
        Value::Array(list) => list.iter().any(|value| has_key(value, key)),
        _ => false,
    }
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn family(object: &Value) -> Option<&'static str> {
    ["ip", "ip6", "inet"].into_iter().find(|known| *known == word(object, "family"))
}

fn base(chain: &Value) -> Result<Option<Base>> {
    let Some(hook) = chain.get("hook") else { return Ok(None) };
    let Some(hook) = named_hook(hook.as_str().unwrap_or_default())? else { return Ok(None) };
    let priority = match &chain["prio"] {
        Value::String(text) => named_priority(text),
        number => number.as_i64().and_then(|number| i32::try_from(number).ok()),
    };
    Ok(Some(Base {
        kind: kind(word(chain, "type"))?,
        hook,
        priority: priority.context("it has a hook and no priority that is understood")?,
        drops: word(chain, "policy") == "drop",
    }))
}

/// None for one that comes before conntrack and knows nothing of it (inet's ingress), or after all (egress).
fn named_hook(name: &str) -> Result<Option<Hook>> {
    Ok(Some(match name {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        "ingress" | "egress" => return Ok(None),
        other => bail!("its hook `{other}` isn't known"),
    }))
}

fn kind(name: &str) -> Result<Kind> {
    match name {
        "nat" => Ok(Kind::Nat),
        "filter" | "route" => Ok(Kind::Filter),
        other => bail!("its type `{other}` isn't known"),
    }
}

/// "filter", "raw + 10", "-300": std_prios, src/rule.c of nftables 1.1.
fn named_priority(text: &str) -> Option<i32> {
    let mut words = text.split_whitespace();
    let first = words.next()?;
    let base = match first {
        "raw" => -300,
        "mangle" => -150,
        "dstnat" => -100,
        "filter" => 0,
        "security" => 50,
        "srcnat" => 100,
        number => number.parse().ok()?,
    };
    match (words.next(), words.next()) {
        (None, _) => Some(base),
        (Some("+"), Some(offset)) => Some(base + offset.parse::<i32>().ok()?),
        (Some("-"), Some(offset)) => Some(base - offset.parse::<i32>().ok()?),
        _ => None,
    }
}

/// "type filter hook input priority filter; policy drop;".
fn read_base(line: &str) -> Result<Option<Base>> {
    let after = |text: &str, word: &str| -> Option<String> {
        let (_, rest) = text.split_once(&format!("{word} "))?;
        Some(rest.split(';').next().unwrap_or_default().trim().to_owned())
    };
    let first =
        |text: Option<String>| -> Option<String> { text?.split_whitespace().next().map(str::to_owned) };
    let hook = first(after(line, "hook")).context("no hook")?;
    let Some(hook) = named_hook(&hook)? else { return Ok(None) };
    let priority = after(line, "priority").and_then(|text| named_priority(&text));
    Ok(Some(Base {
        kind: kind(&first(after(line, "type")).context("no type")?)?,
        hook,
        priority: priority.context("no priority that is understood")?,
        drops: first(after(line, "policy")).as_deref() == Some("drop"),
    }))
}

/// What the text of a rule set says.
#[derive(Default)]
struct Words {
    /// Rules by table and handle.
    rules: HashMap<(String, u64), String>,
    /// The line of each base chain that has one.
    bases: HashMap<String, String>,
    /// All chains.
    chains: HashSet<String>,
    /// Tables that are switched off.
    dormant: HashSet<String>,
}

impl Words {
    fn new(text: &str) -> Self {
        let mut words = Self::default();
        let (mut table, mut chain) = (String::new(), String::new());
        for line in text.lines() {
            let (rule, handle) =
                line.rsplit_once(" # handle ").map_or((line, None), |(rule, handle)| (rule, Some(handle)));
            let rule = rule.trim();
            if let Some(name) = rule.strip_prefix("table ") {
                name.trim_end_matches('{').trim().clone_into(&mut table);
                chain.clear();
            } else if let Some(name) = rule.strip_prefix("chain ").filter(|name| name.ends_with('{')) {
                chain = format!("{table} {}", name.trim_end_matches('{').trim());
                words.chains.insert(chain.clone());
            } else if chain.is_empty()
                && let Some(flags) = rule.strip_prefix("flags ")
            {
                // nft 1.0.6 prints the table's name in place of its flag in JSON.
                if flags.split(',').any(|flag| flag.trim().trim_end_matches(';') == "dormant") {
                    words.dormant.insert(table.clone());
                }
            } else if rule.starts_with("type ") && rule.contains(" hook ") && !chain.is_empty() {
                words.bases.insert(chain.clone(), rule.to_owned());
            } else if !rule.ends_with('{')
                && let Some(Ok(handle)) = handle.map(|handle| handle.trim().parse())
            {
                words.rules.insert((table.clone(), handle), rule.to_owned());
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_chain_is_read_from_its_line() {
        let base = read_base("type filter hook input priority raw - 5; policy drop;").expect("it is one");
        let base = base.expect("it has a hook");
        assert_eq!((base.hook, base.priority, base.drops), (Hook::Input, -305, true));
        assert!(read_base("type filter hook ingress device \"eth0\" priority 0;").expect("known").is_none());
        assert!(read_base("type filter hook input priority soon;").is_err(), "not guessed");
        assert!(read_base("type odd hook input priority 0;").is_err(), "not guessed");
    }

    #[test]
    fn what_json_says_of_a_chain_is_not_guessed() {
        let json = |chain: &str| {
            format!(
                r#"{{"nftables": [{{"table": {{"family": "ip", "name": "t"}}}}, {{"chain": {{"family": "ip", "table": "t", "name": "c"{chain}}}}}]}}"#
            )
        };
        assert!(parse(&json(r#", "type": "filter", "hook": "input", "prio": 0"#), "").is_ok());
        assert!(parse(&json(r#", "type": "filter", "hook": "input""#), "").is_err(), "no priority");
        assert!(parse(&json(""), "").is_err(), "is it a base chain?");
        let plain = parse(&json(""), "table ip t {\n\tchain c {\n\t}\n}\n").expect("the text says it");
        assert!(plain.tables[0].chains[0].base.is_none());
        let text =
            "table ip t {\n\tchain c {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n}\n";
        let based = parse(&json(""), text).expect("the text says it");
        assert!(based.tables[0].chains[0].base.as_ref().is_some_and(|base| base.drops));
    }
}
