//! What advice acts on: a service port and the direction its flows take through the host.
//! Written `6379/tcp/lo` in options and ids.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::model::{Direction, Protocol, ServicePort, port_of_service};

/// How a direction is written in a target.
const fn short(direction: Direction) -> &'static str {
    match direction {
        Direction::Loopback => "lo",
        Direction::In => "in",
        Direction::Out => "out",
        Direction::Forwarded => "fwd",
    }
}

/// A service by its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceTarget {
    /// Service port; for ICMP `type << 8 | code`.
    pub port: u16,
    /// The protocol.
    pub proto: Protocol,
    /// The direction; `None` means all.
    pub direction: Option<Direction>,
}

impl ServiceTarget {
    /// Whether it includes this service.
    #[must_use]
    pub fn covers(&self, proto: Protocol, port: u16, direction: Direction) -> bool {
        (self.proto, self.port) == (proto, port) && self.direction.is_none_or(|wanted| wanted == direction)
    }
}

impl fmt::Display for ServiceTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", ServicePort { proto: self.proto, port: self.port })?;
        self.direction.map_or(Ok(()), |direction| write!(f, "/{}", short(direction)))
    }
}

impl FromStr for ServiceTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || {
            format!(
                "\"{text}\" is not a service; use PORT[/PROTO[/lo|in|out|fwd]], such as 6379/tcp/lo, or \"type \
                 N/icmp\""
            )
        };
        if let Some((proto, kind)) = text.split_once(" type ")
            && !proto.is_empty()
        {
            // "icmp type 8 code 0", as a report has it.
            let (kind, direction) =
                kind.split_once('/').map_or((kind, None), |(kind, way)| (kind, Some(way)));
            let way = direction.map_or_else(String::new, |way| format!("/{way}"));
            let proto = Protocol::from_words(proto).filter(|proto| proto.is_icmp()).ok_or_else(help)?;
            return format!("type {kind}/{proto}{way}").parse().map_err(|_| help());
        }
        let mut parts = text.split('/');
        let what = parts.next().unwrap_or_default();
        let proto = match parts.next() {
            None => Protocol::TCP,
            Some(name) => Protocol::from_words(name)
                .filter(|proto| proto.has_ports() || proto.is_icmp())
                .ok_or_else(help)?,
        };
        let port =
            if proto.is_icmp() { icmp(what) } else { what.parse().ok() }.ok_or_else(
                || match port_of_service(what) {
                    Some(port) => format!("\"{text}\" has no port; {what} usually has {port}"),
                    None => help(),
                },
            )?;
        let direction = match parts.next().map(str::to_lowercase).as_deref() {
            None => None,
            Some("lo" | "loopback") => Some(Direction::Loopback),
            Some("in" | "input" | "inbound") => Some(Direction::In),
            Some("out" | "output" | "outbound") => Some(Direction::Out),
            Some("fwd" | "forward" | "forwarded") => Some(Direction::Forwarded),
            Some(_) => return Err(help()),
        };
        if parts.next().is_some() { Err(help()) } else { Ok(Self { port, proto, direction }) }
    }
}

/// `type << 8 | code`, from "type 3 code 1", "type 8", "8", or the number itself.
fn icmp(text: &str) -> Option<u16> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (kind, code) = match words.as_slice() {
        ["type", kind, "code", code] => (kind, code.parse().ok()?),
        ["type", kind] | [kind] => (kind, 0),
        _ => return None,
    };
    match kind.parse::<u8>() {
        Ok(kind) => Some(u16::from_be_bytes([kind, code])),
        // No type is that large.
        Err(_) if words.len() == 1 => kind.parse().ok(),
        Err(_) => None,
    }
}

impl Serialize for ServiceTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_it_is_written() {
        for text in [
            "6379/tcp/lo",
            "53/udp",
            "443/tcp/in",
            "5432/tcp/out",
            "80/sctp/fwd",
            "type 8 code 0/icmp/lo",
            "type 3 code 1/icmp",
        ] {
            assert_eq!(text.parse::<ServiceTarget>().expect(text).to_string(), text);
        }
        for (text, means) in [
            ("8/icmp", "type 8 code 0/icmp"),
            ("type 8/icmp", "type 8 code 0/icmp"),
            ("icmp type 3 code 1", "type 3 code 1/icmp"),
            ("icmpv6 type 128 code 0/lo", "type 128 code 0/icmpv6/lo"),
            ("32768/icmpv6/lo", "type 128 code 0/icmpv6/lo"),
            ("Type 128/ICMP6/loopback", "type 128 code 0/icmpv6/lo"),
            ("6379/TCP/IN", "6379/tcp/in"),
            ("53/UDP/forward", "53/udp/fwd"),
        ] {
            assert_eq!(text.parse::<ServiceTarget>().expect(text).to_string(), means);
        }
        let gre = ServiceTarget { port: 0, proto: Protocol(47), direction: Some(Direction::In) };
        assert_eq!(gre.to_string(), "gre/in");
        assert_eq!("6379".parse::<ServiceTarget>().expect("tcp by default").to_string(), "6379/tcp");
    }

    #[test]
    fn what_is_no_target_says_how_to_write_one() {
        assert!(
            "redis/tcp".parse::<ServiceTarget>().expect_err("no port").contains("redis usually has 6379")
        );
        for text in [
            "",
            "nothing",
            "type 300/icmp",
            "type/icmp",
            "tcp type 8 code 0",
            "icmp type 8 code 0/icmp",
            "type 8/tcp",
            "6379/gre",
            "6379/tcp/up",
            "6379/tcp/lo/x",
            "70000",
        ] {
            assert!(text.parse::<ServiceTarget>().expect_err(text).contains("6379/tcp/lo"), "{text}");
        }
    }
}
