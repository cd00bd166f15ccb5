//! Who listens where a lost packet was going. Found by a thread of its own, once per netns and a few seconds.
//! The watch never waits for it: the watch asks again, and a storm of new namespaces is answered "unknown".

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::kernel::roots::Roots;
use crate::kernel::routes;
use crate::model::{Name, NetnsId, Owner, ProcessId, Protocol, Role};
use crate::netns::{self, Netns};
use crate::process::procfs::{Held, Holder};
use crate::process::sockets::{Limit, Recipient};
use crate::process::{container, procfs, sockets};

/// Where a packet was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The netns.
    pub netns: NetnsId,
    /// IP protocol number.
    pub proto: Protocol,
    /// Destination address.
    pub to: IpAddr,
    /// Destination port.
    pub port: u16,
}

/// Places remembered.
const LIMIT: usize = 4096;
/// Questions that may wait for the thread.
const WAITING: usize = 256;
/// How long an answer counts.
const FRESH: Duration = Duration::from_secs(5);
/// How long one look may take in all netns that were asked about, in one of them, and through all processes: anybody may have
/// any number of sockets, files and processes.
const LOOK_TIME: Duration = Duration::from_secs(1);
const LOOK_TIME_EACH: Duration = Duration::from_millis(250);
/// The thread rests so many times longer than it worked.
const REST: u32 = 9;
/// A netns with more networks of its own is one of which nothing is known.
const LOCAL_NETWORKS: usize = 1 << 16;

/// What is known of listeners.
#[derive(Debug)]
pub struct Listeners {
    known: HashMap<Destination, Known>,
    /// `None` until the first question.
    thread: Option<Thread>,
    roots: Roots,
}

#[derive(Debug)]
struct Known {
    /// `None`: asked, not yet answered.
    answer: Option<Arc<Owner>>,
    until: Instant,
}

#[derive(Debug)]
struct Thread {
    questions: SyncSender<(Destination, Netns)>,
    answers: Receiver<(Destination, Arc<Owner>)>,
}

impl Listeners {
    /// Nothing asked yet.
    #[must_use]
    pub fn new(roots: &Roots) -> Self {
        Self { known: HashMap::new(), thread: None, roots: roots.clone() }
    }

    /// Takes in the answers that have come.
    pub fn take_answers(&mut self, now: Instant) {
        while let Some(Ok((target, who))) = self.thread.as_ref().map(|thread| thread.answers.try_recv()) {
            self.enter(target, who, now);
        }
    }

    fn enter(&mut self, target: Destination, who: Arc<Owner>, now: Instant) {
        self.known.insert(target, Known { answer: Some(who), until: now + FRESH });
    }

    /// Whether the answer to a question is on its way.
    #[must_use]
    pub fn is_open(&self, target: &Destination, now: Instant) -> bool {
        self.known.get(target).is_some_and(|known| known.answer.is_none() && now < known.until)
    }

    /// Who listens there; `None` if that isn't known, or not yet.
    pub fn of(&mut self, target: Destination, netns: &Netns, now: Instant) -> Option<Arc<Owner>> {
        match self.known.get(&target) {
            Some(known) if now < known.until => return known.answer.clone(),
            // An old answer is better than none while the new one is on its way.
            Some(_) => {}
            None if self.known.len() >= LIMIT => {
                self.known.retain(|_, known| now < known.until);
                if self.known.len() >= LIMIT {
                    return None;
                }
            }
            None => {}
        }
        let old = self.known.get(&target).and_then(|known| known.answer.clone());
        if !self.ask(target, netns) {
            return old;
        }
        self.known.insert(target, Known { answer: old.clone(), until: now + FRESH });
        old
    }

    fn ask(&mut self, target: Destination, netns: &Netns) -> bool {
        if self.thread.is_none() {
            self.thread = start(self.roots.clone());
        }
        let Some(thread) = &self.thread else { return false };
        match thread.questions.try_send((target, netns.clone())) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            Err(TrySendError::Disconnected(_)) => {
                self.thread = None;
                false
            }
        }
    }
}

fn start(roots: Roots) -> Option<Thread> {
    let (questions, asked) = sync_channel(WAITING);
    let (answer, answers) = channel();
    let work = move || {
        while let Some(questions) = wait_for_questions(&asked) {
            let began = Instant::now();
            if !answer_all(&roots, questions, &answer) {
                return;
            }
            thread::sleep(began.elapsed() * REST);
        }
    };
    thread::Builder::new().name("listeners".to_owned()).stack_size(512 << 10).spawn(work).ok()?;
    Some(Thread { questions, answers })
}

