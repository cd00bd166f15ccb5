//! Individual losses: what `ctwatch drops --events` shows of each, as a row.
//! The state decides what is known; this file only maps it to columns.

use ctwatch_common::Cause;

use super::{Value, row};
use crate::contract::{Certainty, DropEvent, Event, Packet};
use crate::foreign::Foreign;
use crate::model::{Backend, Loss, Role};
use crate::state::{Filter, State, StateConfig};

/// Makes rows from losses.
pub(super) struct Drops(State);

impl Drops {
    pub fn new(backend: Backend) -> Self {
        Self(State::new(StateConfig {
            filter: Filter { causes: Cause::ALL.to_vec(), ..Filter::default() },
            drop_events: true,
            ..StateConfig::totals(backend, false)
        }))
    }

    pub fn row(&mut self, run: i64, tick: i64, name: Option<Foreign>, loss: &Loss) -> Option<[Value; 47]> {
        let Event::Drop(event) = self.0.loss(loss)? else { return None };
        let DropEvent { packet, reply, entry, pushed_out_by, process, .. } = &event;
        let Packet {
            netns,
            proto,
            src,
            sport,
            dst,
            dport,
            icmp_type,
            icmp_code,
            icmp_id,
            loopback,
            zone_original,
            zone_reply,
            ..
        } = packet;
        let by = pushed_out_by.flatten();
        let certainty = if event.certainty == Certainty::Exact { "exact" } else { "inferred" };
        let role = |role| if role == Role::Sender { "sender" } else { "listener" };
        Some(row![
            run,
            tick,
            event.time,
            event.cause.name(),
            certainty,
            netns.inode(),
            name,
            proto.map(|proto| proto.to_string()),
            src.map(|address| address.to_string()),
            *sport,
            dst.map(|address| address.to_string()),
            *dport,
            *icmp_type,
            *icmp_code,
            *icmp_id,
            *loopback,
            event.hook,
            event.input.clone(),
            event.output.clone(),
            event.count,
            event.max,
            event.fill,
            event.length,
            process.as_ref().map(|process| process.pid),
            process.as_ref().map(|process| process.name.clone()),
            process.as_ref().map(|process| role(process.role)),
            event.cgroup.clone(),
            event.container.clone(),
            event.nat,
            reply.map(|reply| reply.src.to_string()),
            reply.and_then(|reply| reply.sport),
            reply.map(|reply| reply.dst.to_string()),
            reply.and_then(|reply| reply.dport),
            entry.map(|entry| entry.assured),
            entry.map(|entry| entry.seen_reply),
            entry.and_then(|entry| entry.tcp_state),
            entry.and_then(|entry| entry.timeout_left_s),
            by.map(|by| by.proto.to_string()),
            by.map(|by| by.tuple.src.to_string()),
            by.and_then(|by| by.tuple.sport),
            by.map(|by| by.tuple.dst.to_string()),
            by.and_then(|by| by.tuple.dport),
            *zone_original,
            *zone_reply,
            by.and_then(|by| by.icmp_type),
            by.and_then(|by| by.icmp_code),
            by.and_then(|by| by.icmp_id),
        ])
    }
}
