//! The match options of an iptables rule as conditions.
//! Options are read per match (`-m name …`): one unknown option makes the whole match unknown, never true.

use std::net::IpAddr;

use super::ir::{Condition, End, Field, Stays};
use super::ranges::Ranges;
use super::words;

/// Matches whose answer stays the same for all packets of one direction of a flow.
const STAYS_FOR_A_FLOW: [&str; 11] = [
    "set",
    "owner",
    "mac",
    "physdev",
    "policy",
    "cgroup",
    "connmark",
    "connlabel",
    "helper",
    "rpfilter",
    "socket",
];
/// Matches that count packets, look at a clock, or throw dice.
const COUNTS_PACKETS: [&str; 9] =
    ["limit", "hashlimit", "recent", "statistic", "quota", "time", "rateest", "quota2", "nth"];
/// Matches that look at the packet alone: whether it is tracked makes no difference. What is in none of these lists may be
/// anything.
const STAYS_FOR_A_PACKET: [&str; 26] = [
    "",
    "tcp",
    "udp",
    "udplite",
    "sctp",
    "dccp",
    "icmp",
    "icmp6",
    "multiport",
    "mark",
    "length",
    "ttl",
    "hl",
    "dscp",
    "tos",
    "ecn",
    "string",
    "u32",
    "bpf",
    "tcpmss",
    "pkttype",
    "esp",
    "ah",
    "frag",
    "rt",
    "addrtype",
];
/// Matches that say no for a packet without entry, also when inverted: connmark_mt, connbytes_mt … net/netfilter/xt_*.c, 6.12.
const NEEDS_AN_ENTRY: [&str; 3] = ["connmark", "connbytes", "cluster"];
/// Matches that say no for a packet without entry, and yes when inverted: helper_mt, connlabel_mt.
const RIGHT_WITHOUT_AN_ENTRY: [&str; 2] = ["connlabel", "helper"];

/// The conditions of a rule's words before its target.
#[must_use]
pub fn conditions(options: &[String]) -> Vec<Condition> {
    let mut groups: Vec<(&str, Vec<&str>)> = vec![("", Vec::new())];
    let mut words = options.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        if word == "-m" {
            groups.push((words.next().unwrap_or_default(), Vec::new()));
        } else {
            groups.last_mut().expect("there is a first group").1.push(word);
        }
    }
    groups
        .iter()
        .filter(|(name, words)| !(name.is_empty() && words.is_empty()))
        .map(|group| of(group))
        .collect()
}

fn of((name, words): &(&str, Vec<&str>)) -> Condition {
    let text = || format!("-m {name} {}", words.join(" "));
    if *name == "comment" {
        return Condition::All(Vec::new());
    }
    if *name == "connlimit" {
        return Condition::CountsConnections(text());
    }
    if let Some(condition) = known(name, words) {
        return condition;
    }
    // Which addresses are in its lists is up to rules, in the end to those that see a flow as new.
    let reads_list = *name == "recent" && !words.contains(&"--set");
    let stays = if reads_list {
        Stays::Never
    } else if STAYS_FOR_A_FLOW.contains(name) {
        Stays::Flow
    } else if STAYS_FOR_A_PACKET.contains(name) {
        Stays::Packet
    } else if COUNTS_PACKETS.contains(name) {
        Stays::Chance
    } else {
        // It may count, or ask for the connection.
        Stays::Never
    };
    if RIGHT_WITHOUT_AN_ENTRY.contains(name) {
        let (inverted, words) = match words.split_first() {
            Some((&"!", rest)) => (true, rest),
            _ => (false, &words[..]),
        };
        let text = format!("-m {name} {}", words.join(" "));
        let asks = if *name == "helper" { Condition::Helped(text) } else { Condition::Unknown(stays, text) };
        return Condition::All(vec![Condition::Tracked, asks]).negated(inverted);
    }
    let unknown = Condition::Unknown(stays, text());
    if NEEDS_AN_ENTRY.contains(name) { Condition::All(vec![Condition::Tracked, unknown]) } else { unknown }
}

fn known(name: &str, words: &[&str]) -> Option<Condition> {
    let mut all = Vec::new();
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let negate = word == "!";
        let option = if negate { words.next()? } else { word };
        all.push(match name {
            "conntrack" | "state" => of_conntrack(option, negate, &mut words)?,
            _ => one(name, option, &mut words)?.negated(negate),
        });
    }
    Some(Condition::All(all))
}

