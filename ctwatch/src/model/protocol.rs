//! IP protocols and well-known services by name. Static: a report must not depend on files of the host.
//! Names follow /etc/protocols and /etc/services where these have one.

use std::fmt;

use serde::{Serialize, Serializer};

/// An IP protocol number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

/// IANA's numbers and names of what conntrack meets.
const PROTOCOLS: [(u8, &str); 14] = [
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipencap"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "icmpv6"),
    (112, "vrrp"),
    (132, "sctp"),
    (136, "udplite"),
];

/// What else these are called: by /etc/protocols, tcpdump, iptables and people.
const ALIASES: [(u8, &[&str]); 13] = [
    (1, &["icmp4", "icmpv4", "ipv4-icmp"]),
    (4, &["ipip", "ip-encap"]),
    (41, &["sit", "6in4"]),
    (46, &["rsvp"]),
    (50, &["ipsec-esp", "ipv6-crypt"]),
    (51, &["ipsec-ah", "ipv6-auth"]),
    (58, &["icmp6", "icmp-v6", "ipv6-icmp"]),
    (89, &["ospf", "ospfigp"]),
    (103, &["pim"]),
    (108, &["ipcomp"]),
    (112, &["carp"]),
    (115, &["l2tp"]),
    (136, &["udp-lite", "udpl"]),
];

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);

    /// The protocol with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        PROTOCOLS.iter().find(|(_, known)| *known == name).map(|(number, _)| Self(*number))
    }

    /// The protocol that people mean by this: its name in any case, another name it goes by, or its number.
    #[must_use]
    pub fn from_words(text: &str) -> Option<Self> {
        let text = text.to_lowercase();
        let alias = || {
            ALIASES.iter().find(|(_, names)| names.contains(&text.as_str())).map(|(number, _)| Self(*number))
        };
        Self::from_name(&text).or_else(alias).or_else(|| text.parse().ok().map(Self))
    }

    /// The names that [`Protocol::name`] gives.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PROTOCOLS.iter().map(|(_, name)| *name)
    }

    /// Its name, if it has a well-known one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        PROTOCOLS.iter().find(|(number, _)| *number == self.0).map(|(_, name)| *name)
    }

    /// Whether flows of it have ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 33 | 132 | 136)
    }

    /// Whether flows of it have a type, a code and an id instead.
    #[must_use]
    pub const fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&self.0.to_string()),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What usually listens there. Ordered by port; `udp` where only UDP has it, `tcp` likewise, else both.
