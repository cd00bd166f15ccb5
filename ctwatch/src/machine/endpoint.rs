//! Which program serves a port of this host, and which local programs connect to it: advice on reuse names them.
//! Samples sockets and their holders for a moment; connections too short-lived to attribute are counted, not guessed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::software::{self, Program};
use crate::kernel::roots::Roots;
use crate::model::{Protocol, protocol_number};
use crate::process::handle::Process;
use crate::process::procfs;
use crate::process::sockets::{self, Extent, Limit};

/// Sockets of these ports that are looked at.
const MAX_SOCKETS: usize = 1 << 16;
/// Sockets whose holders are remembered while sampling, and files of a process that are looked at for them.
const MAX_HELD: usize = 1 << 18;
const FILES: usize = 1 << 14;
/// Processes of which it is remembered what they held.
const PROCESSES_NOTED: usize = 1 << 16;
/// Processes that are asked what they are.
const PROCESSES: usize = 1 << 10;
/// Programs on each side of a port.
const PROGRAMS: usize = 64;
/// How long each of the looks may take that others can make long: at listeners, at who holds what, at what they are.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is said if that, or one of the numbers above, was not enough.
const CUT: &str = "there are more sockets or processes than could be looked at: servers and clients of some ports may be missing";
/// Between two reads of the socket tables.
const PAUSE: Duration = Duration::from_millis(2);
/// After this many passes over the processes whose sockets change, all processes are read once more.
const FULL_PASS: u32 = 16;

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// TCP or UDP.
    #[serde(with = "protocol_number")]
    pub proto: Protocol,
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

/// Samples these ports of this thread's netns for this long: the longer, the more short-lived connections are seen. The note says
/// what was too much to be looked at.
#[must_use]
pub fn read(
    roots: &Roots,
    ports: &[Port],
    duration: Duration,
) -> (BTreeMap<Port, Endpoint>, Option<&'static str>) {
    read_within(roots, ports, duration, PATIENCE)
}

fn read_within(
    roots: &Roots,
    ports: &[Port],
    duration: Duration,
    patience: Duration,
) -> (BTreeMap<Port, Endpoint>, Option<&'static str>) {
    let mut is_cut = false;
    let folder = roots.proc("thread-self/net");
    let listening = listening(&folder, ports, patience, &mut is_cut);
    let sampled = sample(roots, &folder, ports, duration, &listening, patience);
    is_cut |= sampled.is_cut;
    let mut endpoints: BTreeMap<Port, Endpoint> =
        ports.iter().map(|port| (*port, Endpoint::default())).collect();
    let mut known =
        Identities { roots, known: HashMap::new(), until: Instant::now() + patience, is_cut: false };
    let mut identify = |inode: &u64| known.of(*sampled.holders.get(inode)?);
    for (port, inode) in listening {
        let servers = &mut endpoints.entry(port).or_default().servers;
        if servers.len() < PROGRAMS {
            let holder = identify(&inode);
            servers.extend(
                holder.filter(|holder| servers.iter().all(|known| known.software != holder.software)),
            );
        }
    }
    let mut pids: BTreeMap<(Port, String), BTreeSet<u32>> = BTreeMap::new();
    for (inode, port) in sampled.connections {
        let endpoint = endpoints.entry(port).or_default();
        let Some(program) = identify(&inode) else {
            endpoint.unknown += 1;
            continue;
        };
        let has_room = endpoint.clients.len() < PROGRAMS;
        match endpoint.clients.iter_mut().find(|client| client.program.software == program.software) {
            Some(client) => client.connections += 1,
            // Anybody gives his processes any number of names.
            None if !has_room => {
                endpoint.unknown += 1;
                continue;
            }
            None => endpoint.clients.push(Client { program: program.clone(), processes: 1, connections: 1 }),
        }
        pids.entry((port, program.software.name().to_owned())).or_default().insert(program.pid);
    }
    for (port, endpoint) in &mut endpoints {
        for client in &mut endpoint.clients {
            let name = client.program.software.name().to_owned();
            client.processes = pids.get(&(*port, name)).map_or(1, BTreeSet::len);
        }
        endpoint.clients.sort_by_key(|client| std::cmp::Reverse(client.connections));
    }
    is_cut |= known.is_cut;
    (endpoints, is_cut.then_some(CUT))
}

