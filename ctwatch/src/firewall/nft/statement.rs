//! The statements of an nft rule.
//! A statement that isn't known here may end a packet: it becomes an unknown action, not nothing.

use serde_json::Value;

use super::expression::{self, Subject};
use super::{Sets, has_key, list};
use crate::firewall::ir::EXTENSION;
use crate::firewall::ir::{Action, Condition, End, Family, Field, Nat, Stays, Step, Target};
use crate::firewall::ranges::Ranges;

/// Statements that neither decide on a packet nor change what a later rule asks.
const HARMLESS: [&str; 9] =
    ["counter", "log", "comment", "last", "ct timeout", "secmark", "dup", "flow", "optstrip"];
/// Fields that a rule may rewrite without another rule's asking for them: all others are like a translation without state.
const REWRITTEN: [&str; 7] = ["ttl", "hoplimit", "dscp", "ecn", "flowlabel", "id", "pcp"];

/// The steps of a rule's `expr`.
pub fn steps(expr: &Value, sets: &Sets) -> Vec<Step> {
    let mut steps = Vec::new();
    for statement in list(expr) {
        steps.extend(written(statement).map(|set| Step::Do(Action::Writes(set))));
        let Some((name, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
            steps.push(Step::Do(Action::Unknown(statement.to_string())));
            continue;
        };
        add(&mut steps, name, body, sets);
    }
    steps
}

/// The set or map that a statement adds to or takes from: "@seen". Versions that have no JSON for it print it in words.
pub fn written(statement: &Value) -> Option<String> {
    if let Some(words) = statement.as_str() {
        return words.split_whitespace().find(|word| word.starts_with('@')).map(str::to_owned);
    }
    let (name, body) = statement.as_object()?.iter().next()?;
    let of = |key: &str| body[key].as_str();
    match name.as_str() {
        "set" => of("set").map(str::to_owned),
        "map" => of("map").map(str::to_owned),
        "meter" => of("name").map(|name| format!("@{name}")),
        _ => None,
    }
}

fn add(steps: &mut Vec<Step>, name: &str, body: &Value, sets: &Sets) {
    match name {
        "match" => steps.push(Step::If(expression::condition(body, sets))),
        "vmap" => verdict_map(steps, body, sets),
        "mangle" => steps.extend(mangle(body).map(Step::Do)),
        "snat" | "dnat" | "masquerade" | "redirect" | "tproxy" => nat(steps, name, body, sets),
        "notrack" => steps.push(Step::Do(Action::Notrack)),
        "ct helper" => {
            steps.push(Step::Do(Action::Helper(
                body.as_str().map_or_else(|| body.to_string(), str::to_owned),
            )));
        }
        // It announces connections, as a helper does.
        "ct expectation" => steps.push(Step::Do(Action::Helper("expectation".to_owned()))),
        "queue" => steps.push(Step::Do(Action::Queue)),
        "limit" | "quota" => steps.push(Step::If(changing(name, body))),
        "ct count" => steps.push(Step::If(Condition::CountsConnections(body.to_string()))),
        // Adding to a full set, or a rate inside, ends the rule.
        "set" | "map" | "meter" if has_key(body, "ct count") || sets.counts(&body["set"]) => {
            steps.push(Step::If(Condition::CountsConnections(format!("{name} {body}"))));
        }
        "set" | "map" | "meter" => steps.push(Step::If(changing(name, body))),
        "xt" => extension(steps, body),
        _ if HARMLESS.contains(&name) => {}
        _ => steps
            .push(Step::Do(verdict(name, body).unwrap_or_else(|| Action::Unknown(format!("{name} {body}"))))),
    }
}

fn changing(name: &str, body: &Value) -> Condition {
    Condition::Unknown(Stays::Chance, format!("{name} {body}"))
}

fn verdict(name: &str, body: &Value) -> Option<Action> {
    let target = || body["target"].as_str().unwrap_or_default().to_owned();
    Some(match name {
        "accept" => Action::Accept,
        "drop" | "reject" => Action::Drop,
        "return" => Action::Return,
        "continue" => Action::Continue,
        "jump" => Action::Jump(target()),
        "goto" => Action::Goto(target()),
        _ => return None,
    })
}

fn verdict_map(steps: &mut Vec<Step>, body: &Value, sets: &Sets) {
    let subject = Subject::of(&body["key"]);
    let Some(elements) = sets.elements(&body["data"]) else {
        steps.push(Step::Do(Action::Unknown(format!("vmap {}", body["data"]))));
        return;
    };
    let mut cases = Vec::new();
    let mut otherwise = None;
    for element in elements {
        let (Some(value), Some(object)) = (element.get(0), element.get(1).and_then(Value::as_object)) else {
            cases.push((Condition::All(Vec::new()), Action::Unknown(element.to_string())));
            continue;
        };
        let Some((name, body)) = object.iter().next() else { continue };
        let action = verdict(name, body).unwrap_or_else(|| Action::Unknown(name.clone()));
        if value == "*" {
            otherwise = Some(action);
        } else {
            cases.push((subject.is(value), action));
        }
    }
    cases.extend(otherwise.map(|action| (Condition::All(Vec::new()), action)));
    steps.extend(subject.needs.iter().cloned().map(Step::If));
    steps.push(Step::Case(cases));
}

fn mangle(body: &Value) -> Option<Action> {
    let (key, value) = (&body["key"], &body["value"]);
    if let Some(ct) = key.get("ct") {
        return Some(if ct["key"] == "zone" {
            Action::Template { zone: Some(value.to_string()) }
        } else {
            Action::WriteConnection
        });
    }
    // Its mark, its label for SELinux, a class by it.
    if has_key(value, "ct") {
        return Some(Action::MarkFromConnection);
    }
    if let Some(payload) = key.get("payload") {
        let field = payload["field"].as_str().filter(|field| REWRITTEN.contains(field));
        return Some(match field {
            Some(field) => Action::Writes(field.to_owned()),
            None => Action::Unknown(format!("rewrites {key}")),
        });
    }
    if key["meta"]["key"] != "mark" {
        let (_, of) = key.as_object()?.iter().next()?;
        return of["key"].as_str().or(of["name"].as_str()).map(|name| Action::Writes(name.to_owned()));
    }
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let own = |list: &Value| list[0]["meta"]["key"] == "mark";
    Some(if let Some(value) = number(value) {
        Action::SetMark { mask: u32::MAX, value }
    } else if let Some(bits) = value.get("|").filter(|list| own(list)).and_then(|list| number(&list[1])) {
        Action::SetMark { mask: bits, value: bits }
    } else if let Some(bits) = value.get("^").filter(|list| own(list)).and_then(|list| number(&list[1])) {
        Action::SetMark { mask: 0, value: bits }
    } else if let Some(bits) = value.get("&").filter(|list| own(list)).and_then(|list| number(&list[1])) {
        Action::SetMark { mask: !bits, value: 0 }
    } else {
        Action::MarkUnknown(expression::stays(value), value.to_string())
    })
}

fn nat(steps: &mut Vec<Step>, name: &str, body: &Value, sets: &Sets) {
    // In a table of both, `dnat ip to` leaves packets of IPv6 alone: nft_nat_inet_eval, net/netfilter/nft_nat.c, 6.12.
    let of_address = || {
        let address: std::net::IpAddr = body["addr"].as_str()?.parse().ok()?;
        Some(if address.is_ipv4() { Family::V4 } else { Family::V6 })
    };
    let family = match body["family"].as_str() {
        Some("ip") => Some(Family::V4),
        Some("ip6") => Some(Family::V6),
        _ => of_address(),
    };
    steps.extend(family.map(|family| Step::If(Condition::Family(family))));
    let kind = ["snat", "dnat", "masquerade", "redirect", "tproxy"].into_iter().find(|kind| *kind == name);
    for part in ["addr", "port"] {
        // A map for address or port: no element, no translation.
        if let Some(map) = body[part].get("map") {
            let subject = Subject::of(&map["key"]);
            steps.extend(subject.needs.iter().cloned().map(Step::If));
            match sets.elements(&map["data"]) {
                Some(elements) => {
                    let keys = elements.iter().filter_map(|element| element.get(0));
                    steps.push(Step::If(expression::any(keys.map(|value| subject.is(value)))));
                }
                None => steps.push(Step::If(Condition::Unknown(subject.stays, map.to_string()))),
            }
        }
    }
    let plain = |part: &Value| match part {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other if other.get("map").is_some() => "(by map)".to_owned(),
        other => other.to_string(),
    };
    let (addr, port) = (plain(&body["addr"]), plain(&body["port"]));
    let to = match (addr.is_empty(), port.is_empty()) {
        (true, true) => None,
        (false, true) => Some(addr),
        (_, false) => Some(format!("{addr}:{port}")),
    };
    let kind = kind.unwrap_or("dnat");
    let (addresses, ports) = targets(body, sets);
    let addresses = match (kind, addresses) {
        ("masquerade" | "redirect", Target::Kept) => Target::Own,
        (_, addresses) => addresses,
    };
    steps.push(Step::Do(Action::Nat(Nat { kind, to, addresses, ports })));
    // tproxy only looks up a socket; the others end the chain with accept.
}

/// The addresses and ports that a translation leads to.
fn targets(body: &Value, sets: &Sets) -> (Target, Target) {
    let (mut addresses, mut ports) = (Vec::new(), Vec::new());
    let (mut any_address, mut any_port) = (false, false);
    let mut add = |part: &str, value: &Value| {
        let value = value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value);
        let both = value.get("concat").map(list);
        let (address, port) = match (both, part) {
            (Some([address, port]), "addr") => (Some(address), Some(port)),
            (Some(_), _) => {
                (any_address, any_port) = (true, true);
                return;
            }
            (None, "addr") => (Some(value), None),
            (None, _) => (None, Some(value)),
        };
        if let Some(address) = address {
            match expression::numbers(Field::Address(End::Destination), address) {
                Some(set) => addresses.extend(set.intervals().iter().copied()),
                None => any_address = true,
            }
        }
        if let Some(port) = port {
            match expression::numbers(Field::Port(End::Destination), port) {
                Some(set) => ports.extend(set.intervals().iter().copied()),
                None => any_port = true,
            }
        }
    };
    for part in ["addr", "port"] {
        match body.get(part) {
            None | Some(Value::Null) => {}
            Some(value) => match value.get("map").map(|map| sets.elements(&map["data"])) {
                Some(Some(elements)) => {
                    elements.iter().for_each(|element| add(part, element.get(1).unwrap_or(&Value::Null)));
                }
                // Not known: see below.
                Some(None) => {}
                None => add(part, value),
            },
        }
    }
    let of = |any: bool, set: Vec<(u128, u128)>| match (any, set.is_empty()) {
        (true, _) => Target::Any,
        (false, true) => Target::Kept,
        (false, false) => Target::Within(Ranges::of(set)),
    };
    let unknown_map = ["addr", "port"]
        .iter()
        .any(|part| body[*part].get("map").is_some_and(|map| sets.elements(&map["data"]).is_none()));
    (of(any_address || unknown_map, addresses), of(any_port || unknown_map, ports))
}

