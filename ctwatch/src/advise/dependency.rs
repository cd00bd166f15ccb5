//! Flows that depend on others: an admitted request queries the database next, so load dropped in front is missing there.
//! Pure; which service depends on which is derived from processes.

use super::demand::Service;
use super::target::ServiceTarget;

/// The server of `front` is a client of `backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The service in front.
    pub front: ServiceTarget,
    /// The one behind.
    pub backend: ServiceTarget,
}

/// Raises the demand on backends by the factor of what the services in front of them drop now.
pub fn propagate_demand(services: &mut [Service], uses: &[Dependency]) {
    let held_back: Vec<(ServiceTarget, f64)> = uses
        .iter()
        .filter_map(|Dependency { front, backend }| {
            let front = services.iter().find(|service| service.target() == *front)?;
            // Of the same window: what came to the one behind came of those that got in.
            let held_back = front.offered_per_s / front.admitted_per_s;
            (held_back > 1.0 && held_back.is_finite()).then_some((*backend, held_back))
        })
        .collect();
    for service in services {
        let target = service.target();
        let factor =
            held_back.iter().filter(|(backend, _)| *backend == target).map(|(_, by)| *by).fold(1.0, f64::max);
        service.offered_per_s *= factor;
        service.backlog_factor *= factor;
        for residence in &mut service.residences {
            residence.per_s *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::demand::Residence;
    use crate::model::{Direction, Protocol, TimeoutHistogram, TimeoutKind};

    fn service(port: u16, direction: Direction, offered: f64, backlog_factor: f64) -> Service {
        let idle = TimeoutHistogram::default();
        Service {
            proto: Protocol::TCP,
            port,
            direction,
            entries: 10,
            admitted_per_s: offered / backlog_factor,
            offered_per_s: offered,
            refused_per_s: 1.0,
            residences: vec![Residence {
                phase: TimeoutKind::TimeWait,
                timeout: 120,
                entries: 10,
                idle,
                per_s: offered,
                assumed: false,
            }],
            backlog_factor,
            pairs: Some(1),
            earlier: None,
            basis: Default::default(),
        }
    }

    #[test]
    fn what_is_turned_away_in_front_would_come_to_the_service_behind() {
        let mut services =
            vec![service(80, Direction::In, 60.0, 2.0), service(6379, Direction::Loopback, 30.0, 1.0)];
        let uses = Dependency { front: services[0].target(), backend: services[1].target() };
        propagate_demand(&mut services, &[uses]);
        assert_eq!((services[1].offered_per_s, services[1].backlog_factor), (60.0, 2.0));
        assert_eq!(services[1].residences[0].per_s, 60.0);
        assert_eq!(services[0].offered_per_s, 60.0);
    }

    #[test]
    fn nothing_follows_from_a_service_that_turns_nobody_away() {
        let mut services =
            vec![service(80, Direction::In, 60.0, 1.0), service(6379, Direction::Loopback, 30.0, 1.0)];
        let uses = Dependency { front: services[0].target(), backend: services[1].target() };
        propagate_demand(&mut services, &[uses]);
        assert_eq!(services[1].offered_per_s, 30.0);
    }
}
