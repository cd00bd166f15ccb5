//! The expressions of an nft rule: what a match or a map asks.
//! A payload asks for its protocol first, though the JSON leaves that out; the condition here says so.

use std::net::IpAddr;

use serde_json::Value;

use super::{Sets, list};
use crate::firewall::ir::{Condition, End, Family, Field, Stays, state};
use crate::firewall::ranges::Ranges;
use crate::firewall::words;

/// A `match`.
pub fn condition(body: &Value, sets: &Sets) -> Condition {
    let (left, right) = (&body["left"], &body["right"]);
    let operator = body["op"].as_str().unwrap_or("==");
    let unknown = || Condition::Unknown(Stays::Packet, body.to_string());
    let subject = Subject::of(left);
    let mut all = subject.needs.clone();
    let negate = operator == "!=";
    if sets.counts(right) {
        all.push(Condition::CountsConnections(body.to_string()));
    }
    all.push(match operator {
        "==" | "!=" | "in" => {
            if let Some(masked) = masked(left, right, negate) {
                masked
            } else if right.get("set").is_some() || right.as_str().is_some_and(|text| text.starts_with('@')) {
                match sets.elements(right) {
                    Some(_) if sets.changes(right) => Condition::Unknown(Stays::Chance, body.to_string()),
                    Some(elements) => any(elements.iter().map(|element| subject.is(element))).negated(negate),
                    None => Condition::Unknown(Stays::Flow, body.to_string()),
                }
            } else if let (Key::State | Key::Status, Some(list)) = (&subject.key, right.as_array()) {
                any(list.iter().map(|value| subject.is(value))).negated(negate)
            } else {
                subject.is(right).negated(negate)
            }
        }
        "<" | "<=" | ">" | ">=" => match (&subject.key, right.as_u64().map(u128::from)) {
            (Key::Number(field), Some(bound)) => Condition::In(
                *field,
                match operator {
                    "<" if bound == 0 => Ranges::default(),
                    "<" => Ranges::span(0, bound - 1),
                    "<=" => Ranges::span(0, bound),
                    ">" => Ranges::span(bound + 1, u128::MAX),
                    _ => Ranges::span(bound, u128::MAX),
                },
            ),
            _ => unknown(),
        },
        _ => unknown(),
    });
    Condition::All(all)
}

/// Any of them; sets of numbers of one field become one set.
pub fn any(conditions: impl Iterator<Item = Condition>) -> Condition {
    let mut numbers: Option<(Field, Vec<(u128, u128)>)> = None;
    let mut rest = Vec::new();
    for condition in conditions {
        match (condition, &mut numbers) {
            (Condition::In(field, set), None) => numbers = Some((field, set.intervals().to_vec())),
            (Condition::In(field, set), Some((same, all))) if field == *same => all.extend(set.intervals()),
            (condition, _) => rest.push(condition),
        }
    }
    rest.extend(numbers.map(|(field, all)| Condition::In(field, Ranges::of(all))));
    if rest.len() == 1 { rest.remove(0) } else { Condition::Any(rest) }
}

/// `left & mask == right`, and `tcp flags syn`, which means "any of these".
fn masked(left: &Value, right: &Value, negate: bool) -> Option<Condition> {
    let Some(list) = left.get("&") else {
        return match Subject::of(left).key {
            Key::TcpFlags if right.is_string() || right.is_array() => {
                let mask = flags(right)?;
                let none = Condition::TcpFlags { mask, value: 0 };
                // `==` with one flag and `in` with many both mean that one of them is set, as nft prints it.
                Some(none.negated(!negate))
            }
            _ => None,
        };
    };
    let mask = &list[1];
    Some(match Subject::of(&list[0]).key {
        Key::TcpFlags => Condition::TcpFlags { mask: flags(mask)?, value: flags(right)? }.negated(negate),
        Key::Mark => Condition::Mark { mask: u32_of(mask)?, value: u32_of(right)? }.negated(negate),
        Key::State => {
            // The state is one bit: try each.
            let (mask, value) = (states(mask)?, states(right)?);
            let fit = state::EACH.into_iter().filter(|bit| (bit & mask == value) != negate);
            Condition::State(fit.fold(0, |all, bit| all | bit))
        }
        _ => return None,
    })
}

