//! The statements of an nft rule.
//! A statement that isn't known here may end a packet: it becomes an unknown action, not nothing.

use serde_json::Value;

use super::Sets;
use super::expression::{self, Subject};
use crate::firewall::ir::{Action, Condition, Nat, Stays, Step};
use crate::firewall::listing::EXTENSION;

/// Statements that neither decide on a packet nor change what a later rule asks.
const HARMLESS: [&str; 9] =
    ["counter", "log", "comment", "last", "ct timeout", "ct expectation", "secmark", "dup", "flow"];

/// The steps of a rule's `expr`.
pub fn steps(expr: &Value, sets: &Sets) -> Vec<Step> {
    let statements = expr.as_array().map_or(&[][..], Vec::as_slice);
    let mut steps = Vec::new();
    for statement in statements {
        let Some((name, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
            steps.push(Step::Do(Action::Unknown(statement.to_string())));
            continue;
        };
        add(&mut steps, name, body, sets);
    }
    steps
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
        "queue" => steps.push(Step::Do(Action::Queue)),
        "limit" | "quota" => steps.push(Step::If(changing(name, body))),
        "ct count" => steps.push(Step::If(Condition::CountsConnections(body.to_string()))),
        // Adding to a full set, or a rate inside, ends the rule.
        "set" | "map" | "meter" => steps.push(Step::If(changing(name, body))),
        "xt" => extension(steps, body),
        _ if HARMLESS.contains(&name) => {}
        _ => steps
            .push(Step::Do(verdict(name, body).unwrap_or_else(|| Action::Unknown(format!("{name} {body}"))))),
    }
}

fn changing(name: &str, body: &Value) -> Condition {
    Condition::Unknown(Stays::Never, format!("{name} {body}"))
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
    if key.get("ct").is_some() {
        return Some(Action::WriteConnection);
    }
    if key["meta"]["key"] != "mark" {
        return None;
    }
    if value.to_string().contains("\"ct\"") {
        return Some(Action::MarkFromConnection);
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
        Action::MarkUnknown
    })
}

fn nat(steps: &mut Vec<Step>, name: &str, body: &Value, sets: &Sets) {
    let kind = ["snat", "dnat", "masquerade", "redirect", "tproxy"].into_iter().find(|kind| *kind == name);
    for part in ["addr", "port"] {
        // A map for address or port: no element, no translation.
        if let Some(map) = body[part].get("map") {
            let subject = Subject::of(&map["key"]);
            steps.extend(subject.needs.iter().cloned().map(Step::If));
            if let Some(elements) = sets.elements(&map["data"]) {
                let keys = elements.iter().filter_map(|element| element.get(0));
                steps.push(Step::If(Condition::Any(keys.map(|value| subject.is(value)).collect())));
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
    steps.push(Step::Do(Action::Nat(Nat { kind: kind.unwrap_or("dnat"), to })));
    // tproxy only looks up a socket; the others end the chain with accept.
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
            steps.push(Step::Do(Action::Nat(Nat { kind, to: None })));
        }
        (Some("target"), "REJECT") => steps.push(Step::Do(Action::Drop)),
        (Some("target"), _) => steps.push(Step::Do(Action::Unknown(text))),
        _ => steps.push(Step::If(Condition::Unknown(Stays::Never, text))),
    }
}
