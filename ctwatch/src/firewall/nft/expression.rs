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
    let subject = Subject::of(left);
    let unknown = || Condition::Unknown(subject.stays, body.to_string());
    let mut all = subject.needs.clone();
    let negate = operator == "!=";
    if sets.counts(right) {
        all.push(Condition::CountsConnections(body.to_string()));
    }
    let is_set =
        right.get("set").is_some() || right.as_str().is_some_and(|reference| reference.starts_with('@'));
    all.push(match operator {
        // `ct state ! new`: (state & new) == 0. `in` is the opposite, and no lookup.
        "!" => subject.has_any(right).map_or_else(unknown, |any| any.negated(true)),
        "in" if !is_set && subject.is_flags() => subject.has_any(right).unwrap_or_else(unknown),
        "==" | "!=" | "in" => {
            if let Some(masked) = masked(left, right, negate) {
                masked
            } else if is_set {
                match sets.elements(right) {
                    Some(_) if sets.changes(right) => {
                        Condition::Unknown(subject.stays.max(Stays::Chance), body.to_string())
                    }
                    Some(elements) => any(elements.iter().map(|element| subject.is(element))).negated(negate),
                    None => unknown(),
                }
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

/// `left & mask == right`.
fn masked(left: &Value, right: &Value, negate: bool) -> Option<Condition> {
    let list = left.get("&")?;
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
        // ["a", "b"] in newer versions is {"|": ["a", "b"]}; three may be {"|": [{"|": ["a", "b"]}, "c"]}.
        Value::Object(object) => {
            let parts: Option<Vec<_>> = object.get("|")?.as_array()?.iter().map(names).collect();
            Some(parts?.into_iter().flatten().collect())
        }
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
    /// For how long the answer stays, where it isn't known.
    pub stays: Stays,
    text: String,
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
    Other,
}

impl Subject {
    /// What this expression looks at.
    pub fn of(expression: &Value) -> Self {
        let (key, needs) = if let Some(parts) = expression.get("concat").and_then(Value::as_array) {
            let parts: Vec<_> = parts.iter().map(Self::of).collect();
            let needs = parts.iter().flat_map(|part| part.needs.clone()).collect();
            (Key::Concat(parts), needs)
        } else if let Some(payload) = expression.get("payload") {
            (field(payload).unwrap_or(Key::Other), protocol_of(payload))
        } else if let Some(meta) = expression.get("meta") {
            let key = match meta["key"].as_str().unwrap_or_default() {
                "l4proto" => Key::Number(Field::Protocol),
                "nfproto" => Key::Family,
                "mark" => Key::Mark,
                "iif" | "iifname" => Key::Device(false),
                "oif" | "oifname" => Key::Device(true),
                _ => Key::Other,
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
                _ => (Key::Other, vec![Condition::Tracked]),
            }
        } else if let Some(operands) = operands(expression) {
            // What a mask or a shift is put on has to be there as well.
            (Key::Other, operands.iter().flat_map(|operand| Self::of(operand).needs).collect())
        } else if expression["fib"]["result"] == "type" {
            (address_type(&expression["fib"]).unwrap_or(Key::Other), Vec::new())
        } else {
            (Key::Other, Vec::new())
        };
        Self { key, needs, stays: stays(expression), text: expression.to_string() }
    }

    /// It equals this value, or is in this range or prefix.
    pub fn is(&self, value: &Value) -> Condition {
        let value = value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value);
        self.known(value).unwrap_or_else(|| Condition::Unknown(self.stays, format!("{} {value}", self.text)))
    }

    /// Whether its value is made of bits that have names.
    fn is_flags(&self) -> bool {
        matches!(self.key, Key::State | Key::Status | Key::TcpFlags | Key::Mark)
    }

    /// One of these bits is set.
    fn has_any(&self, value: &Value) -> Option<Condition> {
        Some(match &self.key {
            Key::State => Condition::State(states(value)?),
            Key::Status => any(names(value)?.into_iter().map(|name| match name {
                "dnat" => Condition::Translated(true),
                "snat" => Condition::Translated(false),
                name => Condition::Unknown(self.stays, format!("ct status {name}")),
            })),
            Key::TcpFlags => Condition::TcpFlags { mask: flags(value)?, value: 0 }.negated(true),
            Key::Mark => Condition::Mark { mask: u32_of(value)?, value: 0 }.negated(true),
            _ => return None,
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
            // `ct state == new,established` asks for both at once, which never holds: that in words, a list may be another's.
            Key::State if value.is_array() => return None,
            Key::State => match states(value)? {
                one if one.is_power_of_two() => Condition::State(one),
                _ => Condition::Any(Vec::new()),
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
            Key::Status | Key::Other => return None,
        })
    }
}

/// The operands of an operator on bits.
fn operands(expression: &Value) -> Option<&[Value]> {
    ["&", "|", "^", "<<", ">>"].iter().find_map(|operator| expression.get(*operator)).map(list)
}

/// For how long the value stays the same, tracked or not. What isn't known here may be anything: it is in none of these lists.
pub fn stays(expression: &Value) -> Stays {
    const OF_A_FLOW: [&str; 6] = ["fib", "socket", "rt", "osf", "symhash", "ipsec"];
    const OF_A_PACKET: [&str; 6] =
        ["exthdr", "tcp option", "ip option", "sctp chunk", "dccp option", "tunnel"];
    const META_OF_A_FLOW: [&str; 16] = [
        "protocol", "nfproto", "l4proto", "skuid", "skgid", "cgroup", "iif", "iifname", "oif", "oifname",
        "iifgroup", "oifgroup", "iiftype", "oiftype", "iifkind", "oifkind",
    ];
    const META_OF_A_PACKET: [&str; 9] =
        ["length", "priority", "pkttype", "cpu", "nftrace", "rtclassid", "secpath", "ipsec", "mark"];
    let most = |all: &[Value]| all.iter().map(stays).max().unwrap_or(Stays::Flow);
    let Value::Object(object) = expression else { return Stays::Flow };
    let Some((name, body)) = object.iter().next() else { return Stays::Never };
    match name.as_str() {
        "concat" => most(list(body)),
        "jhash" => stays(&body["expr"]),
        "prefix" | "range" | "set" => Stays::Flow,
        "map" => stays(&body["key"]),
        "numgen" => Stays::Chance,
        "payload" if matches!(field(body), Some(Key::Number(_))) => Stays::Flow,
        "payload" => Stays::Packet,
        "meta" => match body["key"].as_str().unwrap_or_default() {
            "time" | "day" | "hour" | "random" => Stays::Chance,
            key if META_OF_A_FLOW.contains(&key) => Stays::Flow,
            key if META_OF_A_PACKET.contains(&key) => Stays::Packet,
            _ => Stays::Never,
        },
        name if OF_A_FLOW.contains(&name) => Stays::Flow,
        name if OF_A_PACKET.contains(&name) => Stays::Packet,
        _ => operands(expression).map_or(Stays::Never, most),
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
