//! Ports that a user-space program publishes for a container: exempting them could cut the container off.
//! Ports published by NAT rules are found in `firewall`.

use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::doubts::Doubts;
use super::listening::Listening;
use super::{Host, Notes, software};
use crate::foreign::Foreign;
use crate::model::Protocol;
use crate::process::claim::Claim;
use crate::process::handle::Process;
use crate::process::procfs;

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// "docker-proxy", "rootlessport"
    pub program: Foreign,
    /// Its process.
    pub pid: u32,
    /// "tcp", "udp" or "sctp".
    pub proto: Foreign,
    /// On this address of the host; none for all, or unknown.
    pub address: Option<IpAddr>,
    /// The port of the host.
    pub port: u16,
    /// Where it leads to, if that is known.
    pub to: Option<(IpAddr, u16)>,
}

const DOCKER_PROXY: Claim = Claim::of_root("docker-proxy", &["docker-proxy"]);

const fn forwarder(name: &'static str, programs: &'static [&'static str]) -> Claim {
    Claim { name, programs, is_users: true }
}

/// Programs that listen for rootless containers, as the kernel cuts their names.
const FORWARDERS: [Claim; 7] = [
    forwarder("rootlesskit", &["rootlesskit"]),
    forwarder("rootlessport", &["rootlessport"]),
    forwarder("rootlessport-ch", &["rootlessport"]),
    forwarder("slirp4netns", &["slirp4netns"]),
    forwarder("pasta", &["pasta", "passt"]),
    forwarder("pasta.avx2", &["pasta", "passt"]),
    forwarder("gvproxy", &["gvproxy"]),
];

/// Ports that are remembered.
const MOST: usize = 1 << 12;

/// All ports that programs of this host publish in this thread's netns; and whether there may be more.
pub(super) fn read(host: &Host, notes: &mut Notes) -> (Vec<Published>, bool) {
    let roots = &host.roots;
    let mut doubts = Doubts::new();
    let mut found: Vec<Published> = Vec::new();
    let listening = OnceCell::new();
    let mut is_cut = false;
    for pid in procfs::processes(roots) {
        let Some(name) = procfs::name(roots, pid) else { continue };
        let name = Foreign::from_bytes(&name).raw().trim_end_matches('\0').to_owned();
        if name == DOCKER_PROXY.name {
            let said = doubts.ask(
                host,
                pid,
                &DOCKER_PROXY,
                |_| true,
                |process| Some(of_docker_proxy(process.pid, &process.arguments())),
            );
            found.extend(said.flatten());
        } else if let Some(claim) = FORWARDERS.iter().find(|known| known.name == name) {
            let listening: &Arc<Listening> =
                listening.get_or_init(|| Arc::new(Listening::read(roots, &[Protocol::TCP, Protocol::UDP])));
            is_cut |= listening.is_cut;
            // A process that isn't believed and has no socket here doesn't matter.
            let (judged, asked) = (Arc::clone(listening), Arc::clone(listening));
            let matters = move |process: &Process| judged.is_of(process);
            let said = doubts.ask(host, pid, claim, matters, move |process| Some(asked.of(process)));
            let (ports, has_more) = said.unwrap_or_default();
            is_cut |= has_more;
            found.extend(ports.into_iter().map(|port| of_forwarder(pid, claim.name, port)));
        }
        if found.len() > MOST {
            found.truncate(MOST);
            is_cut = true;
            break;
        }
    }
    is_cut |= doubts.unseen;
    doubts.tell(notes);
    found.sort_by_key(|published| (published.port, published.pid, published.proto.clone()));
    (found, is_cut)
}

/// "docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80"
fn of_docker_proxy(pid: u32, arguments: &[String]) -> Option<Published> {
    let value = |name: &str| software::option(arguments, name);
    let address = |name: &str| value(name)?.parse::<IpAddr>().ok();
    let port = |name: &str| value(name)?.parse::<u16>().ok();
    Some(Published {
        program: "docker-proxy".into(),
        pid,
        proto: value("proto").unwrap_or("tcp").into(),
        address: address("host-ip").filter(|address| !address.is_unspecified()),
        port: port("host-port")?,
        to: address("container-ip").zip(port("container-port")),
    })
}

/// Their ports come and go while they run, so only their sockets tell: those of this netns, whatever others they have. Control
/// sockets on loopback are no published ports, but published ports may be there too.
fn of_forwarder(pid: u32, name: &str, (protocol, address, port): (Protocol, IpAddr, u16)) -> Published {
    Published {
        program: name.into(),
        pid,
        proto: if protocol == Protocol::UDP { "udp" } else { "tcp" }.into(),
        address: Some(address).filter(|address| !address.is_unspecified()),
        port,
        to: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn docker_s_proxy_says_which_port_leads_where() {
        let line = "/usr/bin/docker-proxy -proto tcp -host-ip :: -host-port 8080 -container-ip 172.17.0.2 -container-port 80 -use-listen-fd";
        let line = line.replace(' ', "\0");
        let fixture = Fixture::of(&[
            ("proc/900/comm", "docker-proxy\n"),
            ("proc/900/cmdline", line.as_str()),
            ("proc/901/comm", "bash\n"),
        ]);
        let expected = Published {
            program: "docker-proxy".into(),
            pid: 900,
            proto: "tcp".into(),
            address: None,
            port: 8080,
            to: Some(("172.17.0.2".parse().unwrap(), 80)),
        };
        assert_eq!(read(&fixture.host, &mut Notes::default()), (vec![expected], false));
    }

    #[test]
    fn a_rootless_container_s_ports_are_its_forwarder_s_sockets() {
        let tcp = "  sl  local_address rem_address   st\n   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 4711 1\n   1: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4712 1\n";
        let fixture = Fixture::of(&[
            ("proc/50/comm", "rootlessport\n"),
            ("proc/50/fd/9", "-> socket:[4711]"),
            ("proc/thread-self/net/tcp", tcp),
            ("proc/50/net/tcp", tcp.replace(":1F90", ":1F91").as_str()),
        ]);
        let (found, is_cut) = read(&fixture.host, &mut Notes::default());
        assert_eq!((found.len(), is_cut), (1, false), "{found:?}");
        assert_eq!((found[0].port, found[0].proto.raw(), found[0].to), (8080, "tcp", None));
    }

    #[test]
    fn more_ports_than_are_remembered_are_said_to_be_more() {
        let mut table = "header\n".to_owned();
        let sockets: Vec<(String, String)> =
            (0..MOST + 1).map(|n| (format!("proc/50/fd/{n}"), format!("-> socket:[{}]", n + 1))).collect();
        for number in 0..=MOST {
            table += &format!(
                "  0: 00000000:{:04X} 00000000:0000 0A 0:0 0:0 0 0 0 {} 1\n",
                number + 1,
                number + 1
            );
        }
        let mut files = vec![("proc/50/comm", "pasta\n"), ("proc/thread-self/net/tcp", table.as_str())];
        files.extend(sockets.iter().map(|(path, link)| (path.as_str(), link.as_str())));
        let fixture = Fixture::of(&files);
        let machine = super::super::read(&fixture.host);
        assert_eq!((machine.published.len(), machine.published_is_cut), (MOST, true));
        assert!(machine.notes.iter().any(|note| note.contains("may be missing")), "{:?}", machine.notes);
    }

    #[test]
    fn a_proxy_without_arguments_is_passed_over() {
        assert_eq!(of_docker_proxy(1, &[]), None);
        assert_eq!(of_docker_proxy(1, &["docker-proxy".to_owned(), "-host-port".to_owned()]), None);
    }
}
