//! Changes to evaluate: another limit, other timeouts, untracked flows, reused connections.
//! Written `max=1048576,time_wait=30,notrack=6379/tcp/lo,keepalive=6379/tcp:50,times=2`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::target::ServiceTarget;
use crate::model::TimeoutKind;
use crate::text::did_you_mean;

/// What would be different.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes {
    /// nf_conntrack_max; 0 is unlimited.
    pub max: Option<u32>,
    /// Timeouts, seconds.
    pub timeouts: BTreeMap<TimeoutKind, u32>,
    /// Services whose flows are not tracked.
    pub notrack: Vec<ServiceTarget>,
    /// Services with reused connections, and how many requests each connection serves.
    pub keepalive: Vec<(ServiceTarget, u32)>,
    /// Multiple of the present rate.
    pub times: f64,
}

impl Default for Changes {
    fn default() -> Self {
        Self { max: None, timeouts: BTreeMap::new(), notrack: Vec::new(), keepalive: Vec::new(), times: 1.0 }
    }
}

impl Changes {
    /// Both changes; where both set the same thing, the other's value wins.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.max = other.max.or(both.max);
        both.timeouts.extend(&other.timeouts);
        both.notrack.extend(&other.notrack);
        both.keepalive.extend(&other.keepalive);
        both.times *= other.times;
        both
    }
}

const HELP: &str = "use max=N, times=K, notrack=PORT/PROTO/lo or \"type N/icmp\", keepalive=PORT/PROTO:REQUESTS, or a timeout in \
                    seconds: ";

impl FromStr for Changes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = |part: &str| {
            let names: Vec<&str> = TimeoutKind::ALL.into_iter().map(TimeoutKind::name).collect();
            let name = part.split('=').next().unwrap_or_default();
            let near =
                did_you_mean(name, names.iter().copied().chain(["max", "times", "notrack", "keepalive"]));
            format!("\"{part}\" is not a change; {HELP}{}{near}", names.join(", "))
        };
        let mut changes = Self::default();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| help(part))?;
            let (name, value) = (name.trim().to_lowercase().replace('-', "_"), value.trim());
            // As the sysctls are called.
            let name = name.strip_prefix("nf_conntrack_").unwrap_or(&name);
            let name = name.strip_prefix("tcp_timeout_").or(name.strip_suffix("_timeout")).unwrap_or(name);
            let number =
                || value.parse::<u32>().map_err(|_| format!("{name}={value}: {value} is not a whole number"));
            match name {
                "max" => changes.max = Some(number()?),
                "times" => {
                    changes.times = value
                        .parse::<f64>()
                        .ok()
                        .filter(|times| times.is_finite() && *times > 0.0)
                        .ok_or_else(|| format!("times={value}: use a number above 0, such as times=2"))?;
                }
                "notrack" => changes.notrack.push(value.parse()?),
                "keepalive" => {
                    let wrong = || format!("keepalive={value}: use PORT/PROTO:REQUESTS, such as 6379/tcp:50");
                    let (target, requests) = value.rsplit_once(':').ok_or_else(wrong)?;
                    let requests =
                        requests.parse().ok().filter(|requests| *requests > 0).ok_or_else(wrong)?;
                    changes.keepalive.push((target.parse()?, requests));
                }
                _ => {
                    let phase = TimeoutKind::from_name(name).ok_or_else(|| help(part))?;
                    changes.timeouts.insert(phase, number()?);
                }
            }
        }
        Ok(changes)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.max.map(|max| format!("max={max}")));
        parts.extend(self.timeouts.iter().map(|(phase, seconds)| format!("{phase}={seconds}")));
        parts.extend(self.notrack.iter().map(|target| format!("notrack={target}")));
        parts
            .extend(self.keepalive.iter().map(|(target, requests)| format!("keepalive={target}:{requests}")));
        if self.times != 1.0 {
            parts.push(format!("times={}", self.times));
        }
        f.write_str(&parts.join(","))
    }
}

impl Serialize for Changes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_as_they_are_written() {
        for text in [
            "max=1048576,time_wait=30,notrack=6379/tcp/lo",
            "keepalive=6379/tcp:50,times=2",
            "established=3600,udp=10,notrack=53/udp,notrack=443/tcp/in",
            "max=0",
        ] {
            let changes: Changes = text.parse().expect(text);
            assert_eq!(changes.to_string().parse::<Changes>().expect("its own words"), changes, "{text}");
        }
    }

    #[test]
    fn names_are_taken_as_sysctls_have_them_and_in_any_case() {
        for (text, means) in [
            ("MAX=5, Time-Wait=30", "max=5,time_wait=30"),
            ("nf_conntrack_max=5", "max=5"),
            ("nf_conntrack_tcp_timeout_close_wait=60", "close_wait=60"),
            ("nf_conntrack_udp_timeout=10", "udp=10"),
        ] {
            assert_eq!(text.parse::<Changes>().expect(text).to_string(), means);
        }
    }

    #[test]
    fn what_is_no_change_says_what_is() {
        for (text, hint) in [
            ("more", "time_wait"),
            ("size=5", "max=N"),
            ("max=lots", "whole number"),
            ("times=0", "times=2"),
            ("keepalive=6379", "6379/tcp:50"),
            ("keepalive=6379:0", "6379/tcp:50"),
            ("notrack=redis", "usually has 6379"),
            ("timewait=30", "did you mean `time_wait`?"),
            ("", "max=N"),
        ] {
            let said = text.parse::<Changes>().expect_err(text);
            assert!(said.contains(hint), "{text}: {said}");
        }
    }

    #[test]
    fn of_two_changes_to_one_thing_the_second_counts() {
        let one: Changes = "max=10,time_wait=30".parse().expect("right");
        let both = one.and(&"max=20,notrack=80".parse().expect("right"));
        assert_eq!(both.to_string(), "max=20,time_wait=30,notrack=80/tcp");
    }
}
