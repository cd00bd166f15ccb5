//! Replaces whatever identifies somebody, the same thing always by the same: addresses keep the prefixes they share, names
//! become numbers. What is kept, and why, is in docs/recording.md.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use ipcrypt_rs::IpcryptPfx;
use sha2::{Digest as _, Sha256};

use super::rows::{Names, Run};
use crate::model::{Loss, Name, Owner, ProcessId, Sender, Tuple, is_home_netns};

/// The replacements made so far.
pub struct Anonymizer {
    addresses: IpcryptPfx,
    processes: Numbers<String>,
    pids: Numbers<u32>,
    containers: Numbers<String>,
    cgroups: Numbers<String>,
    netns: Numbers<String>,
    hosts: Numbers<String>,
    devices: Numbers<String>,
}

impl std::fmt::Debug for Anonymizer {
    /// Without the key and what it hides.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Anonymizer").finish_non_exhaustive()
    }
}

/// Numbers things from 1 on, in the order they are first seen.
#[derive(Debug)]
struct Numbers<T>(HashMap<T, u32>);

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Numbers<T> {
    fn of(&mut self, thing: T) -> u32 {
        let next = self.0.len() as u32 + 1;
        *self.0.entry(thing).or_insert(next)
    }
}

impl Anonymizer {
    /// With a key, addresses are replaced the same way in every file; without one, nobody can ever recover them.
    ///
    /// # Errors
    /// The kernel provides no random numbers.
    pub fn new(key: Option<&str>) -> Result<Self> {
        let mut bytes = [0; IpcryptPfx::KEY_BYTES];
        match key {
            Some(key) => bytes.copy_from_slice(&Sha256::digest(key)),
            None => File::open("/dev/urandom")
                .and_then(|mut random| random.read_exact(&mut bytes))
                .context("reading a random key from /dev/urandom")?,
        }
        // Equal halves would cancel each other out.
        if bytes[..16] == bytes[16..] {
            bytes[0] ^= 1;
        }
        Ok(Self {
            addresses: IpcryptPfx::new(bytes),
            processes: Numbers::default(),
            pids: Numbers::default(),
            containers: Numbers::default(),
            cgroups: Numbers::default(),
            netns: Numbers::default(),
            hosts: Numbers::default(),
            devices: Numbers::default(),
        })
    }

