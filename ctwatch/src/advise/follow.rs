//! Flows that come of others: a request that is let in asks the database next. What is held back in front comes there too.
//! Pure; who uses what is told by processes.

use super::demand::Service;
use super::target::ServiceTarget;

/// The server of `served` is a client of `used`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// The service in front.
    pub served: ServiceTarget,
    /// The one behind.
    pub used: ServiceTarget,
}

/// Raises the demand on services behind others by what those in front have to turn away now.
pub fn follow(services: &mut [Service], uses: &[Uses]) {
    let held_back: Vec<(ServiceTarget, f64)> = uses
        .iter()
        .filter_map(|Uses { served, used }| {
            let front = services.iter().find(|service| service.target() == *served)?;
            // Of the same window: what came to the one behind came of those that got in.
            let held_back = front.offered_per_s / front.admitted_per_s;
            (held_back > 1.0 && held_back.is_finite()).then_some((*used, held_back))
        })
        .collect();
    for service in services {
        let target = service.target();
        let factor =
            held_back.iter().filter(|(used, _)| *used == target).map(|(_, by)| *by).fold(1.0, f64::max);
        service.offered_per_s *= factor;
        service.pent_up *= factor;
        for stay in &mut service.stays {
            stay.per_s *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::demand::Stay;
    use crate::model::{Direction, TimeoutHistogram, TimeoutKind};

    fn service(port: u16, direction: Direction, offered: f64, pent_up: f64) -> Service {
        let idle = TimeoutHistogram::default();
        Service {
            proto: 6,
            port,
            direction,
            entries: 10,
            admitted_per_s: offered / pent_up,
            offered_per_s: offered,
            refused_per_s: 1.0,
            stays: vec![Stay {
                phase: TimeoutKind::TimeWait,
                timeout: 120,
                entries: 10,
                idle,
                per_s: offered,
            }],
            pent_up,
            pairs: Some(1),
        }
    }

    #[test]
    fn what_is_turned_away_in_front_would_come_to_the_service_behind() {
        let mut services =
            vec![service(80, Direction::In, 60.0, 2.0), service(6379, Direction::Loopback, 30.0, 1.0)];
        let uses = Uses { served: services[0].target(), used: services[1].target() };
        follow(&mut services, &[uses]);
        assert_eq!((services[1].offered_per_s, services[1].pent_up), (60.0, 2.0));
        assert_eq!(services[1].stays[0].per_s, 60.0);
        assert_eq!(services[0].offered_per_s, 60.0);
    }

    #[test]
    fn nothing_follows_from_a_service_that_turns_nobody_away() {
        let mut services =
            vec![service(80, Direction::In, 60.0, 1.0), service(6379, Direction::Loopback, 30.0, 1.0)];
        let uses = Uses { served: services[0].target(), used: services[1].target() };
        follow(&mut services, &[uses]);
        assert_eq!(services[1].offered_per_s, 30.0);
    }
}
