//! Does anything make conntrack track in a netns? An empty table alone doesn't tell.
//! Asked only where a table is empty; the kernel's list of hooks is read, no rule set is.

use crate::kernel::netlink::{self, Next};

/// NFNL_SUBSYS_HOOK << 8 | NFNL_MSG_HOOK_GET, include/uapi/linux/netfilter/nfnetlink_hook.h
const HOOK_GET: u16 = 12 << 8;
const NFNLA_HOOK_HOOKNUM: u16 = 1;
const NFNLA_HOOK_FUNCTION_NAME: u16 = 4;
/// NF_INET_PRE_ROUTING: conntrack's first hook.
const PRE_ROUTING: u32 = 0;
/// include/uapi/linux/netfilter.h
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Whether conntrack's hooks are registered in the netns this thread is in: a rule that needs them does that
/// (nf_ct_netns_get, net/netfilter/nf_conntrack_proto.c). `None` where the kernel doesn't tell (before 5.14, or without
/// CONFIG_NETFILTER_NETLINK_HOOK).
#[must_use]
pub fn hooks_registered() -> Option<bool> {
    let families = [NFPROTO_IPV4, NFPROTO_IPV6].map(hooked);
    if families.contains(&Some(true)) { Some(true) } else { families[0].and(families[1]) }
}

fn hooked(family: u8) -> Option<bool> {
    let mut request = 8_u16.to_ne_bytes().to_vec();
    request.extend(NFNLA_HOOK_HOOKNUM.to_ne_bytes());
    request.extend(PRE_ROUTING.to_be_bytes());
    let mut found = Some(false);
    let done = netlink::dump_here(HOOK_GET, family, &request, |datagram| {
        Ok(match look(datagram) {
            Seen::Hook => {
                found = Some(true);
                Next::Stop
            }
            Seen::Others => Next::Go,
            Seen::End => Next::Stop,
            Seen::Refusal => {
                found = None;
                Next::Stop
            }
        })
    });
    done.ok().and(found)
}

/// What a datagram held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Hook,
    Others,
    End,
    Refusal,
}

pub(crate) fn look(datagram: &[u8]) -> Seen {
    let mut seen = Seen::Others;
    for (kind, body) in netlink::messages(datagram) {
        match kind {
            netlink::ERROR => return Seen::Refusal,
            netlink::DONE => seen = Seen::End,
            HOOK_GET => {
                let name = netlink::attributes(body.get(4..).unwrap_or_default())
                    .find(|(kind, _)| *kind == NFNLA_HOOK_FUNCTION_NAME)
                    .map_or(&[][..], |(_, name)| name);
                // ipv4_conntrack_in and ipv6_conntrack_in (nf_conntrack_proto.c)
                if name.windows(12).any(|part| part == b"conntrack_in") {
                    return Seen::Hook;
                }
            }
            _ => {}
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = (16 + body.len() as u32).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(body);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn hook(name: &[u8]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        body.extend((4 + name.len() as u16).to_ne_bytes());
        body.extend(NFNLA_HOOK_FUNCTION_NAME.to_ne_bytes());
        body.extend(name);
        body.resize(body.len().next_multiple_of(4), 0);
        message(HOOK_GET, &body)
    }

    #[test]
    fn conntrack_is_found_among_other_hooks() {
        let other = hook(b"nft_do_chain_inet\0");
        assert_eq!(look(&other), Seen::Others);
        assert_eq!(look(&[other.clone(), hook(b"ipv4_conntrack_in\0")].concat()), Seen::Hook);
        assert_eq!(look(&[other, message(netlink::DONE, &[0; 4])].concat()), Seen::End);
        assert_eq!(look(&message(netlink::ERROR, &[0; 4])), Seen::Refusal);
    }
}