/// Which of these ports' sockets listen.
fn listening(folder: &Path, ports: &[Port], patience: Duration, is_cut: &mut bool) -> Vec<(Port, u64)> {
    let mut found: Vec<(Port, u64)> = Vec::new();
    let mut limit = Limit::new(patience, u64::MAX);
    let protos: BTreeSet<Protocol> = ports.iter().map(|port| port.proto).collect();
    for proto in protos {
        let extent = sockets::each_listening(folder, proto, &mut limit, |_, port, inode| {
            let port = Port { proto, port };
            if ports.contains(&port) {
                if found.len() < MAX_SOCKETS {
                    found.push((port, inode));
                } else {
                    *is_cut = true;
                }
            }
        });
        *is_cut |= extent == Extent::Cut;
    }
    found
}

/// What processes are, each asked once, and no more than there is time for: each may be slow to answer.
struct Identities<'a> {
    roots: &'a Roots,
    known: HashMap<u32, Option<Program>>,
    until: Instant,
    is_cut: bool,
}

impl Identities<'_> {
    fn of(&mut self, holder: Holder) -> Option<Program> {
        if let Some(known) = self.known.get(&holder.pid) {
            return known.clone();
        }
        if Instant::now() >= self.until || self.known.len() >= PROCESSES {
            self.is_cut = true;
            return None;
        }
        let found =
            software::identify(self.roots, holder.pid, move |process| process.started() == holder.started);
        self.known.insert(holder.pid, found.clone());
        found
    }
}

/// Who holds a socket, and since when it runs: its number may have gone to another process when it is asked what it is.
#[derive(Clone, Copy, Debug)]
struct Holder {
    pid: u32,
    started: Option<u64>,
}

#[derive(Default)]
struct Sampled {
    /// Sockets of those who connected, by inode number.
    connections: BTreeMap<u64, Port>,
    /// Who holds which socket.
    holders: HashMap<u64, Holder>,
    is_cut: bool,
}

/// Connections may live for a millisecond only: one thread keeps reading the socket tables, another one which process
/// holds which socket, and what both have seen has a name. Inode numbers of sockets aren't reused that soon.
fn sample(
    roots: &Roots,
    folder: &Path,
    ports: &[Port],
    duration: Duration,
    listening: &[(Port, u64)],
    patience: Duration,
) -> Sampled {
    let over = AtomicBool::new(false);
    let (connections, connections_cut, mut holders) = thread::scope(|scope| {
        let keep_noting = || {
            let mut holders = Holders::new(roots);
            holders.keep_noting(&over);
            holders
        };
        let watch = thread::Builder::new().name("holders".to_owned()).spawn_scoped(scope, keep_noting);
        let (connections, is_cut) = connections(folder, ports, duration, patience);
        over.store(true, Ordering::Relaxed);
        let holders = watch.ok().and_then(|watch| watch.join().ok());
        (connections, is_cut, holders.unwrap_or_else(|| Holders::new(roots)))
    });
    // Last those that are wanted, which have room whatever the others hold.
    let wanted = connections.keys().chain(listening.iter().map(|(_, inode)| inode)).copied().collect();
    let is_cut = holders.look_for(&wanted, Instant::now() + patience);
    Sampled { connections, holders: holders.found, is_cut: connections_cut || is_cut }
}

