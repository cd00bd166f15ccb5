//! Connection reuse: the root fix where short connections fill the table.
//! Only for services whose entries are mostly closed connections.

use super::{ChangeKind, Draft, Item, Level, major_services};
use crate::advise::case::Case;
use crate::advise::demand::Service;
use crate::advise::whatif::Changes;
use crate::model::{Direction, TimeoutKind};

/// Requests a reused connection is taken to serve: nginx's keepalive_requests was 100 up to 1.19.9.
const REQUESTS: u32 = 100;
/// Closed connections are this part of the service's entries at least.
const CLOSED: f64 = 0.5;

pub(super) fn items(case: &Case) -> Vec<Item> {
    major_services(case)
        .filter(|(service, _)| service.proto == 6 && closed_part(service) >= CLOSED)
        .map(|(service, part)| item(case, service, part))
        .collect()
}

fn item(case: &Case, service: &Service, part: f64) -> Item {
    let target = service.target();
    let facts = case.facts(&target);
    let clients = facts.map(|facts| facts.clients.join(", ")).filter(|clients| !clients.is_empty());
    let server = facts.and_then(|facts| facts.server.clone()).unwrap_or_else(|| "the server".to_owned());
    let who = match (service.direction, &clients) {
        (Direction::In | Direction::Forwarded, _) => format!("its clients to {server}"),
        (_, Some(clients)) => format!("{clients} to {server}"),
        (_, None) => format!("its clients here to {server}"),
    };
    let mut item = Draft {
        id: format!("reuse-{}", super::super::slug(&target)),
        kind: ChangeKind::Reuse,
        title: format!("keep connections open from {who} on {}/tcp", service.port),
        evidence: format!(
            "{:.1} new connections/s to {target}, {:.0} % of its entries are closed ones; they need {:.0} % of the \
             table",
            service.offered_per_s,
            closed_part(service) * 100.0,
            part * 100.0
        ),
        change: Changes { keepalive: vec![(target, REQUESTS)], ..Changes::default() },
        // What clients elsewhere do is not ours to decide.
        risk: match service.direction {
            Direction::In | Direction::Forwarded => Level::Medium,
            Direction::Loopback | Direction::Out => Level::Low,
        },
        risk_text: match service.direction {
            Direction::In | Direction::Forwarded => {
                "clients decide: those that close after each request change nothing; idle connections hold memory \
                 in the server"
            }
            Direction::Loopback | Direction::Out => {
                "a connection that the other side has closed meanwhile fails at its next use: pools must test or \
                 retry"
            }
        }
        .to_owned(),
    }
    .on(case);
    item.notes.push(format!(
        "reckoned with {REQUESTS} requests a connection; `--what-if keepalive={target}:N` tries others"
    ));
    if let Some((what, settings)) = facts.and_then(|facts| facts.reuse.as_ref()) {
        item.notes.push(what.clone());
        item.settings.clone_from(settings);
    }
    item
}

/// Which part of a service's entries only waits after its connection is closed.
fn closed_part(service: &Service) -> f64 {
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
