//! Hosts that are netns without a name, joined by veth pairs, with servers that say whom they saw: what rules do to real
//! flows, on any machine. Nothing outside these netns may change: no sysctl, no rule, no file of the host.

mod entries;
mod flow;
mod server;

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use serde::Deserialize;

use crate::netns::leave_for_private;
use crate::shell::run_with_input;
use crate::sys;

pub use entries::{Entry, entries, flush};
pub use flow::{Flow, Piece, Proto, Seen, Side, measure};
pub use server::Server;

/// The host whose rules are in question.
pub const HOST: &str = "host";

/// Puts this process, which must have one thread yet, where commands can't write to the machine's /etc and /run.
pub fn hide_files() -> Result<()> {
    sys::private_mounts().context("mounts of its own (root needed)")
}

/// A netns that ends with its last user.
pub struct Room {
    netns: File,
}

impl Room {
    /// Makes it, with loopback up.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            leave_for_private()?;
            File::open("/proc/thread-self/ns/net").context("opening a new netns")
        });
        let room =
            Self { netns: made.join().map_err(|_| anyhow!("the thread that makes a netns panicked"))?? };
        room.batch("link set lo up\n")?;
        Ok(room)
    }

    /// Runs `work` on a new thread inside; programs that it starts are inside, too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                self.enter()?;
                work()
            });
            inside.join().map_err(|_| anyhow!("a thread in a netns panicked"))?
        })
    }

    /// Moves the calling thread inside, for good.
    pub fn enter(&self) -> Result<()> {
        setns(&self.netns, CloneFlags::CLONE_NEWNET).context("entering a netns")
    }

    /// Lines for `ip`.
    pub fn batch(&self, lines: &str) -> Result<()> {
        self.run(|| run_with_input(&["ip", "-batch", "-"], lines).map(drop))
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd())
    }
}

/// A host and those it is joined with.
#[derive(Clone, Debug, Deserialize)]
pub struct Plan {
    /// One for each device of the host but lo.
    #[serde(default)]
    pub wires: Vec<Wire>,
    /// Which families the host forwards: "ipv4", "ipv6".
    #[serde(default)]
    pub forwards: Vec<String>,
}

/// A device of the host and who is at its other end.
#[derive(Clone, Debug, Deserialize)]
pub struct Wire {
    /// The device.
    pub dev: String,
    /// The host's addresses on it: 192.0.2.1/24.
    pub here: Vec<String>,
    /// The other one's name.
    pub peer: String,
    /// Its addresses.
    pub there: Vec<String>,
    /// Whether it sends everything through the host; else it has no route to others.
    #[serde(default)]
    pub gateway: bool,
}

/// A plan that stands.
pub struct Place {
    rooms: Vec<(String, Room, Vec<IpAddr>)>,
    /// They end with the place.
    servers: Vec<Server>,
}

impl Place {
    /// Builds it. `more` are addresses that peers have beside those of the plan, each routed to its owner.
    pub fn build(plan: &Plan, more: &[(String, IpAddr)]) -> Result<Self> {
        let host = Room::new()?;
        let mut own = vec!["127.0.0.1".parse()?, "::1".parse()?];
        let mut rooms = Vec::new();
        for (number, wire) in plan.wires.iter().enumerate() {
            let peer = Room::new()?;
            let mac = |end: u8| format!("02:00:00:00:{number:02x}:{end:02x}");
            let (dev, here, there) = (&wire.dev, mac(1), mac(2));
            host.batch(&format!(
                "link add {dev} address {here} type veth peer name eth0 address {there} netns {}\n",
                peer.path()
            ))?;
            let (ours, theirs) = (parse(&wire.here)?, parse(&wire.there)?);
            let more: Vec<IpAddr> =
                more.iter().filter(|(owner, _)| *owner == wire.peer).map(|(_, address)| *address).collect();
            // Neighbours are written down: rules that drop ICMPv6 would make each first packet wait.
            let mut at_host = addresses(&wire.here, dev) + &format!("link set {dev} up\n");
            let mut at_peer = addresses(&wire.there, "eth0") + "link set eth0 up\n";
            for address in theirs.iter().chain(&more) {
                at_host += &format!("neigh replace {address} lladdr {there} dev {dev} nud permanent\n");
            }
            for address in &ours {
                at_peer += &format!("neigh replace {address} lladdr {here} dev eth0 nud permanent\n");
            }
            for address in &more {
                at_peer += &format!("addr add {address} dev eth0{}\n", nodad(*address));
                at_host += &format!("route replace {address} dev {dev}\n");
            }
            if wire.gateway {
                for address in ours.iter().filter(|address| !is_link_local(**address)) {
                    let family = if address.is_ipv4() { "" } else { "-6 " };
                    at_peer += &format!("{family}route replace default via {address}\n");
                }
            }
            host.batch(&at_host)?;
            peer.batch(&at_peer.replace("-6 route replace default via", "route replace ::/0 via"))?;
            own.extend(ours);
            rooms.push((wire.peer.clone(), peer, theirs.into_iter().chain(more).collect()));
        }
        host.run(|| {
            for family in &plan.forwards {
                let name = if family == "ipv4" { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
                fs::write(Path::new("/proc/sys/net").join(name), "1")
                    .with_context(|| format!("forwarding {family} in a private netns"))?;
            }
            Ok(())
        })?;
        rooms.insert(0, (HOST.to_owned(), host, own));
        Ok(Self { rooms, servers: Vec::new() })
    }

    /// The host itself.
    pub fn host(&self) -> &Room {
        &self.rooms[0].1
    }

    /// A host by its name.
    pub fn room(&self, name: &str) -> Result<&Room> {
        let found = self.rooms.iter().find(|(known, ..)| known == name);
        found.map(|(_, room, _)| room).with_context(|| format!("there is no {name} in this place"))
    }

    /// Whose address it is.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        let found = self.rooms.iter().find(|(.., addresses)| addresses.contains(&address));
        found.map(|(name, ..)| name.as_str())
    }

    /// The host's own addresses, those of lo first.
    pub fn own(&self) -> &[IpAddr] {
        &self.rooms[0].2
    }

    /// Starts servers for these ports at every address of every host.
    pub fn serve(&mut self, ports: &[(Proto, u16)]) -> Result<()> {
        for (name, room, addresses) in &self.rooms {
            self.servers.push(Server::start(room, name, addresses, ports)?);
        }
        Ok(())
    }
}

fn parse(addresses: &[String]) -> Result<Vec<IpAddr>> {
    let bare = |text: &String| text.split('/').next().unwrap_or_default().to_owned();
    addresses.iter().map(|text| bare(text).parse().with_context(|| format!("{text} is no address"))).collect()
}

fn addresses(list: &[String], dev: &str) -> String {
    list.iter()
        .map(|text| format!("addr add {text} dev {dev}{}\n", if text.contains(':') { " nodad" } else { "" }))
        .collect()
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