fn u32_of(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn names(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(name) => Some(vec![name]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        // ["a", "b"] in newer versions is {"|": ["a", "b"]}.
        Value::Object(object) => names(object.get("|")?),
        _ => None,
    }
}

fn flags(value: &Value) -> Option<u8> {
    if let Some(number) = value.as_u64() {
        return u8::try_from(number).ok();
    }
    names(value)?.into_iter().try_fold(0, |all, name| Some(all | words::tcp_flag(name)?))
}

fn states(value: &Value) -> Option<u8> {
    if let Some(number) = value.as_u64() {
        return u8::try_from(number).ok();
    }
    names(value)?.into_iter().try_fold(0, |all, name| Some(all | words::state(name)?))
}

/// What is looked at, and what has to hold before: without it the rule ends, `!=` or not.
pub struct Subject {
    key: Key,
    /// The conditions that come first.
    pub needs: Vec<Condition>,
}

enum Key {
    Number(Field),
    Family,
    /// True for the way out.
    Device(bool),
    State,
    Status,
    Direction,
    Mark,
    Helper(String),
    TcpFlags,
    AddressType(End),
    Concat(Vec<Subject>),
    Other(Stays, String),
}

impl Subject {
    /// What this expression looks at.
    pub fn of(expression: &Value) -> Self {
        let other = |stays| Key::Other(stays, expression.to_string());
        let (key, needs) = if let Some(parts) = expression.get("concat").and_then(Value::as_array) {
            let parts: Vec<_> = parts.iter().map(Self::of).collect();
            let needs = parts.iter().flat_map(|part| part.needs.clone()).collect();
            (Key::Concat(parts), needs)
        } else if let Some(payload) = expression.get("payload") {
            (field(payload).unwrap_or_else(|| other(Stays::Packet)), protocol_of(payload))
        } else if let Some(meta) = expression.get("meta") {
            let key = match meta["key"].as_str().unwrap_or_default() {
                "l4proto" => Key::Number(Field::Protocol),
                "nfproto" => Key::Family,
                "mark" => Key::Mark,
                "iif" | "iifname" => Key::Device(false),
                "oif" | "oifname" => Key::Device(true),
                "skuid" | "skgid" | "cgroup" | "iifgroup" | "oifgroup" | "iiftype" | "oiftype" => {
                    other(Stays::Flow)
                }
                "time" | "day" | "hour" | "random" => other(Stays::Chance),
                _ => other(Stays::Packet),
            };
            (key, Vec::new())
        } else if let Some(ct) = expression.get("ct") {
            match ct["key"].as_str().unwrap_or_default() {
                "state" => (Key::State, Vec::new()),
                "status" => (Key::Status, vec![Condition::Tracked]),
                "direction" => (Key::Direction, vec![Condition::Tracked]),
                // That of the connection which announced this one; nothing holds where there is none: nft_ct_get_eval.
                "helper" => (
                    Key::Helper(expression.to_string()),
                    vec![Condition::Tracked, Condition::Helped("any".to_owned())],
                ),
                "mark" | "zone" | "label" | "id" => (other(Stays::Flow), vec![Condition::Tracked]),
                _ => (other(Stays::Packet), vec![Condition::Tracked]),
            }
        } else if expression["fib"]["result"] == "type" {
            (address_type(&expression["fib"]).unwrap_or_else(|| other(Stays::Flow)), Vec::new())
        } else if expression.get("numgen").is_some() {
            (other(Stays::Chance), Vec::new())
        } else {
            let flow =
                ["fib", "socket", "rt", "jhash", "osf"].iter().any(|name| expression.get(name).is_some());
            (other(if flow { Stays::Flow } else { Stays::Packet }), Vec::new())
        };
        Self { key, needs }
    }

    /// It equals this value, or is in this range or prefix.
    pub fn is(&self, value: &Value) -> Condition {
        let value = value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value);
        self.known(value).unwrap_or_else(|| match &self.key {
            Key::Other(stays, text) => Condition::Unknown(*stays, format!("{text} {value}")),
            _ => Condition::Unknown(Stays::Packet, value.to_string()),
        })
    }

    fn known(&self, value: &Value) -> Option<Condition> {
        Some(match &self.key {
            Key::Number(field) => Condition::In(*field, numbers(*field, value)?),
            Key::Family => match value.as_str()? {
                "ipv4" => Condition::Family(Family::V4),
                "ipv6" => Condition::Family(Family::V6),
                _ => return None,
            },
            Key::Device(out) => Condition::Device { out: *out, name: value.as_str()?.to_owned() },
            Key::State => Condition::State(states(value)?),
            Key::Status => match value.as_str()? {
                "dnat" => Condition::Translated(true),
                "snat" => Condition::Translated(false),
                name => Condition::Unknown(Stays::Packet, format!("ct status {name}")),
            },
            Key::Direction => Condition::Original.negated(match value.as_str()? {
                "original" => false,
                "reply" => true,
                _ => return None,
            }),
            Key::Helper(text) => Condition::Helped(format!("{text} {value}")),
            Key::Mark => Condition::Mark { mask: u32::MAX, value: u32_of(value)? },
            Key::TcpFlags => Condition::TcpFlags { mask: u8::MAX, value: flags(value)? },
            Key::AddressType(end) => Condition::AddressType(*end, value.as_str()?.to_owned()),
            Key::Concat(parts) => {
                let values = value.get("concat").and_then(Value::as_array)?;
                if values.len() != parts.len() {
                    return None;
                }
                Condition::All(parts.iter().zip(values).map(|(part, value)| part.is(value)).collect())
            }
            Key::Other(..) => return None,
        })
    }
}

