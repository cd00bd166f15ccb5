//! Connection reuse: fixes the root cause where short connections fill the table.
//! Only for services whose entries are mostly closed connections.

use super::{ChangeKind, Draft, Item, Level, major_services};
use crate::advise::case::Case;
use crate::advise::demand::Service;
use crate::advise::whatif::Changes;
use crate::foreign::joined;
use crate::model::{Direction, Protocol, TimeoutKind};

/// Requests a reused connection is assumed to serve: nginx's keepalive_requests was 100 up to 1.19.9.
const REQUESTS: u32 = 100;
/// At least this share of the service's entries must be closed connections.
const MIN_CLOSED_SHARE: f64 = 0.5;

pub(super) fn items(case: &Case) -> Vec<Item> {
    major_services(case)
        .filter(|(service, _)| service.proto == Protocol::TCP && closed_share(service) >= MIN_CLOSED_SHARE)
        .map(|(service, part)| item(case, service, part))
        .collect()
}

fn item(case: &Case, service: &Service, part: f64) -> Item {
    let target = service.target();
    let facts = case.facts(&target);
    let clients = facts.map(|facts| joined(&facts.clients)).filter(|clients| !clients.is_empty());
    let server = facts
        .and_then(|facts| facts.server.as_ref())
        .map_or_else(|| "the server".to_owned(), ToString::to_string);
    let who = match (service.direction, &clients) {
        (Direction::In | Direction::Forwarded, _) => format!("remote clients to {server}"),
        (_, Some(clients)) => format!("{clients} to {server}"),
        (_, None) => format!("local clients to {server}"),
    };
    let mut item = Draft {
        id: format!("reuse-{}", super::super::slug(&target)),
        kind: ChangeKind::Reuse,
        title: format!("reuse connections from {who} on {}/tcp", service.port),
        evidence: format!(
            "{:.1} new connections/s to {target}; {:.0} % of its entries are closed connections; it accounts for {:.0} % \
             of the entries needed",
            service.offered_per_s,
            closed_share(service) * 100.0,
            part * 100.0
        ),
        change: Changes { keepalive: vec![(target, REQUESTS)], ..Changes::default() },
        // Remote clients are not under this host's control.
        risk: match service.direction {
            Direction::In | Direction::Forwarded => Level::Medium,
            Direction::Loopback | Direction::Out => Level::Low,
        },
        risk_text: match service.direction {
            Direction::In | Direction::Forwarded => {
                "depends on the clients: those that close after each request gain nothing; idle connections take \
                 memory in the server"
            }
            Direction::Loopback | Direction::Out => {
                "a pooled connection that the peer has closed fails on its next use: pools must validate or retry"
            }
        }
        .to_owned(),
    }
    .on(case);
    item.notes.push(format!(
        "assumes {REQUESTS} requests per connection; try other numbers with `--what-if keepalive={target}:N`"
    ));
    if let Some((what, settings)) = facts.and_then(|facts| facts.reuse.as_ref()) {
        item.notes.push(what.clone());
        item.settings.clone_from(settings);
    }
    item
}

/// Share of a service's entries that are closed connections waiting for their timeout.
fn closed_share(service: &Service) -> f64 {
    let of = |residences: &mut dyn Iterator<Item = f64>| residences.sum::<f64>();
    let all = of(&mut service.residences.iter().map(|residence| f64::from(residence.entries)));
    let closed = of(&mut service
        .residences
        .iter()
        .filter(|residence| {
            matches!(
                residence.phase,
                TimeoutKind::TimeWait | TimeoutKind::Close | TimeoutKind::LastAck | TimeoutKind::FinWait
            )
        })
        .map(|residence| f64::from(residence.entries)));
    if all > 0.0 { closed / all } else { 0.0 }
}