fn one<'a>(name: &str, option: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Condition> {
    use End::{Destination, Source};
    let ports = |end, text: &str| Some(Condition::In(Field::Port(end), ports(text)?));
    Some(match (name, option) {
        ("", "-s") => Condition::In(Field::Address(Source), network(words.next()?)?),
        ("", "-d") => Condition::In(Field::Address(Destination), network(words.next()?)?),
        ("", "-p") => match words.next()? {
            "all" | "0" => Condition::All(Vec::new()),
            name => Condition::In(Field::Protocol, Ranges::one(words::protocol(name)?.into())),
        },
        ("", "-i" | "-o") => {
            let name = words.next()?;
            let name = name.strip_suffix('+').map_or_else(|| name.to_owned(), |start| format!("{start}*"));
            Condition::Device { out: option == "-o", name }
        }
        // Second and later fragments: none of a flow that conntrack has put together again.
        ("", "-f") => Condition::Any(Vec::new()),
        ("tcp" | "udp" | "sctp" | "dccp", "--sport" | "--source-port") => ports(Source, words.next()?)?,
        ("tcp" | "udp" | "sctp" | "dccp", "--dport" | "--destination-port") => {
            ports(Destination, words.next()?)?
        }
        ("multiport", "--sports") => ports(Source, words.next()?)?,
        ("multiport", "--dports") => ports(Destination, words.next()?)?,
        ("multiport", "--ports") => {
            let text = words.next()?;
            Condition::Any(vec![ports(Source, text)?, ports(Destination, text)?])
        }
        ("tcp", "--tcp-flags") => {
            Condition::TcpFlags { mask: flags(words.next()?)?, value: flags(words.next()?)? }
        }
        ("tcp", "--syn") => Condition::TcpFlags { mask: flags("FIN,SYN,RST,ACK")?, value: flags("SYN")? },
        ("icmp" | "icmp6", "--icmp-type" | "--icmpv6-type") => icmp(words.next()?)?,
        ("iprange", "--src-range") => Condition::In(Field::Address(Source), range(words.next()?)?),
        ("iprange", "--dst-range") => Condition::In(Field::Address(Destination), range(words.next()?)?),
        ("mark", "--mark") => {
            let (value, mask) = value_and_mask(words.next()?)?;
            Condition::Mark { mask, value }
        }
        ("addrtype", "--src-type") => address_types(Source, words.next()?),
        ("addrtype", "--dst-type") => address_types(Destination, words.next()?),
        _ => return None,
    })
}

/// An option of -m conntrack or -m state. All but the state need an entry, also when negated: conntrack_mt,
/// net/netfilter/xt_conntrack.c, 6.12.
fn of_conntrack<'a>(
    option: &str,
    negate: bool,
    words: &mut impl Iterator<Item = &'a str>,
) -> Option<Condition> {
    let value = words.next()?;
    if matches!(option, "--ctstate" | "--state") {
        let any: Option<Vec<_>> = value.split(',').map(state).collect();
        return Some(Condition::Any(any?).negated(negate));
    }
    let condition = match option {
        "--ctdir" => Condition::Original.negated(value != "ORIGINAL"),
        "--ctstatus" | "--ctexpire" | "--ctproto" | "--ctorigsrc" | "--ctorigdst" | "--ctreplsrc"
        | "--ctrepldst" | "--ctorigsrcport" | "--ctorigdstport" | "--ctreplsrcport" | "--ctrepldstport" => {
            Condition::Unknown(Stays::Flow, format!("{option} {value}"))
        }
        _ => return None,
    };
    Some(Condition::All(vec![Condition::Tracked, condition.negated(negate)]))
}

fn state(name: &str) -> Option<Condition> {
    Some(match name {
        "DNAT" => Condition::Translated(true),
        "SNAT" => Condition::Translated(false),
        _ => Condition::State(words::state(name)?),
    })
}

/// "80", "80:90", "80,443,8000:8010", ":1023".
fn ports(text: &str) -> Option<Ranges> {
    let mut intervals = Vec::new();
    for part in text.split(',') {
        let (low, high) = part.split_once(':').unwrap_or((part, part));
        let low = if low.is_empty() { 0 } else { low.parse().ok()? };
        let high = if high.is_empty() { 65_535 } else { high.parse().ok()? };
        intervals.push((low, high));
    }
    Some(Ranges::of(intervals))
}

/// "10.0.0.0/8".
pub fn network(text: &str) -> Option<Ranges> {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().ok()?;
    let widest = if address.is_ipv4() { 32 } else { 128 };
    // A mask with gaps doesn't parse: such a rule is unknown.
    words::network(address, if bits.is_empty() { widest } else { bits.parse().ok()? })
}

/// "10.0.0.1-10.0.0.9".
pub fn range(text: &str) -> Option<Ranges> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Some(Ranges::span(words::number(low.parse().ok()?), words::number(high.parse().ok()?)))
}

/// "80", "80-90".
pub fn port_range(text: &str) -> Option<Ranges> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Some(Ranges::span(low.parse().ok()?, high.parse().ok()?))
}

fn flags(text: &str) -> Option<u8> {
    match text {
        "NONE" => Some(0),
        "ALL" => Some(0x3f),
        names => names.split(',').try_fold(0, |all, name| Some(all | words::tcp_flag(name)?)),
    }
}

fn icmp(text: &str) -> Option<Condition> {
    if matches!(text, "any" | "255") {
        return Some(Condition::All(Vec::new()));
    }
    let (kind, code) = text.split_once('/').map_or((text, None), |(kind, code)| (kind, Some(code)));
    let mut all = vec![Condition::In(Field::IcmpType, Ranges::one(words::icmp_type(kind)?.into()))];
    if let Some(code) = code {
        all.push(Condition::In(Field::IcmpCode, Ranges::one(code.parse().ok()?)));
    }
    Some(Condition::All(all))
}

fn address_types(end: End, text: &str) -> Condition {
    let types = text.split(',').map(|name| Condition::AddressType(end, name.to_ascii_lowercase()));
    Condition::Any(types.collect())
}

/// "0x4000/0x4000", "7".
pub fn value_and_mask(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}