/// What iptables-nft put there and nft can't print.
fn extension(steps: &mut Vec<Step>, body: &Value) {
    let name = body["name"].as_str().unwrap_or("?");
    let text = format!("{EXTENSION}{name}");
    match (body["type"].as_str(), name) {
        (_, "comment") | (Some("target"), "LOG" | "NFLOG" | "TCPMSS" | "CHECKSUM" | "TRACE") => {}
        (Some("target"), "MASQUERADE" | "DNAT" | "SNAT" | "REDIRECT" | "NETMAP") => {
            let kind = match name {
                "MASQUERADE" => "masquerade",
                "SNAT" | "NETMAP" => "snat",
                "REDIRECT" => "redirect",
                _ => "dnat",
            };
            steps.push(Step::Do(Action::Nat(Nat::unknown(kind, None))));
        }
        (Some("target"), "REJECT") => steps.push(Step::Do(Action::Drop)),
        (Some("target"), _) => steps.push(Step::Do(Action::Unknown(text))),
        // Before 1.0.7 nft prints neither what it is nor its name.
        (None, _) => {
            steps.push(Step::If(Condition::Unknown(Stays::Never, text.clone())));
            steps.push(Step::Do(Action::Unknown(text)));
        }
        _ => steps.push(Step::If(Condition::Unknown(Stays::Never, text))),
    }
}
