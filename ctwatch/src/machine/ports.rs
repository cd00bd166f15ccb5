//! How many connections one address can have to one destination at a time: the limit besides the table's.
//! Configuration of this netns only; how many are in use is measured elsewhere.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::file;
use crate::kernel::roots::Roots;

/// The ports that outgoing connections get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EphemeralPorts {
    /// The first.
    pub low: u16,
    /// The last.
    pub high: u16,
    /// Those of them that ip_local_reserved_ports keeps back.
    pub reserved: u32,
    /// tcp_tw_reuse: 0 never, 1 always, 2 on loopback: whether a connection in TIME_WAIT gives its port away after 1 s.
    pub tw_reuse: Option<u8>,
    /// tcp_timestamps, without which tw_reuse does nothing.
    pub timestamps: Option<bool>,
}

impl EphemeralPorts {
    /// Connections that one source address can have to one destination address and port.
    #[must_use]
    pub fn ceiling(&self) -> u32 {
        (u32::from(self.high) + 1).saturating_sub(u32::from(self.low)).saturating_sub(self.reserved)
    }

    /// Whether a port in TIME_WAIT is used again at once for a connection of this kind.
    #[must_use]
    pub fn reuses_time_wait(&self, loopback: bool) -> Option<bool> {
        let allowed = match self.tw_reuse? {
            0 => false,
            1 => true,
            _ => loopback,
        };
        Some(allowed && self.timestamps?)
    }
}

/// Reads them for this thread's netns.
pub(super) fn read(roots: &Roots) -> Option<EphemeralPorts> {
    from_sysctls(|name| file::text(&roots.proc(format!("sys/net/ipv4/{name}"))))
}

/// From the values of these sysctls of net.ipv4.
pub fn from_sysctls(value: impl Fn(&str) -> Option<String>) -> Option<EphemeralPorts> {
    let range = value("ip_local_port_range")?;
    let mut bounds = range.split_ascii_whitespace().map(str::parse);
    let (low, high) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    // Where that can't be read there may be any.
    let reserved = value("ip_local_reserved_ports")?;
    let number = |name: &str| value(name)?.trim().parse::<u8>().ok();
    Some(EphemeralPorts {
        low,
        high,
        reserved: count_within(&reserved, low..=high),
        tw_reuse: number("tcp_tw_reuse"),
        timestamps: number("tcp_timestamps").map(|value| value != 0),
    })
}

/// How many numbers of a list like "8080,30000-32767" lie in the range. The kernel prints it sorted, without overlap
/// (proc_do_large_bitmap, kernel/sysctl.c).
fn count_within(list: &str, range: RangeInclusive<u16>) -> u32 {
    let spans = list.split(',').filter_map(|part| {
        let part = part.trim();
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse::<u16>().ok()?, last.parse::<u16>().ok()?))
    });
    let within = |(first, last): (u16, u16)| {
        let (first, last) = (u32::from(first.max(*range.start())), u32::from(last.min(*range.end())));
        (last + 1).saturating_sub(first)
    };
    spans.map(within).sum()
}

/// CPUs in a list like "0-3,5".
pub(crate) fn cpus(list: &str) -> Option<u32> {
    let count = count_within(list, 0..=u16::MAX);
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn reserved_ports_outside_of_the_range_take_nothing_away() {
        assert_eq!(count_within("", 32_768..=60_999), 0);
        assert_eq!(count_within("8080,9148", 32_768..=60_999), 0);
        assert_eq!(count_within("30000-32767,32768,40000-40009,60999-65535", 32_768..=60_999), 12);
    }

    #[test]
    fn the_usual_range_is_28232_connections() {
        let ports = |reserved, tw_reuse, timestamps| EphemeralPorts {
            low: 32_768,
            high: 60_999,
            reserved,
            tw_reuse: Some(tw_reuse),
            timestamps: Some(timestamps),
        };
        assert_eq!(ports(0, 2, true).ceiling(), 28_232);
        assert_eq!(ports(232, 2, true).ceiling(), 28_000);
        assert_eq!(ports(0, 2, true).reuses_time_wait(true), Some(true));
        assert_eq!(ports(0, 2, true).reuses_time_wait(false), Some(false));
        assert_eq!(ports(0, 1, false).reuses_time_wait(false), Some(false));
    }

    #[test]
    fn where_the_reserved_ports_are_unknown_so_is_how_many_are_left() {
        let of = |reserved: Option<&str>| {
            from_sysctls(|name| match name {
                "ip_local_port_range" => Some("32768\t60999".to_owned()),
                "ip_local_reserved_ports" => reserved.map(str::to_owned),
                _ => None,
            })
        };
        assert_eq!(of(Some("")).map(|ports| ports.ceiling()), Some(28_232));
        assert_eq!(of(Some("40000-40099")).map(|ports| ports.ceiling()), Some(28_132));
        assert_eq!(of(None), None);
    }

    #[test]
    fn a_long_list_of_reserved_ports_is_read_whole() {
        // In a netns of its own, as no setting of this host is changed.
        let list: Vec<String> = (0..400).map(|number| (40_000 + 2 * number).to_string()).collect();
        let found = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            let file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
            std::fs::write(file, list.join(",")).ok()?;
            Some(read(&Roots::default()))
        });
        // Without the right to make one there is nothing to see.
        if let Some(found) = found.join().unwrap() {
            assert_eq!(found.map(|ports| ports.reserved), Some(400));
        }
    }

    #[test]
    fn cpus_are_counted_from_the_kernel_s_list() {
        assert_eq!(cpus("0-1"), Some(2));
        assert_eq!(cpus("0-3,8,10-11"), Some(7));
        assert_eq!(cpus(""), None);
    }

    proptest! {
        #[test]
        fn a_list_is_counted_as_a_set_of_ports_would_be(
            ports in prop::collection::btree_set(any::<u16>(), 0..200), low: u16, high: u16,
        ) {
            // As the kernel prints it: neighbours joined.
            let mut spans: Vec<(u16, u16)> = Vec::new();
            for port in &ports {
                match spans.last_mut() {
                    Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
                    _ => spans.push((*port, *port)),
                }
            }
            let list: Vec<String> = spans
                .iter()
                .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
                .collect();
            let wanted: BTreeSet<_> = ports.iter().filter(|port| (low..=high).contains(*port)).collect();
            prop_assert_eq!(count_within(&list.join(","), low..=high) as usize, wanted.len());
        }
    }
}
