//! Reads `nft -j list ruleset`: tables, chains, sets and maps of the families that IP packets meet.
//! What the JSON holds and this doesn't know must come out as unknown, never be left out.

mod expression;
mod statement;

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::ir::{Base, Chain, Hook, Kind, Rule, RuleTable, Tool};

/// Reads the JSON; `text` is what `nft -s -a list ruleset` printed, for the rules' own words.
pub fn parse(json: &str, text: &str) -> Result<Vec<RuleTable>> {
    let parsed: Value = serde_json::from_str(json).context("reading the JSON of `nft -j list ruleset`")?;
    let objects = parsed["nftables"].as_array().context("`nft -j list ruleset` printed no `nftables`")?;
    let words = words_by_handle(text);
    let mut tables: Vec<RuleTable> = Vec::new();
    let mut sets: HashMap<String, Sets> = HashMap::new();
    for object in objects {
        if let Some(table) = object.get("table") {
            // arp, bridge and netdev chains see no conntrack state of an IP packet: they treat both kinds alike.
            if let (Some(family), Some(name)) = (family(table), table["name"].as_str()) {
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
            sets.entry(key).or_default().0.insert(word(set, "name").to_owned(), set.clone());
        } else if let Some(chain) = object.get("chain")
            && let Some(table) = find(&mut tables, chain)
        {
            table.chains.push(Chain {
                name: word(chain, "name").to_owned(),
                base: base(chain),
                rules: Vec::new(),
            });
        }
    }
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let Some(table) = find(&mut tables, rule) else { continue };
        let table_key = format!("{} {}", table.family, table.name);
        let handle = rule["handle"].as_u64().unwrap_or(0);
        let text = words
            .get(&(table_key.clone(), handle))
            .cloned()
            .unwrap_or_else(|| format!("{} (handle {handle})", rule["expr"]));
        let none = Sets::default();
        let steps = statement::steps(&rule["expr"], sets.get(&table_key).unwrap_or(&none));
        if let Some(chain) = table.chains.iter_mut().find(|chain| chain.name == word(rule, "chain")) {
            let delete =
                (handle > 0).then(|| format!("nft delete rule {table_key} {} handle {handle}", chain.name));
            chain.rules.push(Rule { steps, text, delete });
        }
    }
    Ok(tables)
}

/// The named sets and maps of a table.
#[derive(Default)]
struct Sets(HashMap<String, Value>);

impl Sets {
    /// The elements `reference` stands for: an anonymous set's own, or a named one's if nothing but a person changes it.
    fn elements<'a>(&'a self, reference: &'a Value) -> Option<&'a [Value]> {
        if let Some(elements) = reference.get("set") {
            return Some(elements.as_array().map_or(std::slice::from_ref(elements), Vec::as_slice));
        }
        let set = self.0.get(reference.as_str()?.strip_prefix('@')?)?;
        let changes_by_itself = |flag: &Value| matches!(flag.as_str(), Some("dynamic" | "timeout"));
        if set["flags"].as_array().is_some_and(|flags| flags.iter().any(changes_by_itself)) {
            return None;
        }
        Some(set["elem"].as_array().map_or(&[], Vec::as_slice))
    }
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn family(object: &Value) -> Option<&'static str> {
    ["ip", "ip6", "inet"].into_iter().find(|known| *known == word(object, "family"))
}

fn find<'a>(tables: &'a mut [RuleTable], object: &Value) -> Option<&'a mut RuleTable> {
    tables
        .iter_mut()
        .find(|table| table.family == word(object, "family") && table.name == word(object, "table"))
}

fn base(chain: &Value) -> Option<Base> {
    let hook = match word(chain, "hook") {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        // None: a chain without hook. inet's ingress comes before conntrack and knows nothing of it.
        _ => return None,
    };
    Some(Base {
        kind: if word(chain, "type") == "nat" { Kind::Nat } else { Kind::Filter },
        hook,
        priority: chain["prio"].as_i64().and_then(|number| i32::try_from(number).ok()).unwrap_or(0),
        drops: word(chain, "policy") == "drop",
    })
}

/// The rules of `nft -a list ruleset` by table and handle.
fn words_by_handle(text: &str) -> HashMap<(String, u64), String> {
    let mut words = HashMap::new();
    let mut table = String::new();
    for line in text.lines() {
        let Some((rule, handle)) = line.rsplit_once(" # handle ") else { continue };
        let rule = rule.trim();
        if let Some(name) = rule.strip_prefix("table ") {
            name.trim_end_matches('{').trim().clone_into(&mut table);
        } else if !rule.ends_with('{')
            && let Ok(handle) = handle.trim().parse()
        {
            words.insert((table.clone(), handle), rule.to_owned());
        }
    }
    words
}
