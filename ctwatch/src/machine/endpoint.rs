//! Which program serves a port of this host, and which local programs connect to it: advice on reuse names them.
//! Samples sockets and their holders for a moment; connections too short-lived to attribute are counted, not guessed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::software::{self, Program};
use crate::kernel::roots::Roots;
use crate::process::{procfs, sockets};

/// Sockets remembered while sampling.
const MAX_SOCKETS: usize = 1 << 16;
/// Between two reads of the socket tables.
const PAUSE: Duration = Duration::from_millis(2);
/// After this many passes over the processes whose sockets change, all processes are read once more.
const FULL_PASS: u32 = 16;

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// IP protocol number: 6 or 17.
    pub proto: u8,
    /// Destination port.
    pub port: u16,
}

/// Both sides of a port, as far as they are on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Who listens there; none if another host does, or a container that isn't in this netns.
    pub servers: Vec<Program>,
    /// Who opens connections to that port, the busiest first.
    pub clients: Vec<Client>,
    /// Connections seen, but closed before a process was seen to hold them.
    pub unknown: usize,
}

/// A program that opens connections to a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The first of its processes seen.
    pub program: Program,
    /// Processes of that software seen.
    pub processes: usize,
    /// Their connections seen.
    pub connections: usize,
}

/// Samples these ports of this thread's netns for this long: the longer, the more short-lived connections are seen.
#[must_use]
pub fn read(roots: &Roots, ports: &[Port], duration: Duration) -> BTreeMap<Port, Endpoint> {
    let folder = roots.proc("thread-self/net");
    let listening: Vec<(Port, u64)> = ports
        .iter()
        .flat_map(|port| {
            sockets::listening(&folder, port.proto, port.port).into_iter().map(|inode| (*port, inode))
        })
        .collect();
    let sampled = sample(roots, &folder, ports, duration);
    let mut endpoints: BTreeMap<Port, Endpoint> =
        ports.iter().map(|port| (*port, Endpoint::default())).collect();
    let mut known = HashMap::new();
    let mut identify = |pid: u32| known.entry(pid).or_insert_with(|| software::identify(roots, pid)).clone();
    for (port, inode) in listening {
        let servers = &mut endpoints.entry(port).or_default().servers;
        let holder = sampled.holders.get(&inode).and_then(|pid| identify(*pid));
        servers.extend(holder.filter(|holder| servers.iter().all(|known| known.software != holder.software)));
    }
    let mut pids: BTreeMap<(Port, String), BTreeSet<u32>> = BTreeMap::new();
    for (inode, port) in sampled.connections {
        let endpoint = endpoints.entry(port).or_default();
        let Some(program) = sampled.holders.get(&inode).and_then(|pid| identify(*pid)) else {
            endpoint.unknown += 1;
            continue;
        };
        pids.entry((port, program.software.name().to_owned())).or_default().insert(program.pid);
        match endpoint.clients.iter_mut().find(|client| client.program.software == program.software) {
            Some(client) => client.connections += 1,
            None => endpoint.clients.push(Client { program, processes: 1, connections: 1 }),
        }
    }
    for (port, endpoint) in &mut endpoints {
        for client in &mut endpoint.clients {
            let name = client.program.software.name().to_owned();
            client.processes = pids.get(&(*port, name)).map_or(1, BTreeSet::len);
        }
        endpoint.clients.sort_by_key(|client| std::cmp::Reverse(client.connections));
    }
    endpoints
}

#[derive(Default)]
struct Sampled {
    /// Sockets of those who connected, by inode number.
    connections: BTreeMap<u64, Port>,
    /// Who holds which socket.
    holders: HashMap<u64, u32>,
}

/// Connections may live for a millisecond only: one thread keeps reading the socket tables, another one which process
/// holds which socket, and what both have seen has a name. Inode numbers of sockets aren't reused that soon.
fn sample(roots: &Roots, folder: &Path, ports: &[Port], duration: Duration) -> Sampled {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch =
            thread::Builder::new().name("holders".to_owned()).spawn_scoped(scope, || holders(roots, &over));
        let connections = connections(folder, ports, duration);
        over.store(true, Ordering::Relaxed);
        let holders = match watch {
            Ok(watch) => watch.join().unwrap_or_default(),
            Err(_) => holders(roots, &over),
        };
        Sampled { connections, holders }
    })
}

