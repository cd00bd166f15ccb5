//! Conntrack's states by number, as `conntrack -L` spells them.
//! Numbers come from the kernel: one that is not in a list has no name.

use super::Protocol;

/// enum tcp_conntrack, include/uapi/linux/netfilter/nf_conntrack_tcp.h
pub const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// enum sctp_conntrack, include/uapi/linux/netfilter/nf_conntrack_sctp.h
const SCTP_STATES: [&str; 10] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
    "HEARTBEAT_ACKED",
];

/// A state as `conntrack -L` spells it; "REPLIED" where it says neither UNREPLIED nor ASSURED.
#[must_use]
pub fn state_name(proto: Protocol, state: u8) -> &'static str {
    let name = match proto {
        Protocol::TCP => TCP_STATES.get(usize::from(state)),
        Protocol::SCTP => SCTP_STATES.get(usize::from(state)),
        _ => ["UNREPLIED", "REPLIED", "ASSURED"].get(usize::from(state)),
    };
    name.copied().unwrap_or("unknown")
}