/// All questions that wait, at least one; `None` once nobody asks any more.
fn wait_for_questions(asked: &Receiver<(Destination, Netns)>) -> Option<Vec<(Destination, Netns)>> {
    let mut questions = vec![asked.recv().ok()?];
    // Questions come in bursts, and one look through /proc answers them all.
    while let Ok(question) = asked.recv_timeout(Duration::from_millis(1)) {
        questions.push(question);
        if questions.len() >= WAITING {
            break;
        }
    }
    Some(questions)
}

/// False if nobody listens to the answers any more.
fn answer_all(
    roots: &Roots,
    questions: Vec<(Destination, Netns)>,
    answer: &Sender<(Destination, Arc<Owner>)>,
) -> bool {
    let mut by_netns: BTreeMap<NetnsId, (Netns, Vec<Destination>)> = BTreeMap::new();
    for (target, netns) in questions {
        by_netns.entry(target.netns).or_insert_with(|| (netns, Vec::new())).1.push(target);
    }
    // What comes to the netns this runs in isn't held up by what others have in theirs.
    let own = netns::own().ok();
    let mut in_turn: Vec<_> = by_netns.values().collect();
    in_turn.sort_by_key(|(netns, _)| Some(netns.id) != own);
    let limit = Limit::new(LOOK_TIME, u64::MAX);
    let mut found: Vec<(Destination, Recipient)> = Vec::new();
    for (netns, targets) in in_turn {
        let folder = roots.proc("thread-self/net");
        let mut limit = limit.at_most(LOOK_TIME_EACH);
        let look = || Ok(receivers_at(&folder, targets, &mut limit));
        let looked: anyhow::Result<Vec<_>> = netns::run_inside(netns, look);
        let receivers = looked.unwrap_or_else(|_| {
            // A netns that died meanwhile has no listeners.
            let is_there = netns::leads_there(netns);
            vec![if is_there { Recipient::Unknown } else { Recipient::Nobody }; targets.len()]
        });
        found.extend(targets.iter().copied().zip(receivers));
    }
    let socket = |receiver: &Recipient| match receiver {
        Recipient::Socket(inode) => Some(*inode),
        Recipient::Nobody | Recipient::Unknown => None,
    };
    let sockets: HashSet<u64> = found.iter().filter_map(|(_, receiver)| socket(receiver)).collect();
    let netns: Vec<u64> = by_netns.keys().map(|netns| u64::from(netns.inode())).collect();
    let held = match sockets.is_empty() {
        true => Held::default(),
        false => procfs::holders(roots, &sockets, &netns, Instant::now() + LOOK_TIME),
    };
    found.into_iter().all(|(target, receiver)| {
        let holder = socket(&receiver).and_then(|socket| held.by.get(&socket));
        let is_unknown = receiver == Recipient::Unknown
            || (holder.is_none() && receiver != Recipient::Nobody && held.is_cut);
        answer.send((target, Arc::new(who(holder, is_unknown)))).is_ok()
    })
}

/// The sockets that would have taken the packets, of those that were going to this very host.
fn receivers_at(folder: &Path, targets: &[Destination], limit: &mut Limit) -> Vec<Recipient> {
    let networks = LocalNetworks::default();
    let local: Vec<Option<bool>> = targets.iter().map(|target| is_local(target.to, &networks)).collect();
    let wanted = targets.iter().zip(&local).filter(|(_, is_local)| **is_local == Some(true));
    let wanted: Vec<_> = wanted.map(|(target, _)| (target.proto, target.to, target.port)).collect();
    let mut found = sockets::receivers(folder, &wanted, limit).into_iter();
    let receiver = |is_local| match is_local {
        Some(true) => found.next().unwrap_or(Recipient::Unknown),
        Some(false) => Recipient::Nobody,
        None => Recipient::Unknown,
    };
    local.into_iter().map(receiver).collect()
}

/// The networks for which this netns takes packets, of IPv4 and of IPv6; asked for once, when they are needed.
#[derive(Debug, Default)]
struct LocalNetworks([OnceCell<Option<Vec<String>>>; 2]);

impl LocalNetworks {
    /// Whether that address is in one of them; none if the kernel doesn't tell.
    fn have(&self, address: IpAddr) -> Option<bool> {
        let until = Instant::now() + LOOK_TIME_EACH;
        let ask = || routes::local_networks(address.is_ipv6(), until, LOCAL_NETWORKS).ok();
        let networks = self.0[usize::from(address.is_ipv6())].get_or_init(ask).as_ref()?;
        let network = |text: &String| text.parse::<IpNet>();
        Some(networks.iter().filter_map(|text| network(text).ok()).any(|network| network.contains(&address)))
    }
}