/// Stays on the calling thread, whose netns it is.
fn connections(
    folder: &Path,
    ports: &[Port],
    duration: Duration,
    patience: Duration,
) -> (BTreeMap<u64, Port>, bool) {
    let mut found = BTreeMap::new();
    let protos: BTreeSet<Protocol> = ports.iter().map(|port| port.proto).collect();
    let began = Instant::now();
    let mut limit = Limit::new(duration + patience, u64::MAX);
    let mut is_cut = false;
    loop {
        for proto in &protos {
            let extent = sockets::each_connected(folder, *proto, &mut limit, |connected| {
                let port = Port { proto: *proto, port: connected.peer_port };
                // The server's own sockets have its port on their side.
                if ports.contains(&port) && connected.port != port.port {
                    if found.len() >= MAX_SOCKETS {
                        is_cut = true;
                        return ControlFlow::Break(());
                    }
                    found.insert(connected.inode, port);
                }
                ControlFlow::Continue(())
            });
            is_cut |= extent == Extent::Cut;
        }
        if began.elapsed() >= duration {
            return (found, is_cut);
        }
        thread::sleep(PAUSE);
    }
}

/// Which process holds which socket.
struct Holders<'a> {
    roots: &'a Roots,
    found: HashMap<u64, Holder>,
    /// Of each process: when it started, and what it held when it was last looked at, as a sum.
    before: HashMap<u32, (Option<u64>, u64)>,
    busy: BTreeSet<u32>,
}

impl<'a> Holders<'a> {
    fn new(roots: &'a Roots) -> Self {
        Self { roots, found: HashMap::new(), before: HashMap::new(), busy: BTreeSet::new() }
    }