fn field(payload: &Value) -> Option<Key> {
    let end = |name: &str| if name.starts_with('s') { End::Source } else { End::Destination };
    let (protocol, field) = (payload["protocol"].as_str()?, payload["field"].as_str()?);
    Some(match (protocol, field) {
        ("ip" | "ip6", "saddr" | "daddr") => Key::Number(Field::Address(end(field))),
        ("tcp" | "udp" | "th" | "sctp" | "udplite" | "dccp", "sport" | "dport") => {
            Key::Number(Field::Port(end(field)))
        }
        ("tcp", "flags") => Key::TcpFlags,
        ("ip", "protocol") | ("ip6", "nexthdr") => Key::Number(Field::Protocol),
        ("icmp" | "icmpv6", "type") => Key::Number(Field::IcmpType),
        ("icmp" | "icmpv6", "code") => Key::Number(Field::IcmpCode),
        _ => return None,
    })
}

fn protocol_of(payload: &Value) -> Vec<Condition> {
    let protocol = |number: u8| Condition::In(Field::Protocol, Ranges::one(number.into()));
    match payload["protocol"].as_str().unwrap_or_default() {
        "ip" => vec![Condition::Family(Family::V4)],
        "ip6" => vec![Condition::Family(Family::V6)],
        "icmp" => vec![Condition::Family(Family::V4), protocol(1)],
        "icmpv6" => vec![Condition::Family(Family::V6), protocol(58)],
        name => words::protocol(name).map(protocol).into_iter().collect(),
    }
}

/// `fib daddr type`; with an interface named besides, the answer is another.
fn address_type(fib: &Value) -> Option<Key> {
    let flags: Option<Vec<&str>> = list(&fib["flags"]).iter().map(Value::as_str).collect();
    match flags?[..] {
        ["saddr"] => Some(Key::AddressType(End::Source)),
        ["daddr"] => Some(Key::AddressType(End::Destination)),
        _ => None,
    }
}

/// A number, a name, a prefix or a range as the numbers it stands for.
pub fn numbers(field: Field, value: &Value) -> Option<Ranges> {
    if let Some(prefix) = value.get("prefix") {
        let bits = u8::try_from(prefix["len"].as_u64()?).ok()?;
        return words::network(prefix["addr"].as_str()?.parse().ok()?, bits);
    }
    if let Some(range) = value.get("range") {
        let end = |index: usize| numbers(field, &range[index])?.intervals().first().map(|(low, _)| *low);
        return Some(Ranges::span(end(0)?, end(1)?));
    }
    if let Some(number) = value.as_u64() {
        return Some(Ranges::one(number.into()));
    }
    let text = value.as_str()?;
    Some(match field {
        Field::Address(_) => Ranges::one(words::number(text.parse::<IpAddr>().ok()?)),
        Field::Protocol => Ranges::one(words::protocol(text)?.into()),
        Field::IcmpType => Ranges::one(words::icmp_type(text)?.into()),
        Field::Port(_) | Field::IcmpCode => Ranges::one(text.parse().ok()?),
    })
}