const SERVICES: &[(u16, Over, &str)] = &[
    (20, Over::Tcp, "ftp-data"),
    (21, Over::Tcp, "ftp"),
    (22, Over::Tcp, "ssh"),
    (23, Over::Tcp, "telnet"),
    (25, Over::Tcp, "smtp"),
    (53, Over::Both, "domain"),
    (67, Over::Udp, "bootps"),
    (68, Over::Udp, "bootpc"),
    (69, Over::Udp, "tftp"),
    (80, Over::Tcp, "http"),
    (88, Over::Both, "kerberos"),
    (110, Over::Tcp, "pop3"),
    (111, Over::Both, "sunrpc"),
    (123, Over::Udp, "ntp"),
    (143, Over::Tcp, "imap2"),
    (161, Over::Udp, "snmp"),
    (179, Over::Tcp, "bgp"),
    (389, Over::Both, "ldap"),
    (443, Over::Both, "https"),
    (445, Over::Tcp, "smb"),
    (465, Over::Tcp, "submissions"),
    (500, Over::Udp, "isakmp"),
    (514, Over::Udp, "syslog"),
    (587, Over::Tcp, "submission"),
    (636, Over::Tcp, "ldaps"),
    (853, Over::Both, "domain-s"),
    (873, Over::Tcp, "rsync"),
    (993, Over::Tcp, "imaps"),
    (995, Over::Tcp, "pop3s"),
    (1194, Over::Both, "openvpn"),
    (1433, Over::Tcp, "mssql"),
    (1521, Over::Tcp, "oracle"),
    (1883, Over::Tcp, "mqtt"),
    (2049, Over::Both, "nfs"),
    (2181, Over::Tcp, "zookeeper"),
    (2375, Over::Tcp, "docker"),
    (2376, Over::Tcp, "docker-s"),
    (2379, Over::Tcp, "etcd-client"),
    (2380, Over::Tcp, "etcd-server"),
    (3128, Over::Tcp, "squid"),
    (3260, Over::Tcp, "iscsi"),
    (3306, Over::Tcp, "mysql"),
    (3478, Over::Both, "stun"),
    (4222, Over::Tcp, "nats"),
    (4317, Over::Tcp, "otlp-grpc"),
    (4500, Over::Udp, "ipsec-nat-t"),
    (4789, Over::Udp, "vxlan"),
    (5000, Over::Tcp, "registry"),
    (5060, Over::Both, "sip"),
    (5432, Over::Tcp, "postgresql"),
    (5671, Over::Tcp, "amqps"),
    (5672, Over::Tcp, "amqp"),
    (6081, Over::Udp, "geneve"),
    (6379, Over::Tcp, "redis"),
    (6380, Over::Tcp, "redis-tls"),
    (6443, Over::Tcp, "kube-api"),
    (8080, Over::Tcp, "http-alt"),
    (8125, Over::Udp, "statsd"),
    (8443, Over::Tcp, "https-alt"),
    (8472, Over::Udp, "vxlan-linux"),
    (8500, Over::Tcp, "consul"),
    (9000, Over::Tcp, "fpm"),
    (9042, Over::Tcp, "cassandra"),
    (9090, Over::Tcp, "prometheus"),
    (9092, Over::Tcp, "kafka"),
    (9100, Over::Tcp, "node-export"),
    (9200, Over::Tcp, "elastic"),
    (10250, Over::Tcp, "kubelet"),
    (10256, Over::Tcp, "kube-proxy"),
    (11211, Over::Both, "memcached"),
    (15672, Over::Tcp, "rabbitmq-ui"),
    (16379, Over::Tcp, "redis-bus"),
    (26379, Over::Tcp, "sentinel"),
    (27017, Over::Tcp, "mongodb"),
    (51820, Over::Udp, "wireguard"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Tcp,
    Udp,
    Both,
}

/// The well-known service on this port.
#[must_use]
pub fn service(protocol: Protocol, port: u16) -> Option<&'static str> {
    let index = SERVICES.binary_search_by_key(&port, |(port, _, _)| *port).ok()?;
    let (_, over, name) = SERVICES[index];
    let fits = match protocol {
        Protocol::TCP => over != Over::Udp,
        Protocol::UDP => over != Over::Tcp,
        _ => false,
    };
    fits.then_some(name)
}

/// The port that a service of this name usually has.
#[must_use]
pub fn port_of_service(name: &str) -> Option<u16> {
    let name = name.to_lowercase();
    SERVICES.iter().find(|(_, _, known)| *known == name).map(|(port, ..)| *port)
}

/// A protocol as its number, in what is stored: names may change.
pub mod number {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Protocol;

    /// Writes the number.
    ///
    /// # Errors
    /// What the serializer says.
    pub fn serialize<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
        protocol.0.serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is no number, or above 255.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
        u8::deserialize(deserializer).map(Protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_in_order_and_short_enough_for_their_column() {
        assert!(SERVICES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(SERVICES.iter().all(|(_, _, name)| name.len() <= 11));
    }

    #[test]
    fn a_service_belongs_to_its_protocol() {
        assert_eq!(service(Protocol::TCP, 6379), Some("redis"));
        assert_eq!(service(Protocol::UDP, 6379), None);
        assert_eq!(service(Protocol::UDP, 53), Some("domain"));
        assert_eq!(service(Protocol::SCTP, 80), None);
    }

    #[test]
    fn an_unknown_protocol_is_its_number() {
        assert_eq!(Protocol(253).to_string(), "253");
        assert_eq!(Protocol::from_name("icmpv6"), Some(Protocol::ICMPV6));
    }

    #[test]
    fn people_write_protocols_as_they_like() {
        for (text, number) in [
            ("TCP", 6),
            ("icmp6", 58),
            ("ipv6-icmp", 58),
            ("ICMPv6", 58),
            ("UDPLite", 136),
            ("udp-lite", 136),
            ("gre", 47),
            ("ESP", 50),
            ("ospf", 89),
            ("17", 17),
        ] {
            assert_eq!(Protocol::from_words(text), Some(Protocol(number)), "{text}");
        }
        for bad in ["", "256", "-1", "tpc", "tcp "] {
            assert_eq!(Protocol::from_words(bad), None, "{bad}");
        }
        // No other name hides one of ours, and none stands for two.
        let all: Vec<&str> =
            ALIASES.iter().flat_map(|(_, names)| *names).copied().chain(Protocol::names()).collect();
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all.len());
    }
}
