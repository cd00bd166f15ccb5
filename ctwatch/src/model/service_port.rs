//! A service as conntrack knows it: a protocol and the port connections go to, or a type and a code for ICMP.
//! A key and its spelling; whether it was loopback traffic is said beside it.

use std::fmt;

use ctwatch_common::slot::SlotKey;
use serde::{Serialize, Serializer};

use super::{Protocol, service};

/// A service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// IP protocol number.
    pub proto: Protocol,
    /// Destination port of the original direction; for ICMP `type << 8 | code`; 0 where there is neither.
    pub port: u16,
}

/// What the number beside a protocol stands for: a port, or a type and a code, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortParts {
    /// Where the protocol has ports.
    pub port: Option<u16>,
    /// What usually listens there.
    pub service: Option<&'static str>,
    /// Of ICMP.
    pub icmp_type: Option<u8>,
    /// Of ICMP.
    pub icmp_code: Option<u8>,
}

impl ServicePort {
    /// From the parts that a record has it in: a port, or a type and a code, or neither.
    #[must_use]
    pub fn of_parts(proto: Protocol, port: Option<u16>, icmp: Option<(u8, u8)>) -> Self {
        let port = port.or_else(|| icmp.map(|(kind, code)| u16::from_be_bytes([kind, code])));
        Self { proto, port: port.unwrap_or(0) }
    }

    /// The service of a slot, if that has one.
    #[must_use]
    pub const fn of_slot(key: SlotKey) -> Self {
        Self { proto: Protocol(key.proto), port: key.port }
    }

    /// The parts that a record has it in.
    #[must_use]
    pub fn parts(self) -> PortParts {
        let port = self.proto.has_ports().then_some(self.port);
        let icmp = self.proto.is_icmp().then(|| self.port.to_be_bytes());
        PortParts {
            port,
            service: port.and_then(|port| service(self.proto, port)),
            icmp_type: icmp.map(|[kind, _]| kind),
            icmp_code: icmp.map(|[_, code]| code),
        }
    }

    /// What usually listens there.
    #[must_use]
    pub fn service(self) -> Option<&'static str> {
        service(self.proto, self.port)
    }

    /// With what usually listens there: "6379/tcp redis".
    #[must_use]
    pub fn with_service(self) -> String {
        self.service().map_or_else(|| self.to_string(), |service| format!("{self} {service}"))
    }

    /// Whether its states are TCP's.
    #[must_use]
    pub fn is_tcp(self) -> bool {
        self.proto == Protocol::TCP
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = self.proto;
        match proto {
            proto if proto.is_icmp() => write!(f, "type {} code {}/{proto}", self.port >> 8, self.port & 255),
            proto if proto.has_ports() => write!(f, "{}/{proto}", self.port),
            proto => write!(f, "{proto}"),
        }
    }
}

impl Serialize for ServicePort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_spelled_one_way_whatever_it_has_instead_of_a_port() {
        let spelled = |proto, port, icmp| ServicePort::of_parts(proto, port, icmp).to_string();
        assert_eq!(spelled(Protocol::TCP, Some(6379), None), "6379/tcp");
        assert_eq!(spelled(Protocol(1), None, Some((8, 0))), "type 8 code 0/icmp");
        assert_eq!(spelled(Protocol(58), None, Some((128, 0))), "type 128 code 0/icmpv6");
        assert_eq!(spelled(Protocol(47), None, None), "gre");
    }
}