    /// A replacement for an address. Two addresses that share 8 or more leading bits share exactly as many afterwards.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => IpAddr::V4(self.ipv4(address)),
            IpAddr::V6(address) => IpAddr::V6(self.ipv6(address)),
        }
    }

    /// Addresses that belong to no host stay: "this" network, loopback, multicast and above.
    fn ipv4(&self, address: Ipv4Addr) -> Ipv4Addr {
        let is_special = |address: Ipv4Addr| matches!(address.octets()[0], 0 | 127 | 224..);
        if is_special(address) {
            return address;
        }
        let mut other = address;
        loop {
            // No host may end up in a special network: encrypt again until it is out. Since the first byte decides, all
            // addresses of one network take the same number of rounds.
            let IpAddr::V4(next) = self.addresses.encrypt_ipaddr(IpAddr::V4(other)) else { return address };
            if !is_special(next) {
                return next;
            }
            other = next;
        }
    }

    fn ipv6(&self, address: Ipv6Addr) -> Ipv6Addr {
        let is_special = |address: Ipv6Addr| matches!(address.octets()[0], 0x00 | 0xFF);
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return address;
        }
        if let Some((prefix, inner)) = embedded(address) {
            let mut octets = prefix;
            octets[12..].copy_from_slice(&self.ipv4(inner).octets());
            return octets.into();
        }
        if is_special(address) {
            let mut octets = self.encrypted(address).octets();
            octets[0] = 0;
            return octets.into();
        }
        let mut other = self.encrypted(address);
        while is_special(other) {
            other = self.encrypted(other);
        }
        other
    }

    /// The library treats a mapped IPv4 address as IPv4; [`embedded`] has handled those.
    fn encrypted(&self, address: Ipv6Addr) -> Ipv6Addr {
        match self.addresses.encrypt_ipaddr(IpAddr::V6(address)) {
            IpAddr::V6(other) => other,
            IpAddr::V4(other) => other.to_ipv6_mapped(),
        }
    }

    /// A replacement for the name of a process.
    pub fn process(&mut self, name: &str) -> String {
        format!("process-{}", self.processes.of(name.to_owned()))
    }

    /// A replacement for the name of a container, unit or session.
    pub fn container(&mut self, name: &str) -> String {
        format!("container-{}", self.containers.of(name.to_owned()))
    }

    /// A replacement for the path of a cgroup.
    pub fn cgroup(&mut self, path: &str) -> String {
        format!("/cgroup-{}", self.cgroups.of(path.to_owned()))
    }

    /// A replacement for the name of a network namespace; those that each host has identify nobody.
    pub fn netns(&mut self, name: &str) -> String {
        if is_home_netns(Some(&name.into())) {
            name.to_owned()
        } else {
            format!("netns-{}", self.netns.of(name.to_owned()))
        }
    }

    /// A replacement for a host name.
    pub fn host(&mut self, name: &str) -> String {
        format!("host-{}", self.hosts.of(name.to_owned()))
    }

    /// A replacement for the name of a network device; "lo" identifies nobody.
    pub fn device(&mut self, name: &str) -> String {
        if name == "lo" { name.to_owned() } else { format!("device-{}", self.devices.of(name.to_owned())) }
    }

    /// A replacement for a process id.
    pub fn pid(&mut self, pid: u32) -> u32 {
        if pid == 0 { 0 } else { self.pids.of(pid) }
    }

    /// Replaces what identifies the host of a run.
    pub fn run(&mut self, run: &mut Run) {
        run.host = run.host.take().map(|host| self.host(host.raw()).into());
        run.boot_id = None;
    }

    /// Replaces the names of a netns.
    pub fn names(&mut self, names: &mut Names) {
        names.name = names.name.take().map(|name| self.netns(name.raw()).into());
        names.container = names.container.take().map(|name| self.container(name.raw()).into());
    }

    /// Replaces what identifies anybody in a loss.
    pub fn loss(&mut self, loss: &mut Loss) {
        let Loss { time: _, cause: _, packet, entry, sender, pushed_out_by, owner, jiffies_per_s: _ } = loss;
        if let Some(tuple) = &mut packet.tuple {
            self.tuple(tuple);
        }
        packet.device.name = packet.device.name.map(|name| renamed(name, |name| self.device(name)));
        if let Some(reply) = entry.as_mut().and_then(|entry| entry.reply.as_mut()) {
            self.tuple(reply);
        }
        if let Some(flow) = pushed_out_by {
            self.tuple(&mut flow.tuple);
        }
        if let Some(Sender { cgroup, pid, name }) = sender {
            *cgroup = 0;
            *pid = self.pid(*pid);
            *name = renamed(*name, |name| self.process(name));
        }
        *owner = owner.take().map(|owner| Arc::new(self.owner(&owner)));
    }

    fn owner(&mut self, owner: &Owner) -> Owner {
        let Owner { process, cgroup, container, unattributable } = owner;
        let process = process.map(|ProcessId { pid, name, role }| {
            let name = renamed(name, |name| self.process(name));
            ProcessId { pid: self.pid(pid), name, role }
        });
        Owner {
            process,
            cgroup: cgroup.as_ref().map(|path| self.cgroup(path.raw()).into()),
            container: container.as_ref().map(|name| self.container(name.raw()).into()),
            unattributable: *unattributable,
        }
    }

    fn tuple(&self, tuple: &mut Tuple) {
        for address in [&mut tuple.src, &mut tuple.dst] {
            *address = match *address {
                IpAddr::V4(address) => self.ipv4(address).into(),
                IpAddr::V6(address) => self.ipv6(address).into(),
            };
        }
    }
}

/// An IPv4 address within an IPv6 one: mapped or compatible (RFC 4291), or translated (RFC 6052); with the bytes before it.
fn embedded(address: Ipv6Addr) -> Option<([u8; 16], Ipv4Addr)> {
    let octets = address.octets();
    let is_one =
        matches!(address.segments(), [0, 0, 0, 0, 0, 0 | 0xFFFF, ..] | [0x64, 0xFF9B, 0, 0, 0, 0, ..]);
    let [.., a, b, c, d] = octets;
    is_one.then_some((octets, Ipv4Addr::new(a, b, c, d)))
}