/// Whether this netns has that address. A socket can be bound to it alone, and the routes are asked where that proves nothing: a
/// sysctl allows others (as keepalived and HAProxy want), or the address needs a device (fe80::).
fn is_local(address: IpAddr, networks: &LocalNetworks) -> Option<bool> {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let nonlocal = std::fs::read(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    if nonlocal.is_ok_and(|value| value.first() == Some(&b'0')) {
        match UdpSocket::bind((address, 0)) {
            Ok(_) => return Some(true),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return Some(false),
            Err(_) => {}
        }
    }
    networks.have(address)
}

/// `is_unknown`: somebody may listen there.
fn who(holder: Option<&Holder>, is_unknown: bool) -> Owner {
    let Some(Holder { pid, name, cgroup }) = holder else {
        return Owner { unattributable: is_unknown, ..Owner::default() };
    };
    let process = ProcessId { pid: *pid, name: Name::from_padded(*name), role: Role::Listener };
    let container =
        cgroup.as_ref().and_then(|path| container::of_path(path.raw())).map(|container| container.name);
    Owner { process: Some(process), cgroup: cgroup.clone(), container, unattributable: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::path::PathBuf;

    fn own_netns() -> Netns {
        let id = netns::own().expect("/proc is readable");
        Netns { id, path: PathBuf::from("/proc/self/ns/net"), name: None, container: None }
    }

    /// Asks, and waits as long as it takes: a test machine may be slow.
    fn ask(listeners: &mut Listeners, target: Destination) -> Arc<Owner> {
        let now = Instant::now();
        let netns = own_netns();
        let mut answer = listeners.of(target, &netns, now);
        while answer.is_none() {
            let answers = &listeners.thread.as_ref().expect("something was asked").answers;
            let (answered, who) = answers.recv_timeout(Duration::from_secs(10)).expect("an answer comes");
            listeners.enter(answered, who, now);
            answer = listeners.of(target, &netns, now);
        }
        answer.unwrap()
    }

    #[test]
    fn this_very_process_is_found_by_its_port() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let target = Destination {
            netns: own_netns().id,
            proto: Protocol::TCP,
            to: "127.0.0.1".parse().unwrap(),
            port,
        };
        let mut listeners = Listeners::new(&Roots::default());
        let who = ask(&mut listeners, target);
        let process = who.process.expect("this process listens there");
        assert_eq!((process.pid, process.role), (std::process::id(), Role::Listener));
        let elsewhere = Destination { to: "192.0.2.1".parse().unwrap(), ..target };
        assert_eq!(ask(&mut listeners, elsewhere).process, None, "that address is another host's");
    }

    #[test]
    fn where_any_address_may_be_bound_the_routes_say_which_are_local() {
        let in_netns_of_its_own = || {
            // Others may not make a netns.
            if !nix::unistd::geteuid().is_root() {
                return;
            }
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("there is ip").success());
            // It is this netns's own.
            for nonlocal in ["0", "1"] {
                std::fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", nonlocal).expect("root may");
                let networks = LocalNetworks::default();
                assert_eq!(is_local(IpAddr::from([127, 0, 0, 7]), &networks), Some(true), "{nonlocal}");
                assert_eq!(is_local(IpAddr::from([192, 0, 2, 77]), &networks), Some(false), "{nonlocal}");
            }
        };
        thread::spawn(in_netns_of_its_own).join().expect("it holds");
    }

    #[test]
    fn where_not_everybody_was_looked_at_nobody_is_no_answer() {
        assert!(who(None, true).unattributable && !who(None, false).unattributable);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = |to: &str| Destination {
            netns: own_netns().id,
            proto: Protocol::TCP,
            to: to.parse().unwrap(),
            port,
        };
        let look = |time| {
            let mut limit = Limit::new(time, u64::MAX);
            receivers_at(Path::new("/proc/thread-self/net"), &[to("192.0.2.1"), to("127.0.0.1")], &mut limit)
        };
        assert_eq!(look(Duration::ZERO), [Recipient::Nobody, Recipient::Unknown]);
        assert!(matches!(look(Duration::from_secs(60))[..], [Recipient::Nobody, Recipient::Socket(_)]));
    }

    #[test]
    fn a_storm_of_places_is_remembered_within_bounds() {
        let now = Instant::now();
        let mut listeners = Listeners::new(&Roots::default());
        let netns = own_netns();
        let began = Instant::now();
        for number in 0..100_000u32 {
            let to = IpAddr::from((0x0A00_0000 + number).to_be_bytes());
            listeners.of(Destination { netns: netns.id, proto: Protocol::TCP, to, port: 80 }, &netns, now);
        }
        assert!(listeners.known.len() <= LIMIT);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
