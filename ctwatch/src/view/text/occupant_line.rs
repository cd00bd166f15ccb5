//! The line under a table's fill that names its top occupants.
//! It fits 80 columns: the smallest occupants are left out first.

use crate::contract::Occupant;
use crate::model::ServicePort;
use crate::text::{COLUMNS, percent, width};

/// The same indent as rows.
const INDENT: &str = "      ";
/// Occupants with a smaller share are not named.
const MIN_SHARE: f64 = 0.01;

/// None if no occupant has a share worth naming.
pub(super) fn line(occupants: &[Occupant], exact: bool) -> Option<String> {
    let doubt = if exact { "" } else { "about " };
    let mut line = format!("{INDENT}top occupants: ");
    let mut named = 0;
    for occupant in occupants.iter().filter(|occupant| occupant.share >= MIN_SHARE) {
        let separator = if named == 0 { doubt } else { ", " };
        let text = format!("{separator}{} {}{}", name(occupant), percent(occupant.share), state(occupant));
        if width(&line) + width(&text) > COLUMNS {
            break;
        }
        line += &text;
        named += 1;
    }
    (named > 0).then_some(line)
}

fn name(occupant: &Occupant) -> String {
    let Occupant { proto, port, icmp_type, icmp_code, .. } = *occupant;
    ServicePort::of_parts(proto, port, icmp_type.zip(icmp_code)).to_string()
}

fn state(occupant: &Occupant) -> String {
    match occupant.time_wait_share {
        Some(share) if share >= 0.5 => format!(" ({} TIME_WAIT)", percent(share)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use proptest::prelude::*;

    fn occupant(proto: u8, port: Option<u16>, share: f64, time_wait_share: Option<f64>) -> Occupant {
        Occupant {
            proto: Protocol(proto),
            port,
            service: None,
            icmp_type: port.is_none().then_some(8),
            icmp_code: port.is_none().then_some(0),
            entries: 1,
            share,
            new_per_s: 0.0,
            mean_lifetime_s: None,
            time_wait_share,
        }
    }

    #[test]
    fn the_story_names_its_culprit() {
        let occupants = [
            occupant(6, Some(6379), 0.71, Some(0.97)),
            occupant(6, Some(443), 0.12, Some(0.3)),
            occupant(1, None, 0.09, None),
            occupant(17, Some(53), 0.002, None),
        ];
        assert_eq!(
            line(&occupants, true).as_deref(),
            Some("      top occupants: 6379/tcp 71 % (97 % TIME_WAIT), 443/tcp 12 %")
        );
        assert_eq!(
            line(&occupants[1..], true).as_deref(),
            Some("      top occupants: 443/tcp 12 %, type 8 code 0/icmp 9 %")
        );
        assert!(line(&occupants[..1], false).is_some_and(|line| line.contains(": about 6379/tcp 71 %")));
        assert_eq!(line(&occupants[3..], true), None);
    }

    proptest! {
        #[test]
        fn it_fits(parts in prop::collection::vec((any::<u8>(), any::<u16>(), 0.0..=1.0f64), 0..6), exact: bool) {
            let occupants: Vec<_> = parts
                .iter()
                .map(|(proto, port, share)| occupant(*proto, Some(*port), *share, Some(*share)))
                .collect();
            let line = line(&occupants, exact);
            prop_assert!(line.is_none_or(|line| width(&line) <= COLUMNS));
        }
    }
}
