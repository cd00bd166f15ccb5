//! The timeout sysctls of this netns, by protocol and state, beside the kernel's defaults.
//! The live values count: the defaults only show what has been changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::file;
use crate::kernel::roots::Roots;

/// One timeout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeoutSetting {
    /// The sysctl: "net.netfilter.nf_conntrack_tcp_timeout_time_wait".
    pub sysctl: String,
    /// In force.
    pub seconds: u32,
    /// The kernel's own (5.10 to 7.3), if known.
    pub default: Option<u32>,
}

impl TimeoutSetting {
    /// Whether somebody changed it.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.default.is_some_and(|default| default != self.seconds)
    }
}

/// Timeouts by short name: "tcp_time_wait", "udp", "udp_stream", "icmp", "generic".
pub type TimeoutSettings = BTreeMap<String, TimeoutSetting>;

/// Defaults in seconds. The tables tcp_timeouts, udp_timeouts … of net/netfilter/nf_conntrack_proto_*.c, and
/// nf_ct_generic_timeout and gre_timeouts beside them; the same in 5.10, 6.12 and 7.3 for all that each of them has.
const DEFAULTS: [(&str, u32); 34] = [
    ("dccp_closereq", 64),
    ("dccp_closing", 64),
    ("dccp_open", 43_200),
    ("dccp_partopen", 480),
    ("dccp_request", 240),
    ("dccp_respond", 480),
    ("dccp_timewait", 240),
    ("generic", 600),
    ("gre", 30),
    ("gre_stream", 180),
    ("icmp", 30),
    ("icmpv6", 30),
    ("sctp_closed", 10),
    ("sctp_cookie_echoed", 3),
    ("sctp_cookie_wait", 3),
    ("sctp_established", 210),
    ("sctp_heartbeat_acked", 210),
    ("sctp_heartbeat_sent", 30),
    ("sctp_shutdown_ack_sent", 3),
    ("sctp_shutdown_recd", 3),
    ("sctp_shutdown_sent", 3),
    ("tcp_close", 10),
    ("tcp_close_wait", 60),
    ("tcp_established", 432_000),
    ("tcp_fin_wait", 120),
    ("tcp_last_ack", 30),
    ("tcp_max_retrans", 300),
    ("tcp_syn_recv", 60),
    ("tcp_syn_sent", 120),
    ("tcp_syn_sent2", 120),
    ("tcp_time_wait", 120),
    ("tcp_unacknowledged", 300),
    ("udp", 30),
    ("udp_stream", 120),
];

/// The kernel's own value of a timeout by its short name.
#[must_use]
pub fn default_of(name: &str) -> Option<u32> {
    DEFAULTS.iter().find(|(known, _)| *known == name).map(|(_, seconds)| *seconds)
}

/// All timeouts of this thread's netns.
pub(crate) fn read(roots: &Roots) -> TimeoutSettings {
    let folder = roots.proc("sys/net/netfilter");
    let mut timeouts = TimeoutSettings::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let Some((name, file)) = file.to_str().and_then(|file| Some((short_name(file)?, file))) else {
            continue;
        };
        if let Some(seconds) = file::value(&entry.path()) {
            let default = default_of(&name);
            timeouts
                .insert(name, TimeoutSetting { sysctl: format!("net.netfilter.{file}"), seconds, default });
        }
    }
    timeouts
}

/// "nf_conntrack_tcp_timeout_time_wait" → "tcp_time_wait", "nf_conntrack_udp_timeout" → "udp"
fn short_name(file: &str) -> Option<String> {
    let name = file.strip_prefix("nf_conntrack_")?;
    // Fragments that wait for their rest aren't entries.
    if name.starts_with("frag6") {
        return None;
    }
    match name.split_once("_timeout")? {
        (proto, "") => Some(proto.to_owned()),
        (proto, state) => Some(format!("{proto}_{}", state.strip_prefix('_')?)),
    }
}

/// Settings that change what is tracked, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// Connections already under way become entries.
    pub tcp_loose: Option<bool>,
    /// Packets outside of the window are no reason to call a connection invalid.
    pub tcp_be_liberal: Option<bool>,
    /// Entries count packets and bytes, and so have an extension.
    pub acct: Option<bool>,
    /// Entries know when they began, and so have an extension.
    pub timestamp: Option<bool>,
    /// Helpers are attached by port (up to 5.x; later kernels don't have it).
    pub helper: Option<bool>,
    /// 0: no events; 1: every entry has an extension for them; 2: only while a process listens.
    pub events: Option<u8>,
}

/// Reads them.
pub(super) fn read_tracking(roots: &Roots) -> Tracking {
    let value = |name: &str| file::value::<u8>(&roots.proc(format!("sys/net/netfilter/nf_conntrack_{name}")));
    let flag = |name: &str| value(name).map(|value| value != 0);
    Tracking {
        tcp_loose: flag("tcp_loose"),
        tcp_be_liberal: flag("tcp_be_liberal"),
        acct: flag("acct"),
        timestamp: flag("timestamp"),
        helper: flag("helper"),
        events: value("events"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_called_after_protocol_and_state() {
        for (file, name) in [
            ("nf_conntrack_tcp_timeout_time_wait", Some("tcp_time_wait")),
            ("nf_conntrack_udp_timeout", Some("udp")),
            ("nf_conntrack_udp_timeout_stream", Some("udp_stream")),
            ("nf_conntrack_icmpv6_timeout", Some("icmpv6")),
            ("nf_conntrack_tcp_max_retrans", None),
            ("nf_conntrack_frag6_timeout", None),
            ("nf_flowtable_tcp_timeout", None),
            ("nf_conntrack_max", None),
        ] {
            assert_eq!(short_name(file).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn defaults_are_sorted_and_named_once() {
        assert!(DEFAULTS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