/// Stays on the calling thread, whose netns it is.
fn connections(folder: &Path, ports: &[Port], duration: Duration) -> BTreeMap<u64, Port> {
    let mut found = BTreeMap::new();
    let protos: BTreeSet<u8> = ports.iter().map(|port| port.proto).collect();
    let began = Instant::now();
    loop {
        for proto in &protos {
            sockets::each_connected(folder, *proto, |connected| {
                let port = Port { proto: *proto, port: connected.peer_port };
                // The server's own sockets have its port on their side.
                if ports.contains(&port) && connected.port != port.port && found.len() < MAX_SOCKETS {
                    found.insert(connected.inode, port);
                }
            });
        }
        if began.elapsed() >= duration {
            return found;
        }
        thread::sleep(PAUSE);
    }
}

/// Keeps noting which process holds which sockets until the other thread is done, at least twice.
fn holders(roots: &Roots, over: &AtomicBool) -> HashMap<u64, u32> {
    let mut found: HashMap<u64, u32> = HashMap::new();
    let mut all = Vec::new();
    let mut busy: BTreeSet<u32> = BTreeSet::new();
    let mut before: HashMap<u32, Vec<u64>> = HashMap::new();
    for pass in 0.. {
        let last = over.load(Ordering::Relaxed);
        let full = pass < 2 || last || pass % FULL_PASS == 0 || busy.is_empty();
        if full {
            all = procfs::processes(roots);
            // The first to be seen with a socket counts, and process 1 holds those it activates services by.
            all.sort_unstable_by_key(|pid| (*pid == 1, *pid));
        }
        for pid in &all {
            if !full && !busy.contains(pid) {
                continue;
            }
            let mut held: Vec<u64> = procfs::sockets_of(roots, *pid).collect();
            held.sort_unstable();
            for socket in &held {
                if found.len() < MAX_SOCKETS {
                    found.entry(*socket).or_insert(*pid);
                }
            }
            if before.get(pid).is_some_and(|known| *known != held) {
                busy.insert(*pid);
            }
            before.insert(*pid, held);
        }
        if last && pass > 0 {
            break;
        }
        if full && busy.is_empty() {
            thread::sleep(PAUSE);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::software::Software;
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const REDIS: Port = Port { proto: 6, port: 6379 };
    const HTTP: Port = Port { proto: 6, port: 80 };

    #[test]
    fn nginx_is_redis_s_client_and_curl_is_nginx_s() {
        for (kernel, fixture) in fixture::kernels() {
            let endpoints = read(&fixture.host.roots, &[REDIS, HTTP], Duration::ZERO);
            let names = |port: &Port| {
                let endpoint = &endpoints[port];
                let servers =
                    endpoint.servers.iter().map(|program| program.software.clone()).collect::<Vec<_>>();
                let clients =
                    endpoint.clients.iter().map(|client| client.program.software.clone()).collect::<Vec<_>>();
                (servers, clients, endpoint.unknown)
            };
            assert_eq!(names(&REDIS), (vec![Software::Redis], vec![Software::NginxLua], 0), "{kernel}");
            let curl = Software::Other("curl".to_owned());
            assert_eq!(names(&HTTP), (vec![Software::NginxLua], vec![curl], 0), "{kernel}");
        }
    }

    #[test]
    fn this_very_process_is_server_and_client() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        let port = Port { proto: 6, port: address.port() };
        let endpoints = read(&Roots::default(), &[port], Duration::ZERO);
        let endpoint = &endpoints[&port];
        assert_eq!(
            endpoint.servers.iter().map(|server| server.pid).collect::<Vec<_>>(),
            [std::process::id()]
        );
        assert_eq!(endpoint.clients.len(), 1, "{endpoint:?}");
        assert_eq!((endpoint.clients[0].connections, endpoint.clients[0].processes), (clients.len(), 1));
        assert_eq!(endpoint.unknown, 0);
    }

    #[test]
    fn connections_too_short_to_be_met_still_show_their_client_after_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = AtomicBool::new(false);
        let port = Port { proto: 6, port: address.port() };
        let endpoints = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let client = TcpStream::connect(address).unwrap();
                    drop(listener.accept().unwrap());
                    thread::sleep(Duration::from_millis(1));
                    drop(client);
                }
            });
            // How long a while is depends on how busy this machine is.
            let mut endpoints = BTreeMap::new();
            for _ in 0..40 {
                endpoints = read(&Roots::default(), &[port], Duration::from_millis(500));
                if !endpoints[&port].clients.is_empty() {
                    break;
                }
            }
            over.store(true, Ordering::Relaxed);
            endpoints
        });
        let clients = &endpoints[&port].clients;
        assert_eq!(clients.iter().map(|client| client.program.pid).collect::<Vec<_>>(), [std::process::id()]);
    }
}
