//! Which losses make rows and events.
//! What is unknown of a loss may make the verdict unknown, never a pass.

use std::net::IpAddr;

use ctwatch_common::Cause;
use ipnet::IpNet;

use super::key::Facts;
use crate::model::{NetnsId, Protocol};

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// Which losses make rows and events. An empty list lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Service ports; what has no port doesn't pass.
    pub ports: Vec<PortRange>,
    /// Source addresses.
    pub src: Vec<IpNet>,
    /// Destination addresses.
    pub dst: Vec<IpNet>,
    /// Protocols.
    pub protos: Vec<Protocol>,
    /// Causes; when empty, all but `invalid`, which loses nothing.
    pub causes: Vec<Cause>,
    /// Namespaces; `None` means all.
    pub netns: Option<Vec<NetnsId>>,
    /// Only loopback traffic, or only the rest.
    pub loopback: Option<bool>,
}

/// What a filter says about a loss of which not everything may be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Pass,
    /// It depends on something unknown about this loss.
    Unknown,
    Fail,
}

impl Filter {
    /// Whether packets that pass untracked are asked for.
    #[must_use]
    pub fn wants_invalid(&self) -> bool {
        self.causes.contains(&Cause::Invalid)
    }

    /// Whether only events can answer this filter: counters know no addresses.
    pub(super) fn needs_addresses(&self) -> bool {
        !self.src.is_empty() || !self.dst.is_empty()
    }

    pub(super) fn passes_cause(&self, cause: Cause) -> bool {
        if self.causes.is_empty() { cause != Cause::Invalid } else { self.causes.contains(&cause) }
    }

    /// Whether only the cause decides.
    pub(super) fn is_by_cause_only(&self) -> bool {
        let Self { ports, src, dst, protos, causes: _, netns, loopback } = self;
        ports.is_empty()
            && src.is_empty()
            && dst.is_empty()
            && protos.is_empty()
            && netns.is_none()
            && loopback.is_none()
    }

    /// What is unknown of a packet may make the verdict unknown; no addresses are needed unless asked for.
    pub(super) fn judge(&self, seen: &Facts, addresses: Option<(IpAddr, IpAddr)>) -> Verdict {
        if self.netns.as_ref().is_some_and(|wanted| !wanted.contains(&seen.netns)) {
            return Verdict::Fail;
        }
        let proto = choice(&self.protos, seen.proto, |wanted, proto| *wanted == proto);
        let port = match (seen.proto, seen.port) {
            (Some(proto), _) if !proto.has_ports() => absent(&self.ports),
            (_, port) => choice(&self.ports, port, |range, port| (range.first..=range.last).contains(&port)),
        };
        let loopback = match (self.loopback, seen.loopback) {
            (None, _) => Verdict::Pass,
            (Some(_), None) => Verdict::Unknown,
            (Some(wanted), Some(is)) => pass_if(wanted == is),
        };
        let src = choice(&self.src, addresses.map(|(src, _)| src), |net, src| net.contains(&src));
        let dst = choice(&self.dst, addresses.map(|(_, dst)| dst), |net, dst| net.contains(&dst));
        [proto, port, loopback, src, dst].into_iter().fold(Verdict::Pass, Verdict::and)
    }
}

impl Verdict {
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Fail, _) | (_, Self::Fail) => Self::Fail,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Pass, Self::Pass) => Self::Pass,
        }
    }
}

const fn pass_if(passes: bool) -> Verdict {
    if passes { Verdict::Pass } else { Verdict::Fail }
}

/// Something without that quality passes only when nobody asks for it.
const fn absent<W>(wanted: &[W]) -> Verdict {
    pass_if(wanted.is_empty())
}

fn choice<W, T: Copy>(wanted: &[W], is: Option<T>, matches: impl Fn(&W, T) -> bool) -> Verdict {
    match is {
        _ if wanted.is_empty() => Verdict::Pass,
        None => Verdict::Unknown,
        Some(is) => pass_if(wanted.iter().any(|wanted| matches(wanted, is))),
    }
}