    /// Until the other thread is done, or has been for a moment.
    fn keep_noting(&mut self, over: &AtomicBool) {
        let mut all = Vec::new();
        for pass in 0.. {
            let full = pass < 2 || pass % FULL_PASS == 0 || self.busy.is_empty();
            if full {
                all = self.processes();
            }
            for pid in &all {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                if full || self.busy.contains(pid) {
                    self.note(*pid, over);
                }
            }
            if full && self.busy.is_empty() {
                thread::sleep(PAUSE);
            }
            if over.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// The first to be seen with a socket counts, and process 1 holds those it activates services by.
    fn processes(&self) -> Vec<u32> {
        let mut all = procfs::processes(self.roots);
        all.sort_unstable_by_key(|pid| (*pid == 1, *pid));
        all
    }

    fn note(&mut self, pid: u32, over: &AtomicBool) {
        let Ok(process) = Process::open(self.roots, pid) else { return };
        let started = process.started();
        let mut sum = 0_u64;
        for socket in process.sockets(FILES) {
            if over.load(Ordering::Relaxed) {
                return;
            }
            // The same whatever the order.
            sum = sum.wrapping_add(socket.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31));
            if self.found.len() < MAX_HELD {
                self.found.entry(socket).or_insert(Holder { pid, started });
            }
        }
        match self.before.get(&pid) {
            Some(known) if *known != (started, sum) => drop(self.busy.insert(pid)),
            _ => {}
        }
        if self.before.len() < PROCESSES_NOTED || self.before.contains_key(&pid) {
            self.before.insert(pid, (started, sum));
        }
    }

    /// Once through all processes for these sockets alone; true if there was no time for all.
    fn look_for(&mut self, wanted: &HashSet<u64>, until: Instant) -> bool {
        let mut missing = wanted.iter().filter(|socket| !self.found.contains_key(socket)).count();
        for pid in self.processes() {
            if missing == 0 {
                return false;
            }
            let Ok(process) = Process::open(self.roots, pid) else { continue };
            let mut started = None;
            for (number, socket) in process.sockets(usize::MAX).enumerate() {
                if number % 256 == 0 && Instant::now() >= until {
                    return true;
                }
                if wanted.contains(&socket) && !self.found.contains_key(&socket) {
                    let started = *started.get_or_insert_with(|| process.started());
                    self.found.insert(socket, Holder { pid, started });
                    missing -= 1;
                }
            }
            if Instant::now() >= until {
                return missing > 0;
            }
        }
        // Who isn't found now has gone.
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::software::Software;
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const REDIS: Port = Port { proto: Protocol::TCP, port: 6379 };
    const HTTP: Port = Port { proto: Protocol::TCP, port: 80 };

    #[test]
    fn nginx_is_redis_s_client_and_curl_is_nginx_s() {
        for (kernel, fixture) in fixture::kernels() {
            let (endpoints, note) = read(&fixture.host.roots, &[REDIS, HTTP], Duration::ZERO);
            assert_eq!(note, None);
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
        let port = Port { proto: Protocol::TCP, port: address.port() };
        let (endpoints, _) = read(&Roots::default(), &[port], Duration::ZERO);
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
        let port = Port { proto: Protocol::TCP, port: address.port() };
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
                endpoints = read(&Roots::default(), &[port], Duration::from_millis(500)).0;
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

    /// A process with these sockets.
    fn process(roots: &Roots, pid: u32, name: &str, sockets: impl Iterator<Item = u64>) {
        let folder = roots.proc(pid.to_string());
        std::fs::create_dir_all(folder.join("fd")).unwrap();
        std::fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
        for (number, socket) in sockets.enumerate() {
            std::os::unix::fs::symlink(format!("socket:[{socket}]"), folder.join(format!("fd/{number}")))
                .unwrap();
        }
    }

    fn row(own: u16, peer: u16, state: &str, inode: u64) -> String {
        format!("  0: 0100007F:{own:04X} 0100007F:{peer:04X} {state} 0:0 0:0 0 0 0 {inode} 1\n")
    }

    #[test]
    fn a_flood_of_sockets_and_names_hides_no_server_and_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots { proc: folder.path().join("proc"), sys: folder.path().join("sys") };
        let net = roots.proc("thread-self/net");
        std::fs::create_dir_all(&net).unwrap();
        // Each of a hundred processes has another name, and a connection; the server comes last.
        let mut table = "header\n".to_owned() + &row(6379, 0, "0A", 7);
        for number in 0..100_u16 {
            process(
                &roots,
                100 + u32::from(number),
                &format!("flood-{number}"),
                [u64::from(number) + 1000].into_iter(),
            );
            table += &row(40_000 + number, 6379, "01", u64::from(number) + 1000);
        }
        process(&roots, 9000, "redis-server", [7].into_iter());
        std::fs::write(net.join("tcp"), table).unwrap();
        let (endpoints, note) = read(&roots, &[REDIS], Duration::ZERO);
        let redis = &endpoints[&REDIS];
        assert_eq!(redis.servers.iter().map(|server| server.pid).collect::<Vec<_>>(), [9000]);
        assert_eq!((redis.clients.len(), redis.unknown, note), (PROGRAMS, 100 - PROGRAMS, None));
        // Without any time nothing is found, and nothing is concluded from that.
        let (endpoints, note) = read_within(&roots, &[REDIS], Duration::ZERO, Duration::ZERO);
        assert!(note.is_some_and(|note| note.contains("may be missing")));
        assert!(endpoints[&REDIS].servers.is_empty());
    }

    #[test]
    fn what_is_wanted_has_room_whatever_others_hold() {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots { proc: folder.path().join("proc"), sys: folder.path().join("sys") };
        process(&roots, 10, "flood", 100..600);
        process(&roots, 20, "redis-server", 7..8);
        let mut holders = Holders::new(&roots);
        holders.found = (1 << 32..(1 << 32) + MAX_HELD as u64)
            .map(|socket| (socket, Holder { pid: 10, started: None }))
            .collect();
        holders.note(20, &AtomicBool::new(false));
        assert!(!holders.found.contains_key(&7), "it is full");
        assert!(holders.look_for(&HashSet::from([7, 8]), Instant::now()));
        assert!(!holders.look_for(&HashSet::from([7, 8]), Instant::now() + Duration::from_secs(60)));
        assert_eq!(holders.found[&7].pid, 20);
    }

    #[test]
    fn a_number_that_went_to_another_process_has_no_name() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let roots = Roots::default();
        let started = Process::open(&roots, child.id()).unwrap().started();
        let known = |started| {
            let mut known = Identities {
                roots: &roots,
                known: HashMap::new(),
                until: Instant::now() + Duration::from_secs(60),
                is_cut: false,
            };
            known.of(Holder { pid: child.id(), started })
        };
        let (same, other) = (known(started), known(started.map(|started| started - 1)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(same.is_some() && other.is_none(), "{same:?} {other:?}");
    }
}
