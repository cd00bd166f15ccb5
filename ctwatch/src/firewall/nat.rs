//! What a rule that translates makes of a path, as nf_nat does it.
//! Pure; which rules translate is the walker's to find.

use super::ir::{Family, Hook, Nat, Target};
use super::path::{Path, Place};
use super::ranges::Ranges;

/// Any address of this family.
pub fn every_address(family: Family) -> Ranges {
    Ranges::span(0, if family == Family::V4 { u32::MAX.into() } else { u128::MAX })
}

/// Any port.
pub fn every_port() -> Ranges {
    Ranges::span(0, 65_535)
}

/// Translates a path.
pub fn apply(path: &mut Path, nat: &Nat, place: &Place<'_>) {
    let family = place.packet.family;
    path.nat.get_or_insert_with(|| (place.at, nat.clone()));
    let addresses = |old: &Ranges| match &nat.addresses {
        Target::Kept => old.clone(),
        Target::Within(set) => set.clone(),
        Target::Own => place.host.own(family).cloned().unwrap_or_else(|| every_address(family)),
        Target::Any => every_address(family),
    };
    let ports = |old: &Ranges, kept: fn(&Ranges) -> Ranges| match &nat.ports {
        Target::Kept | Target::Own => kept(old),
        Target::Within(set) => set.clone(),
        Target::Any => every_port(),
    };
    if nat.kind == "tproxy" {
        // The packet stays as it is.
        path.asked.get_or_insert_with(|| (path.server.clone(), path.server_port.clone()));
    } else if destination(place.base.hook) {
        let new = (addresses(&path.server), ports(&path.server_port, Ranges::clone));
        let old =
            (std::mem::replace(&mut path.server, new.0), std::mem::replace(&mut path.server_port, new.1));
        path.asked.get_or_insert(old);
    } else {
        let new = (addresses(&path.client), ports(&path.client_port, source_ports));
        path.seen.get_or_insert(new);
        path.source_nat.get_or_insert_with(|| (place.at, nat.clone()));
    }
}

/// Whether translations at this hook are of destinations: HOOK2MANIP, include/net/netfilter/nf_nat.h, 6.12.
fn destination(hook: Hook) -> bool {
    matches!(hook, Hook::Prerouting | Hook::Output)
}

impl Path {
    /// Whether what this hook could translate has been translated already.
    pub fn has_translation_for(&self, hook: Hook) -> bool {
        if destination(hook) { self.asked.is_some() } else { self.seen.is_some() }
    }
}

/// The ports that a translated flow may get in place of its own if that is taken: nf_nat_l4proto_unique_tuple,
/// net/netfilter/nf_nat_core.c, 6.12.
fn source_ports(of: &Ranges) -> Ranges {
    let classes = [(1, 511, 1, 511), (512, 1023, 600, 1023), (1024, 65_535, 1024, 65_535)];
    let more = classes
        .into_iter()
        .filter(|(low, high, ..)| of.meets(&Ranges::span(*low, *high)))
        .map(|(_, _, first, last)| (first, last));
    Ranges::of(of.intervals().iter().copied().chain(more))
}
