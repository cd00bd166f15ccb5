//! A service as conntrack knows it: a protocol and the port connections go to, or a type and a code for ICMP.
//! A key and its spelling; whether it was loopback traffic is said beside it.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Protocol, service};

/// A service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// IP protocol number.
    pub proto: u8,
    /// Destination port of the original direction; for ICMP `type << 8 | code`; 0 where there is neither.
    pub port: u16,
}

impl ServicePort {
    /// What usually listens there.
    #[must_use]
    pub fn service(self) -> Option<&'static str> {
        service(Protocol(self.proto), self.port)
    }

    /// With what usually listens there: "6379/tcp redis".
    #[must_use]
    pub fn with_service(self) -> String {
        self.service().map_or_else(|| self.to_string(), |service| format!("{self} {service}"))
    }

    /// Whether its states are TCP's.
    #[must_use]
    pub fn is_tcp(self) -> bool {
        Protocol(self.proto) == Protocol::TCP
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = Protocol(self.proto);
        match proto {
            proto if proto.is_icmp() => write!(f, "{proto} type {} code {}", self.port >> 8, self.port & 255),
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
