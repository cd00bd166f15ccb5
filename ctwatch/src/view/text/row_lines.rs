//! One row per key with losses. A key too long for its column gets lines of its own.
//! Addresses are never cut off.

use std::net::IpAddr;

use ctwatch_common::cause::Unit;

use crate::contract::{Certainty, Process, Row};
use crate::model::{Role, Zone};
use crate::state::By;
use crate::text::{ALERT, COLUMNS, FAINT, Paint, left, thousands, width};

/// Widths of the columns; with a space between them they fill 80 exactly.
const LOST: usize = 10;
const UNIT: usize = 7;
const WHAT: usize = 25;
const PATH: usize = 8;
const CAUSE: usize = 15;
const TOTAL: usize = 10;
const _: () = assert!(LOST + UNIT + WHAT + PATH + CAUSE + TOTAL + 5 == COLUMNS);

/// Column where the key starts.
const KEY_AT: usize = LOST + UNIT + 2;

/// What these rows stand for, judged by their fields. Rows that sum up others don't tell.
pub(super) fn by(rows: &[Row]) -> Option<By> {
    let row = rows.iter().find(|row| !(row.rest || row.unattributed))?;
    if row.process.is_some() {
        return Some(By::Process);
    }
    if row.container.is_some() {
        return Some(By::Container);
    }
    Some(match (row.src, row.dst, row.loopback, row.proto, row.netns) {
        (Some(_), Some(_), ..) => By::Flow,
        (Some(_), None, ..) => By::Src,
        (None, Some(_), ..) => By::Dst,
        (None, None, Some(_), ..) => By::Port,
        (None, None, None, Some(_), _) => By::Proto,
        (None, None, None, None, Some(_)) => By::Netns,
        (None, None, None, None, None) => By::Cause,
    })
}

pub(super) fn header(by: By, paint: Paint) -> String {
    let what = match by {
        By::Port => "proto   port service",
        By::Flow => "flow",
        By::Src => "source",
        By::Dst => "destination",
        By::Proto => "protocol",
        By::Cause => "",
        By::Netns => "netns",
        By::Process => "process",
        By::Container => "container",
    };
    let path = match by {
        By::Port | By::Flow => "path",
        By::Process => "role",
        _ => "",
    };
    let header = format!(
        "{:>LOST$} {:UNIT$} {what:WHAT$} {path:PATH$} {:CAUSE$} {:>TOTAL$}",
        "lost", "", "cause", "total"
    );
    paint.on(FAINT, header.trim_end())
}

/// `netns_name` is only needed for rows by netns.
pub(super) fn lines(by: By, row: &Row, netns_name: &str, paint: Paint) -> Vec<String> {
    let what = what(by, row, netns_name);
    let lost = format!("{:>LOST$}", format!("{}{}", mark(row), thousands(row.losses)));
    let unit = match (row.unit, row.losses) {
        (Unit::Packets, 1) => "packet",
        (Unit::Entries, 1) => "entry",
        (unit, _) => unit.name(),
    };
    let lost = format!("{} {unit:UNIT$}", paint.on(ALERT, &lost));
    let path = match &row.process {
        Some(Some(process)) => role(process.role),
        _ if row.loopback == Some(true) => "loopback",
        _ => "",
    };
    let cause = row.cause.map_or("several", |cause| cause.name());
    let doubt = if row.certainty == Certainty::Inferred { "?" } else { "" };
    let total = format!("{}{}", mark(row), thousands(row.losses_total));
    let tail = format!("{path:PATH$} {:CAUSE$} {total:>TOTAL$}", format!("{cause}{doubt}"));

    let mut keys = vec![what];
    if width(&keys[0]) <= WHAT {
        return vec![format!("{lost} {} {tail}", left(&keys[0], WHAT))];
    }
    if KEY_AT + width(&keys[0]) > COLUMNS {
        keys = split_at_arrow(&keys[0]);
    }
    let indent = " ".repeat(KEY_AT);
    let mut lines = vec![format!("{lost} {}", keys[0])];
    lines.extend(keys[1..].iter().map(|key| format!("{indent}{key}")));
    lines.push(format!("{indent}{:WHAT$} {tail}", ""));
    lines
}

