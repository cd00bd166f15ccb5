//! Network namespaces and veth pairs: another host's worth of traffic inside one kernel.
//! A namespace may not outlive its scenario, and a thread that entered one may not come back: it ends there.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::counters::Counters;
use crate::shell::sh;

/// Prefix of every namespace made here, so that a clean-up finds what a killed scenario left.
pub const PREFIX: &str = "ctw-";

/// A named namespace (`ip netns`), deleted when dropped.
pub struct Netns {
    name: String,
    inode: u64,
}

impl Netns {
    /// Makes the namespace and brings its loopback up.
    pub fn create(short: &str) -> Result<Self> {
        let name = format!("{PREFIX}{short}");
        sh(&format!("ip netns add {name}"))?;
        sh(&format!("ip -n {name} link set lo up"))?;
        let inode = fs::metadata(path_of(&name)?)?.ino();
        Ok(Self { name, inode })
    }

    /// Its name for `ip -n` and `ctwatch --netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inode number JSON shows as `netns`.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` on a new thread inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = path_of(&self.name)?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
                    setns(&file, CloneFlags::CLONE_NEWNET).context("entering a netns")?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("the thread in {} panicked", self.name))?
        })
    }

    /// The kernel's counters of this namespace.
    pub fn counters(&self) -> Result<Counters> {
        self.run(Counters::read)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = sh(&format!("ip netns del {}", self.name)) {
            eprintln!("{error:#}");
        }
    }
}

/// Inode number of the calling thread's namespace.
pub fn own_inode() -> Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net").context("reading the own netns")?.ino())
}

/// Moves the calling thread into a new, unnamed namespace that ends with its last thread.
pub fn leave_for_private() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a private netns (root needed)")
}

/// Deletes every namespace with our prefix.
pub fn delete_leftovers() -> Result<()> {
    for line in sh("ip netns list")?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if name.starts_with(PREFIX) {
            sh(&format!("ip netns del {name}"))?;
        }
    }
    Ok(())
}

/// The two ends of a veth pair between the own namespace and another, addressed in IPv4 and IPv6.
pub struct Veth {
    /// Interface in the own namespace.
    pub here: String,
    /// Interface in the other namespace.
    pub there: String,
    /// IPv4 addresses: here, there.
    pub v4: (std::net::IpAddr, std::net::IpAddr),
    /// IPv6 addresses: here, there.
    pub v6: (std::net::IpAddr, std::net::IpAddr),
}

impl Veth {
    /// Joins the own namespace with `other` through 10.9.`subnet`.0/24 and fd09:`subnet`::/64.
    pub fn join(other: &Netns, subnet: u8) -> Result<Self> {
        let (here, there) = (format!("cth{subnet}"), format!("ctt{subnet}"));
        let netns = other.name();
        sh(&format!("ip link add {here} type veth peer name {there} netns {netns}"))?;
        sh(&format!("ip addr add 10.9.{subnet}.1/24 dev {here}"))?;
        sh(&format!("ip -n {netns} addr add 10.9.{subnet}.2/24 dev {there}"))?;
        sh(&format!("ip addr add fd09:{subnet}::1/64 dev {here} nodad"))?;
        sh(&format!("ip -n {netns} addr add fd09:{subnet}::2/64 dev {there} nodad"))?;
        sh(&format!("ip link set {here} up"))?;
        sh(&format!("ip -n {netns} link set {there} up"))?;
        let veth = Self {
            here,
            there,
            v4: (format!("10.9.{subnet}.1").parse()?, format!("10.9.{subnet}.2").parse()?),
            v6: (format!("fd09:{subnet}::1").parse()?, format!("fd09:{subnet}::2").parse()?),
        };
        // Neighbours are written down rather than learnt: a first packet held for ARP would be sent, and counted, late.
        let mac = |prefix: &str, device: &str| -> Result<String> {
            let line = sh(&format!("ip {prefix} -o link show dev {device}"))?;
            let mut words = line.split_whitespace().skip_while(|word| *word != "link/ether");
            Ok(words.nth(1).context("no MAC address in `ip link`")?.to_owned())
        };
        let inside = format!("-n {netns}");
        let (mac_here, mac_there) = (mac("", &veth.here)?, mac(&inside, &veth.there)?);
        for (address_here, address_there) in [veth.v4, veth.v6] {
            sh(&format!(
                "ip neigh replace {address_there} lladdr {mac_there} dev {} nud permanent",
                veth.here
            ))?;
            sh(&format!(
                "ip {inside} neigh replace {address_here} lladdr {mac_here} dev {} nud permanent",
                veth.there
            ))?;
        }
        Ok(veth)
    }
}

fn path_of(name: &str) -> Result<PathBuf> {
    ["/run/netns", "/var/run/netns"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("no file for netns {name} under /run/netns or /var/run/netns"))
}