/// Replaces a name of fixed size; an empty one stays empty.
fn renamed(name: Name, other: impl FnOnce(&str) -> String) -> Name {
    super::event::text(name).map_or(name, |known| Name::new(other(&known).as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn anonymizer() -> Anonymizer {
        Anonymizer::new(Some("a key")).unwrap()
    }

    fn shared(a: u128, b: u128, width: u32) -> u32 {
        (a ^ b).leading_zeros() - (128 - width)
    }

    proptest! {
        #[test]
        fn addresses_share_as_much_as_before(a: u32, flip in 8..32u32, rest: u32) {
            let b = a ^ (1 << (31 - flip)) ^ (rest & ((1 << (31 - flip)) - 1));
            let of = |address: u32| u128::from(u32::from(anonymizer().ipv4(address.into())));
            prop_assert_eq!(shared(of(a), of(b), 32), flip);
        }

        #[test]
        fn so_do_those_of_ipv6(a in 0x0100_0000_0000_0000_0000_0000_0000_0000..u128::MAX, flip in 8..128u32, rest: u128) {
            let b = a ^ (1 << (127 - flip)) ^ (rest & ((1 << (127 - flip)) - 1));
            let of = |address: u128| u128::from(anonymizer().ipv6(address.into()));
            prop_assert_eq!(shared(of(a), of(b), 128), flip);
        }

        #[test]
        fn a_host_never_becomes_loopback_or_multicast(address: [u8; 16], v4: bool) {
            let [a, b, c, d, ..] = address;
            let address: IpAddr = if v4 { [a, b, c, d].into() } else { address.into() };
            let other = anonymizer().address(address);
            prop_assert_eq!(other.is_loopback(), address.is_loopback());
            prop_assert_eq!(other.is_multicast(), address.is_multicast());
            prop_assert_eq!(other.is_unspecified(), address.is_unspecified());
            prop_assert_eq!(other.is_ipv4(), address.is_ipv4());
        }
    }

    #[test]
    fn what_is_no_hosts_stays_and_an_ipv4_address_is_the_same_inside_ipv6() {
        let anonymizer = anonymizer();
        for same in
            ["127.0.0.1", "127.3.2.1", "0.0.0.0", "224.0.0.251", "255.255.255.255", "::", "::1", "ff02::1"]
        {
            let address: IpAddr = same.parse().unwrap();
            assert_eq!(anonymizer.address(address), address);
        }
        let inner = anonymizer.address("192.0.2.7".parse().unwrap());
        for prefix in ["::ffff:", "64:ff9b::", "::"] {
            let address: IpAddr = format!("{prefix}192.0.2.7").parse().unwrap();
            let expected: IpAddr = format!("{prefix}{inner}").parse().unwrap();
            assert_eq!(anonymizer.address(address), expected);
        }
        assert_ne!(inner, "192.0.2.7".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_key_makes_it_the_same_again_and_no_key_never() {
        let address = "198.51.100.23".parse().unwrap();
        assert_eq!(anonymizer().address(address), anonymizer().address(address));
        let other = |key| Anonymizer::new(key).unwrap().address(address);
        assert_ne!(other(None), other(None));
        assert_ne!(other(Some("another")), anonymizer().address(address));
    }

    #[test]
    fn a_name_is_always_the_same_number() {
        let mut anonymizer = anonymizer();
        let names = ["nginx", "redis", "nginx"].map(|name| anonymizer.process(name));
        assert_eq!(names, ["process-1", "process-2", "process-1"]);
        assert_eq!(
            (anonymizer.netns("host"), anonymizer.netns("blue")),
            ("host".to_owned(), "netns-1".to_owned())
        );
        let device = Name::from_padded(*b"eth0\0rubbish\0\0\0\0");
        let renamed = renamed(device, |name| anonymizer.device(name));
        assert_eq!(&renamed.padded(), b"device-1\0\0\0\0\0\0\0\0");
    }
}