/// "≥" where losses may be missing, "~" where the cause is a guess as well.
fn mark(row: &Row) -> &'static str {
    match (row.exact, row.certainty) {
        (true, _) => "",
        (false, Certainty::Exact) => "≥",
        (false, Certainty::Inferred) => "~",
    }
}

fn what(by: By, row: &Row, netns_name: &str) -> String {
    if row.overflow {
        return "no free counter".to_owned();
    }
    if row.rest {
        return match by {
            By::Port => "other ports",
            By::Flow => "other flows",
            By::Src => "other sources",
            By::Dst => "other destinations",
            By::Proto => "other protocols",
            By::Cause => "other causes",
            By::Netns => "other netns",
            By::Process => "other processes",
            By::Container => "other containers",
        }
        .to_owned();
    }
    let proto = row.proto.map(|proto| proto.to_string()).unwrap_or_default();
    if row.unattributed {
        let unknown = if matches!(by, By::Port) { "port unknown" } else { "tuple unknown" };
        return format!("{proto:<6} {unknown}");
    }
    match by {
        By::Port => match (row.port, row.icmp_type, row.icmp_code) {
            (Some(port), _, _) => format!("{proto:<6} {port:>5} {}", service(row)).trim_end().to_owned(),
            (None, Some(kind), Some(code)) => format!("{proto:<6} type {kind} code {code}"),
            _ => proto,
        },
        By::Flow => flow(row, &proto),
        By::Src => row.src.map(|address| address.to_string()).unwrap_or_default(),
        By::Dst => row.dst.map(|address| address.to_string()).unwrap_or_default(),
        By::Proto => proto,
        By::Cause => String::new(),
        By::Netns => netns_name.to_owned(),
        By::Process => row.process.iter().flatten().next().map_or_else(|| UNKNOWN.to_owned(), process),
        By::Container => {
            row.container.iter().flatten().next().map_or_else(|| UNKNOWN.to_owned(), ToString::to_string)
        }
    }
}

/// The owner is not known for certain; no guess is made.
const UNKNOWN: &str = "unknown";

/// "nginx[812]"
pub(super) fn process(process: &Process) -> String {
    format!("{}[{}]", process.name, process.pid)
}

pub(super) const fn role(role: Role) -> &'static str {
    match role {
        Role::Sender => "sender",
        Role::Listener => "listener",
    }
}

fn flow(row: &Row, proto: &str) -> String {
    let src = endpoint(row.src, row.sport);
    let dst = endpoint(row.dst, row.dport);
    let detail = match (row.icmp_type, row.icmp_code, row.icmp_id) {
        (Some(kind), Some(code), Some(id)) => format!("type {kind} code {code} id {id}"),
        _ => service(row).to_owned(),
    };
    let zone = zone(row.zone_original, row.zone_reply);
    format!("{proto} {src} -> {dst} {detail}{zone}").trim_end().to_owned()
}

/// A zone that isn't the default one, and if it holds in one direction only, in which.
pub(super) fn zone(original: Option<u16>, reply: Option<u16>) -> String {
    let zone = original.zip(reply).and_then(|(original, reply)| Zone::new(original, reply));
    zone.map(Zone::suffix).unwrap_or_default()
}

fn service(row: &Row) -> &'static str {
    row.service.flatten().unwrap_or("")
}

pub(super) fn endpoint(address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (None, _) => "?".to_owned(),
        (Some(address), None) => address.to_string(),
        (Some(IpAddr::V4(address)), Some(port)) => format!("{address}:{port}"),
        (Some(IpAddr::V6(address)), Some(port)) => format!("[{address}]:{port}"),
    }
}

fn split_at_arrow(flow: &str) -> Vec<String> {
    match flow.split_once(" -> ") {
        Some((from, to)) if KEY_AT + width(to) + 3 <= COLUMNS => vec![from.to_owned(), format!("-> {to}")],
        Some((from, to)) => {
            let (to, detail) = to.split_once(' ').unwrap_or((to, ""));
            vec![from.to_owned(), format!("-> {to}"), format!("   {detail}")]
        }
        None => vec![flow.to_owned()],
    }
}
