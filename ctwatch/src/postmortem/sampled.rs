//! Affected flows, sources and processes: from the sampled events, each standing for its part of its tick's losses.
//! Estimates, and called so.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use anyhow::Result;
use ctwatch_common::cause::{CAUSES, Unit};

use super::model::Estimate;
use super::scan::Lossy;
use crate::model::{Loss, Owner, Packet, Role, ServicePort, Zone};
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;

/// Rows of each table.
const ROWS: usize = 8;
/// Ticks whose events are read at once.
const AT_ONCE: usize = 256;

type Sums<K> = HashMap<K, (f64, u64)>;

/// Equal tuples of two zones are two flows.
type Flow = (IpAddr, IpAddr, ServicePort, Option<Zone>);

/// Events kept, then estimates by flow, source and process.
type Estimates = (u64, Vec<Estimate>, Vec<Estimate>, Vec<Estimate>);

/// Reads the events of these ticks; counts those of packets, or of entries.
pub(super) fn estimate(
    recording: &Recording,
    lossy: &[Lossy],
    of_packets: bool,
    mut anonymizer: Option<&mut Anonymizer>,
) -> Result<Estimates> {
    let unit = if of_packets { Unit::Packets } else { Unit::Entries };
    let mut kept = 0;
    let mut flows: Sums<Flow> = HashMap::new();
    let mut sources: Sums<IpAddr> = HashMap::new();
    let mut processes: Sums<String> = HashMap::new();
    for ticks in lossy.chunks(AT_ONCE) {
        let (Some(first), Some(last)) = (ticks.first(), ticks.last()) else { continue };
        let mut events = recording.losses(first.first..=last.last)?.into_iter().peekable();
        for tick in ticks {
            while events.next_if(|(id, _)| *id < tick.first).is_some() {}
            let mut these = Vec::new();
            while let Some((_, mut loss)) = events.next_if(|(id, _)| *id <= tick.last) {
                if let Some(anonymizer) = anonymizer.as_deref_mut() {
                    anonymizer.loss(&mut loss);
                }
                these.push(loss);
            }
            let weights = weights(tick, &these);
            kept += these.len() as u64;
            for loss in &these {
                if loss.cause.unit() != unit {
                    continue;
                }
                let weight = weights[loss.cause as usize];
                add(&mut processes, process(loss.owner.as_deref()), weight);
                let Some((tuple, port)) = loss.packet.tuple.zip(port(&loss.packet)) else { continue };
                add(&mut sources, tuple.src, weight);
                add(&mut flows, (tuple.src, tuple.dst, port, loss.packet.zone), weight);
            }
        }
    }
    let shown = |address: IpAddr| address.to_string();
    let flow = |(src, dst, port, zone): Flow| {
        let zone = zone.map(Zone::suffix).unwrap_or_default();
        format!("{src} -> {dst} {port}{zone}")
    };
    Ok((kept, most(flows, flow), most(sources, shown), most(processes, |name| name)))
}

/// How many losses one event of each cause stands for.
fn weights(tick: &Lossy, events: &[Loss]) -> [f64; CAUSES] {
    let mut kept = [0_u32; CAUSES];
    for loss in events {
        kept[loss.cause as usize] += 1;
    }
    let mut weights = [0.0; CAUSES];
    for (cause, weight) in weights.iter_mut().enumerate() {
        *weight = (tick.losses[cause] as f64 / f64::from(kept[cause].max(1))).max(0.0);
    }
    weights
}

fn add<K: Eq + Hash>(sums: &mut Sums<K>, key: K, weight: f64) {
    let (about, events) = sums.entry(key).or_default();
    *about += weight;
    *events += 1;
}

fn most<K>(sums: Sums<K>, name: impl Fn(K) -> String) -> Vec<Estimate> {
    let mut rows: Vec<Estimate> =
        sums.into_iter().map(|(key, (about, events))| Estimate { what: name(key), about, events }).collect();
    rows.sort_by(|a, b| b.about.total_cmp(&a.about).then_with(|| a.what.cmp(&b.what)));
    rows.truncate(ROWS);
    rows
}

/// Worker processes of one name in one container are one row.
fn process(who: Option<&Owner>) -> String {
    let Some(process) = who.and_then(|who| who.process) else { return "unknown".to_owned() };
    let name = process.name;
    let role = match process.role {
        Role::Sender => "sender",
        Role::Listener => "listener",
    };
    match who.and_then(|who| who.container.as_ref()) {
        Some(container) => format!("{name} ({role}, {container})"),
        None => format!("{name} ({role})"),
    }
}

fn port(packet: &Packet) -> Option<ServicePort> {
    Some(ServicePort { proto: packet.proto?, port: packet.service_port()? })
}
