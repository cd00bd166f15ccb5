//! Who listens where a lost packet was going. Found by a thread of its own, once per netns and a few seconds.
//! The watch never waits for it: whoever asked asks again, and a storm of new namespaces is answered "unknown".

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::roots::Roots;
use crate::model::{Name, NetnsId, Owner, ProcessId, Role};
use crate::netns::{self, Netns};
use crate::process::{cgroup, container, procfs, sockets};

/// Where a packet was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The netns.
    pub netns: NetnsId,
    /// IP protocol number.
    pub proto: u8,
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
/// The thread rests so many times longer than it worked.
const REST: u32 = 9;

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
    let mut found: Vec<(Destination, Option<u64>)> = Vec::new();
    for (netns, targets) in by_netns.values() {
        let folder = roots.proc("thread-self/net");
        let look = || Ok(targets.iter().map(|target| (*target, socket_at(&folder, target))).collect());
        let looked: anyhow::Result<Vec<_>> = netns::run_inside(netns, look);
        // A netns that died meanwhile has no listeners.
        found.extend(looked.unwrap_or_else(|_| targets.iter().map(|target| (*target, None)).collect()));
    }
    let sockets: Vec<u64> = found.iter().filter_map(|(_, socket)| *socket).collect();
    let netns: Vec<u64> = by_netns.keys().map(|netns| u64::from(netns.inode())).collect();
    let holders = if sockets.is_empty() { HashMap::new() } else { procfs::holders(roots, &sockets, &netns) };
    found.into_iter().all(|(target, socket)| {
        let pid = socket.and_then(|socket| holders.get(&socket)).copied();
        answer.send((target, Arc::new(who(roots, pid)))).is_ok()
    })
}

/// The socket that would have taken the packet, if it was going to this very host.
fn socket_at(folder: &Path, target: &Destination) -> Option<u64> {
    if !is_local(target.to) {
        return None;
    }
    sockets::receiving_socket(folder, target.proto, target.to, target.port)
}

/// Whether this netns has that address: only then a socket can be bound to it, unless a sysctl says otherwise.
fn is_local(address: IpAddr) -> bool {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let nonlocal = std::fs::read(format!("/proc/sys/net/{family}/ip_nonlocal_bind"));
    !nonlocal.is_ok_and(|value| value.first() != Some(&b'0')) && UdpSocket::bind((address, 0)).is_ok()
}

fn who(roots: &Roots, pid: Option<u32>) -> Owner {
    let process = pid.and_then(|pid| {
        Some(ProcessId { pid, name: Name::from_padded(procfs::name(roots, pid)?), role: Role::Listener })
    });
    let cgroup = process.and_then(|process| cgroup::of_process(roots, process.pid));
    let container =
        cgroup.as_ref().and_then(|path| container::of_path(path.raw())).map(|container| container.name);
    Owner { process, cgroup, container, unattributable: false }
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
        let target = Destination { netns: own_netns().id, proto: 6, to: "127.0.0.1".parse().unwrap(), port };
        let mut listeners = Listeners::new(&Roots::default());
        let who = ask(&mut listeners, target);
        let process = who.process.expect("this process listens there");
        assert_eq!((process.pid, process.role), (std::process::id(), Role::Listener));
        let elsewhere = Destination { to: "192.0.2.1".parse().unwrap(), ..target };
        assert_eq!(ask(&mut listeners, elsewhere).process, None, "that address is another host's");
    }

    #[test]
    fn a_storm_of_places_is_remembered_within_bounds() {
        let now = Instant::now();
        let mut listeners = Listeners::new(&Roots::default());
        let netns = own_netns();
        let began = Instant::now();
        for number in 0..100_000u32 {
            let to = IpAddr::from((0x0A00_0000 + number).to_be_bytes());
            listeners.of(Destination { netns: netns.id, proto: 6, to, port: 80 }, &netns, now);
        }
        assert!(listeners.known.len() <= LIMIT);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
