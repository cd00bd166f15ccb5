//! Shorter timeouts: entries that only wait for theirs expire sooner.
//! Warns below RFC 5382 and RFC 4787 where there is NAT.

use super::{ChangeKind, Draft, Item, Level, MIN_SHARE, TARGET_FILL, limit, set_sysctl};
use crate::advise::case::Case;
use crate::advise::whatif::Changes;
use crate::model::TimeoutKind;

/// RFC 5382 REQ-5: an established connection is kept for 2 h 4 min at least.
const RFC_5382: u32 = 7440;
/// The same for one that is half open or half closed.
const RFC_5382_TRANSITORY: u32 = 240;
/// RFC 4787 REQ-5: a UDP mapping.
const RFC_4787: u32 = 120;

/// How long NAT must keep a mapping by the RFCs, in seconds; none where they don't say.
pub(crate) const fn rfc(phase: TimeoutKind) -> Option<(&'static str, u32)> {
    match phase {
        TimeoutKind::Established => Some(("RFC 5382", RFC_5382)),
        TimeoutKind::SynSent
        | TimeoutKind::SynRecv
        | TimeoutKind::FinWait
        | TimeoutKind::CloseWait
        | TimeoutKind::LastAck => Some(("RFC 5382", RFC_5382_TRANSITORY)),
        TimeoutKind::Udp | TimeoutKind::UdpStream => Some(("RFC 4787", RFC_4787)),
        _ => None,
    }
}
/// A shorter timeout is advised where at least this share of the entries is subject to it.
const MIN_TIMEOUT_SHARE: f64 = 0.2;

pub(super) fn items(case: &Case) -> Vec<Item> {
    let total = case.demand.after(&Changes::default()).needed;
    let mut items = Vec::new();
    for phase in TimeoutKind::ALL {
        let Some(before) = case.timeouts.get(phase) else { continue };
        let steps: &[u32] = match phase {
            TimeoutKind::TimeWait => &[60, 30, 15],
            TimeoutKind::FinWait | TimeoutKind::CloseWait | TimeoutKind::SynSent => &[60, 30, 15],
            TimeoutKind::SynRecv | TimeoutKind::LastAck => &[30, 15],
            TimeoutKind::Udp => &[15, 10],
            TimeoutKind::UdpStream => &[60, 30],
            TimeoutKind::Established => &[86_400, RFC_5382],
            _ => continue,
        };
        let part = share_of(case, phase);
        if part < if phase == TimeoutKind::Established { MIN_SHARE } else { MIN_TIMEOUT_SHARE } {
            continue;
        }
        let change = |seconds: u32| Changes { timeouts: [(phase, seconds)].into(), ..Changes::default() };
        // The longest that suffices, else the shortest.
        let shorter = || steps.iter().copied().filter(|seconds| *seconds < before);
        let enough = shorter().find(|seconds| {
            let after = case.demand.after(&change(*seconds));
            after.peak <= TARGET_FILL * limit(after.max)
        });
        let Some(seconds) = enough.or_else(|| shorter().next_back()) else { continue };
        let after = case.demand.after(&change(seconds));
        if after.needed > total * (1.0 - MIN_SHARE) {
            continue;
        }
        items.push(item(case, phase, before, seconds, part));
    }
    items
}

fn item(case: &Case, phase: TimeoutKind, before: u32, seconds: u32, part: f64) -> Item {
    let below_rfc = phase == TimeoutKind::Established
        && rfc(phase).is_some_and(|(_, least)| seconds < least)
        && case.firewall.nat;
    let mut item = Draft {
        id: phase.name().to_owned(),
        kind: ChangeKind::Timeout,
        title: format!("shorten {} from {before} s to {seconds} s", phase.sysctl()),
        evidence: format!("{:.0} % of the entries are subject to this timeout", part * 100.0),
        change: Changes { timeouts: [(phase, seconds)].into(), ..Changes::default() },
        risk: match phase {
            TimeoutKind::Established if below_rfc => Level::High,
            TimeoutKind::Established | TimeoutKind::UdpStream => Level::Medium,
            // A mapping that expires too early cuts off its connection.
            _ if case.firewall.nat && rfc(phase).is_some() => Level::Medium,
            _ => Level::Low,
        },
        risk_text: risk(phase, case.firewall.nat),
    }
    .on(case);
    item.notes.push(
        "applies to entries that enter this state from now on; the table shrinks as older ones expire"
            .to_owned(),
    );
    set_sysctl(case, &mut item, phase.sysctl(), seconds, before);
    item
}

fn risk(phase: TimeoutKind, nat: bool) -> String {
    match phase {
        TimeoutKind::TimeWait => {
            "late segments of a closed connection become INVALID or NEW; `ct state invalid drop` drops them"
        }
        TimeoutKind::Established if nat => {
            "connections idle for longer lose their NAT mapping and hang; RFC 5382 requires at least 2 h 4 min (7440 s)"
        }
        TimeoutKind::Established => "connections idle for longer are no longer ESTABLISHED to the firewall: pooled ones break",
        TimeoutKind::SynSent | TimeoutKind::SynRecv if nat => {
            "slower handshakes fail; RFC 5382 requires 4 min (240 s) with NAT, which this host uses"
        }
        TimeoutKind::FinWait | TimeoutKind::CloseWait | TimeoutKind::LastAck if nat => {
            "half-closed connections that pause for longer lose their NAT mapping; RFC 5382 requires 4 min (240 s)"
        }
        TimeoutKind::Udp | TimeoutKind::UdpStream if nat => {
            "flows that pause for longer get a new port from NAT; RFC 4787 requires at least 2 min (120 s)"
        }
        TimeoutKind::SynSent | TimeoutKind::SynRecv => "slower handshakes fail; SYNs are retransmitted after 1, 3, 7, 15 s",
        TimeoutKind::FinWait | TimeoutKind::CloseWait | TimeoutKind::LastAck => {
            "half-closed connections that pause for longer are cut off"
        }
        TimeoutKind::UdpStream => "flows that pause for longer get a new entry, and behind NAT a new port",
        _ => "later replies find no entry",
    }
    .to_owned()
}

/// Share of the entries that are subject to this timeout.
fn share_of(case: &Case, phase: TimeoutKind) -> f64 {
    let residences = || case.demand.services.iter().flat_map(|service| &service.residences);
    let sum = |wanted: Option<TimeoutKind>| -> f64 {
        let residences = residences().filter(|residence| wanted.is_none_or(|phase| residence.phase == phase));
        residences.map(|residence| f64::from(residence.entries)).sum()
    };
    let all = sum(None);
    if all > 0.0 { sum(Some(phase)) / all } else { 0.0 }
}
