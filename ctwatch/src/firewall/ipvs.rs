//! The virtual services of IPVS: translations that no rule shows.
//! A line that isn't understood is a service of any port.

use crate::model::Protocol;

/// A virtual service, or one of its real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualService {
    /// Absent if it goes by packet marks.
    pub proto: Option<Protocol>,
    /// Its port and those of its real servers; none if they may be any.
    pub ports: Vec<u16>,
    /// Its line.
    pub text: String,
}

/// Reads `/proc/net/ip_vs` (ip_vs_info_seq_show, net/netfilter/ipvs/ip_vs_ctl.c, 6.12).
#[must_use]
pub fn parse(text: &str) -> Vec<VirtualService> {
    let mut services: Vec<VirtualService> = Vec::new();
    // The version and two lines of headings come first.
    for line in text.lines().skip(3) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["->", server, ..] => {
                if let Some(service) = services.last_mut().filter(|service| !service.ports.is_empty()) {
                    match port(server) {
                        Some(port) => service.ports.push(port),
                        None => service.ports.clear(),
                    }
                }
            }
            [proto, address, ..] => {
                let known = Protocol::from_name(&proto.to_ascii_lowercase());
                let port = known.and_then(|_| port(address)).filter(|port| *port != 0);
                services.push(VirtualService {
                    proto: known,
                    ports: port.into_iter().collect(),
                    text: words.join(" "),
                });
            }
            _ => {}
        }
    }
    services
}

/// "0A60000A:0050", "[2001:0db8:0000:0000:0000:0000:0000:0001]:0050".
fn port(address: &str) -> Option<u16> {
    u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_their_servers_have_ports() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\nTCP  0A60000A:0050 rr\n  \
                    -> 0AF40002:1F90      Masq    1      0          0\nUDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0035 rr\nFWM  00000001 rr\n";
        let services = parse(text);
        assert_eq!((services[0].proto, &services[0].ports[..]), (Some(Protocol::TCP), &[80, 8080][..]));
        assert_eq!((services[1].proto, &services[1].ports[..]), (Some(Protocol::UDP), &[53][..]));
        assert_eq!((services[2].proto, &services[2].ports[..]), (None, &[][..]), "any");
        assert_eq!(parse(""), []);
    }
}
