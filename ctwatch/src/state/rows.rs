//! From tallied keys to the rows of a report: sorted, cut at the top, the cut summed up.
//! Whatever is cut, the rows of a report add up to all losses it is about.

use std::cmp::Reverse;

use ctwatch_common::Cause;
use ctwatch_common::cause::{CAUSES, Unit};

use super::by::By;
use super::containers::Containers;
use super::key::Fields;
use super::namespaces::Namespaces;
use super::tally::{Sum, Tallied};
use super::unattributed::Unattributed;
use crate::contract::{Certainty, Process, Row};
use crate::model::{Backend, NetnsId, Protocol, Zone, service};

/// What rows look like in this run.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowBuilder<'a> {
    pub by: By,
    pub top: usize,
    pub backend: Backend,
    /// Causes of which keyed rows may lack some losses.
    pub incomplete: [bool; CAUSES],
    /// Causes of which the sum of all rows may lack some losses.
    pub sampled: [bool; CAUSES],
    /// Where losses of unknown key may belong to any row of that netns and cause.
    pub unattributed: &'a Unattributed,
    /// What the numbers in keys stand for.
    pub containers: &'a Containers,
    pub namespaces: &'a Namespaces,
}

impl RowBuilder<'_> {
    /// `rest` and `overflow` are losses without a key, by cause.
    pub fn rows(
        &self,
        mut tallied: Vec<Tallied>,
        rest: &[Sum; CAUSES],
        overflow: &[Sum; CAUSES],
    ) -> Vec<Row> {
        let rank = |row: &Tallied| (Reverse(row.losses), Reverse(row.total), row.key);
        if tallied.len() > self.top {
            tallied.select_nth_unstable_by_key(self.top, rank);
        }
        let cut = tallied.split_off(self.top.min(tallied.len()));
        tallied.sort_unstable_by_key(rank);

        let mut rows: Vec<Row> = tallied.iter().filter_map(|row| self.row(row)).collect();
        rows.extend(
            Cause::ALL.into_iter().filter_map(|cause| self.overflow_row(cause, &overflow[cause as usize])),
        );
        let keyed = cut.iter().filter_map(|row| {
            let cause = Cause::from_number(row.key.cause())?;
            let sum = Sum { losses: row.losses, total: row.total };
            Some((cause, sum, self.is_exact(cause, row)))
        });
        let keyless =
            Cause::ALL.into_iter().map(|cause| (cause, rest[cause as usize], !self.sampled[cause as usize]));
        rows.extend(self.rest_rows(keyed.chain(keyless)));
        rows
    }

    fn is_exact(&self, cause: Cause, row: &Tallied) -> bool {
        if row.key.unattributed() {
            return !self.sampled[cause as usize];
        }
        row.whole && !self.incomplete[cause as usize] && !self.may_lack_unattributed(cause, row)
    }

    fn may_lack_unattributed(&self, cause: Cause, row: &Tallied) -> bool {
        match self.by {
            // Those without an owner are all there: it is the others that may lack some.
            By::Process if row.key.fields().process().is_none() => false,
            By::Container if row.key.fields().container() == 0 => false,
            By::Proto | By::Cause => self.unattributed.is_any(cause),
            _ => self.unattributed.may_be_in(NetnsId::from_packed(row.key.fields().netns), cause),
        }
    }

    fn row(&self, tallied: &Tallied) -> Option<Row> {
        let fields = tallied.key.fields();
        let cause = Cause::from_number(fields.cause)?;
        let mut row = Row {
            cause: Some(cause),
            losses: tallied.losses,
            losses_total: tallied.total,
            exact: self.is_exact(cause, tallied),
            ..blank(cause.unit(), certainty(self.backend, cause))
        };
        if fields.unattributed() {
            row.unattributed = true;
            row.netns = Some(NetnsId::from_packed(fields.netns));
            row.proto = (fields.proto != 0).then_some(Protocol(fields.proto));
        } else {
            self.fill_in(&mut row, &fields);
        }
        Some(row)
    }

    /// The dimensions that `--by` asks for.
    fn fill_in(&self, row: &mut Row, fields: &Fields) {
        let proto = Protocol(fields.proto);
        if !matches!(self.by, By::Proto | By::Cause) {
            row.netns = Some(NetnsId::from_packed(fields.netns));
        }
        match self.by {
            By::Netns => {
                row.name = Some(self.namespaces.name_of(NetnsId::from_packed(fields.netns)).cloned())
            }
            By::Process => row.process = Some(fields.process().map(|process| Process::from(&process))),
            By::Container => {
                row.container = Some(self.containers.name(fields.container()).cloned());
            }
            _ => {}
        }
        if matches!(self.by, By::Port | By::Flow | By::Proto) {
            row.proto = Some(proto);
        }
        if matches!(self.by, By::Flow | By::Src) {
            row.src = fields.addresses().0;
        }
        if matches!(self.by, By::Flow | By::Dst) {
            row.dst = fields.addresses().1;
        }
        if !matches!(self.by, By::Port | By::Flow) {
            return;
        }
        row.loopback = Some(fields.loopback());
        (row.zone_original, row.zone_reply) =
            (fields.zone().map(Zone::original), fields.zone().map(Zone::reply));
        let flow = self.by == By::Flow;
        if proto.is_icmp() {
            let [kind, code] = fields.port.to_be_bytes();
            (row.icmp_type, row.icmp_code) = (Some(kind), Some(code));
            row.icmp_id = flow.then_some(fields.sport);
        } else if proto.has_ports() {
            row.port = Some(fields.port);
            row.service = Some(service(proto, fields.port));
            row.sport = flow.then_some(fields.sport);
            row.dport = flow.then_some(fields.port);
        }
    }

    fn overflow_row(&self, cause: Cause, sum: &Sum) -> Option<Row> {
        (sum.losses > 0).then(|| Row {
            rest: true,
            overflow: true,
            cause: Some(cause),
            losses: sum.losses,
            losses_total: sum.total,
            exact: true,
            ..blank(cause.unit(), certainty(self.backend, cause))
        })
    }

    /// One row per unit, since packets and entries are never added up.
    fn rest_rows(&self, cut: impl Iterator<Item = (Cause, Sum, bool)>) -> impl Iterator<Item = Row> {
        let mut rests = [Unit::Packets, Unit::Entries].map(|unit| blank(unit, Certainty::Exact));
        let [packets, entries] = &mut rests;
        for (cause, sum, exact) in cut.filter(|(_, sum, _)| sum.losses > 0) {
            let row = match cause.unit() {
                Unit::Packets => &mut *packets,
                Unit::Entries => &mut *entries,
            };
            // The first one names the cause, another one takes the name away again.
            row.cause = if row.losses == 0 { Some(cause) } else { row.cause.filter(|named| *named == cause) };
            row.rest = true;
            row.losses += sum.losses;
            row.losses_total += sum.total;
            row.exact &= exact;
            if certainty(self.backend, cause) == Certainty::Inferred {
                row.certainty = Certainty::Inferred;
            }
        }
        rests.into_iter().filter(|row| row.losses > 0)
    }
}

/// Whether a cause is known or inferred.
pub(super) fn certainty(backend: Backend, cause: Cause) -> Certainty {
    if backend == Backend::Kprobe && cause != Cause::TcpRace { Certainty::Exact } else { Certainty::Inferred }
}

fn blank(unit: Unit, certainty: Certainty) -> Row {
    Row {
        netns: None,
        name: None,
        process: None,
        container: None,
        proto: None,
        src: None,
        sport: None,
        dst: None,
        dport: None,
        port: None,
        service: None,
        icmp_type: None,
        icmp_code: None,
        icmp_id: None,
        loopback: None,
        zone_original: None,
        zone_reply: None,
        unattributed: false,
        rest: false,
        overflow: false,
        cause: None,
        unit,
        losses: 0,
        losses_total: 0,
        certainty,
        exact: true,
    }
}
