//! The timeouts an entry can be subject to, named after their sysctls, and their values in force.
//! Names and numbers only; nothing is read here.

use std::fmt;

use super::Protocol;

/// A timeout of conntrack's: `net.netfilter.nf_conntrack_<sysctl>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is named like its sysctl")]
pub enum TimeoutKind {
    SynSent,
    SynRecv,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    Udp,
    UdpStream,
    Icmp,
    Icmpv6,
    Generic,
}

impl TimeoutKind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::Udp,
        Self::UdpStream,
        Self::Icmp,
        Self::Icmpv6,
        Self::Generic,
    ];

    /// Its short name: in `--what-if`, and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn_sent",
            Self::SynRecv => "syn_recv",
            Self::Established => "established",
            Self::FinWait => "fin_wait",
            Self::CloseWait => "close_wait",
            Self::LastAck => "last_ack",
            Self::TimeWait => "time_wait",
            Self::Close => "close",
            Self::Udp => "udp",
            Self::UdpStream => "udp_stream",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
            Self::Generic => "generic",
        }
    }

    /// The phase with this short name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// What follows `nf_conntrack_` in the sysctl's name.
    #[must_use]
    pub const fn sysctl(self) -> &'static str {
        match self {
            Self::SynSent => "tcp_timeout_syn_sent",
            Self::SynRecv => "tcp_timeout_syn_recv",
            Self::Established => "tcp_timeout_established",
            Self::FinWait => "tcp_timeout_fin_wait",
            Self::CloseWait => "tcp_timeout_close_wait",
            Self::LastAck => "tcp_timeout_last_ack",
            Self::TimeWait => "tcp_timeout_time_wait",
            Self::Close => "tcp_timeout_close",
            Self::Udp => "udp_timeout",
            Self::UdpStream => "udp_timeout_stream",
            Self::Icmp => "icmp_timeout",
            Self::Icmpv6 => "icmpv6_timeout",
            Self::Generic => "generic_timeout",
        }
    }

    /// The phase of an entry: by enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h) for TCP, by
    /// whether both sides talk for UDP (nf_conntrack_udp_packet, net/netfilter/nf_conntrack_proto_udp.c).
    #[must_use]
    pub const fn of(proto: Protocol, tcp_state: u8, assured: bool) -> Self {
        match (proto, tcp_state) {
            // SYN_SENT2, a simultaneous open, has SYN_SENT's timeout.
            (Protocol::TCP, 1 | 9) => Self::SynSent,
            (Protocol::TCP, 2) => Self::SynRecv,
            (Protocol::TCP, 3) => Self::Established,
            (Protocol::TCP, 4) => Self::FinWait,
            (Protocol::TCP, 5) => Self::CloseWait,
            (Protocol::TCP, 6) => Self::LastAck,
            (Protocol::TCP, 7) => Self::TimeWait,
            (Protocol::TCP, _) => Self::Close,
            (Protocol::UDP, _) if assured => Self::UdpStream,
            (Protocol::UDP, _) => Self::Udp,
            (Protocol::ICMP, _) => Self::Icmp,
            (Protocol::ICMPV6, _) => Self::Icmpv6,
            _ => Self::Generic,
        }
    }

    /// Whether entries in it mostly wait for its timeout, so that as many leave it as it is shorter.
    #[must_use]
    pub const fn expires_unrefreshed(self) -> bool {
        !matches!(self, Self::Established | Self::SynRecv | Self::UdpStream | Self::Generic)
    }

    /// Whether each packet restarts it as long as both sides talk.
    #[must_use]
    pub const fn is_refreshed(self) -> bool {
        matches!(self, Self::Established | Self::UdpStream)
    }
}

/// Timeouts in force in a netns, in seconds; those that can't be read are absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts([Option<u32>; TimeoutKind::ALL.len()]);

impl Timeouts {
    /// The value of one.
    #[must_use]
    pub const fn get(&self, kind: TimeoutKind) -> Option<u32> {
        self.0[kind as usize]
    }

    /// All that are known.
    pub fn iter(&self) -> impl Iterator<Item = (TimeoutKind, u32)> {
        TimeoutKind::ALL.into_iter().filter_map(|kind| Some((kind, self.get(kind)?)))
    }
}

impl FromIterator<(TimeoutKind, u32)> for Timeouts {
    fn from_iter<I: IntoIterator<Item = (TimeoutKind, u32)>>(known: I) -> Self {
        let mut timeouts = Self::default();
        for (kind, seconds) in known {
            timeouts.0[kind as usize] = Some(seconds);
        }
        timeouts
    }
}

impl<const N: usize> From<[(TimeoutKind, u32); N]> for Timeouts {
    fn from(known: [(TimeoutKind, u32); N]) -> Self {
        known.into_iter().collect()
    }
}

impl fmt::Display for TimeoutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl serde::Serialize for TimeoutKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_phase() {
        for phase in TimeoutKind::ALL {
            assert_eq!(TimeoutKind::from_name(phase.name()), Some(phase));
        }
        assert_eq!(TimeoutKind::from_name("wait"), None);
    }

    #[test]
    fn a_timeout_is_found_by_its_kind() {
        let all: Timeouts = TimeoutKind::ALL.into_iter().zip(1..).collect();
        for (kind, seconds) in TimeoutKind::ALL.into_iter().zip(1..) {
            assert_eq!(all.get(kind), Some(seconds), "{kind}");
        }
        let known = [(TimeoutKind::Udp, 30), (TimeoutKind::TimeWait, 120)];
        let timeouts = Timeouts::from(known);
        assert_eq!(timeouts.iter().collect::<Vec<_>>(), [known[1], known[0]]);
        assert_eq!(timeouts.get(TimeoutKind::Icmp), None);
    }

    #[test]
    fn every_state_has_its_timeout() {
        assert_eq!(TimeoutKind::of(Protocol::TCP, 7, true), TimeoutKind::TimeWait);
        assert_eq!(TimeoutKind::of(Protocol::TCP, 3, false), TimeoutKind::Established);
        assert_eq!(TimeoutKind::of(Protocol::UDP, 0, false), TimeoutKind::Udp);
        assert_eq!(TimeoutKind::of(Protocol::UDP, 0, true), TimeoutKind::UdpStream);
        assert_eq!(TimeoutKind::of(Protocol::SCTP, 0, true), TimeoutKind::Generic);
    }
}
