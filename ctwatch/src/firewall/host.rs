//! What of the host decides which packets a rule meets: its own addresses, and whether it forwards.
//! Unknown addresses may be any; a host of which it isn't known may forward.

use serde::{Deserialize, Serialize};

use super::ir::Family;
use super::options;
use super::ranges::Ranges;

/// The same as text, as a recording keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The networks for whose addresses this host takes packets, if known: "192.0.2.1/32".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_v4: Option<Vec<String>>,
    /// Those of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_v6: Option<Vec<String>>,
    /// Whether it forwards IPv4, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwards_v4: Option<bool>,
    /// Whether it forwards IPv6, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwards_v6: Option<bool>,
    /// The names of its VRFs, the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vrfs: Vec<String>,
}

/// What is known of the host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    own: [Option<Ranges>; 2],
    forwards: [Option<bool>; 2],
    vrfs: Vec<String>,
}

impl Host {
    /// Reads the texts; an address that can't be read makes all of its family unknown.
    pub fn new(facts: &HostFacts) -> Self {
        let own = |list: &Option<Vec<String>>| {
            let networks: Option<Vec<Ranges>> =
                list.as_ref()?.iter().map(|text| options::network(text)).collect();
            Some(Ranges::of(networks?.iter().flat_map(|set| set.intervals().iter().copied())))
        };
        Self {
            own: [own(&facts.own_v4), own(&facts.own_v6)],
            forwards: [facts.forwards_v4, facts.forwards_v6],
            vrfs: facts.vrfs.clone(),
        }
    }

    /// This host's own addresses, if known; those on lo are among them.
    pub fn own(&self, family: Family) -> Option<&Ranges> {
        self.own[family as usize].as_ref()
    }

    /// The names of VRFs here.
    pub fn vrfs(&self) -> &[String] {
        &self.vrfs
    }

    /// Whether packets of this family may pass through.
    pub fn may_forward(&self, family: Family) -> bool {
        self.forwards[family as usize].unwrap_or(true)
    }
}

/// Networks remembered of each family: whose netns it is adds as many as he likes, and then they are unknown.
pub const NETWORKS: usize = 1 << 16;

/// Networks that were found, unless there are too many, or a line isn't understood.
#[derive(Debug)]
struct Networks(Option<Vec<String>>);

impl Networks {
    const NONE: Self = Self(Some(Vec::new()));

    fn add(&mut self, network: Option<String>) {
        match (&mut self.0, network) {
            (Some(found), Some(network)) if found.len() < NETWORKS => found.push(network),
            (found, _) => *found = None,
        }
    }
}

/// The local networks in `/proc/net/fib_trie`: what `fib daddr type local` and addrtype ask for IPv4 (table local alone,
/// __inet_dev_addr_type, net/ipv4/fib_frontend.c, 6.12). It is called "Main" where the kernel has joined the two. Line by line: a
/// router's has millions of them.
#[derive(Debug, Default)]
pub struct LocalV4 {
    /// Of the tables "Local:" and "Main:".
    tables: [Option<Networks>; 2],
    /// The one that goes on.
    table: Option<usize>,
    leaf: String,
}

impl LocalV4 {
    /// The next line.
    pub fn line(&mut self, line: &str) {
        if !line.starts_with(' ') {
            self.table = match line {
                "Local:" => Some(0),
                "Main:" => Some(1),
                _ => None,
            };
            self.leaf.clear();
            return;
        }
        let Some(table) = self.table else { return };
        let found = self.tables[table].get_or_insert(Networks::NONE);
        let line = line.trim();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            self.leaf.clear();
            self.leaf.push_str(leaf);
        } else if let Some(entry) = line.strip_prefix('/').filter(|entry| entry.contains("LOCAL")) {
            let mut words = entry.split_whitespace();
            if let (Some(bits), Some("LOCAL")) = (words.next(), words.nth(1)) {
                found.add((!self.leaf.is_empty()).then(|| format!("{}/{bits}", self.leaf)));
            }
        }
    }

    /// What was found; `None` if that isn't all.
    pub fn found(self) -> Option<Vec<String>> {
        self.tables.into_iter().flatten().next()?.0
    }
}

/// The local networks in `/proc/net/ipv6_route`: those with RTF_LOCAL, include/uapi/linux/ipv6_route.h, 6.12.
#[derive(Debug)]
pub struct LocalV6(Networks);

impl Default for LocalV6 {
    fn default() -> Self {
        Self(Networks::NONE)
    }
}

impl LocalV6 {
    /// The next line.
    pub fn line(&mut self, line: &str) {
        match local_route(line) {
            Some(None) => {}
            Some(network) => self.0.add(network),
            None => self.0.add(None),
        }
    }

    /// What was found; `None` if that isn't all.
    pub fn found(self) -> Option<Vec<String>> {
        self.0.0
    }
}

/// The network of a route, if it is a local one; `None` if it isn't understood.
fn local_route(line: &str) -> Option<Option<String>> {
    const RTF_LOCAL: u32 = 0x8000_0000;
    let mut words = line.split_whitespace();
    let (address, bits) = (words.next()?, words.next()?);
    let flags = words.nth(6)?;
    if words.count() != 1 {
        return None;
    }
    if u32::from_str_radix(flags, 16).ok()? & RTF_LOCAL == 0 {
        return Some(None);
    }
    let address = std::net::Ipv6Addr::from_bits(u128::from_str_radix(address, 16).ok()?);
    Some(Some(format!("{address}/{}", u8::from_str_radix(bits, 16).ok()?)))
}

/// Of a whole text.
pub fn local_v4(fib_trie: &str) -> Option<Vec<String>> {
    let mut networks = LocalV4::default();
    fib_trie.lines().for_each(|line| networks.line(line));
    networks.found()
}

/// Of a whole text.
pub fn local_v6(ipv6_route: &str) -> Option<Vec<String>> {
    let mut networks = LocalV6::default();
    ipv6_route.lines().for_each(|line| networks.line(line));
    networks.found()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_those_that_the_kernel_calls_local() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 192.0.2.0\n        /24 link UNICAST\n\
                    Local:\n  +-- 0.0.0.0/0 3 0 5\n     +-- 127.0.0.0/8 2 0 2\n        +-- 127.0.0.0/31 1 0 0\n           |-- 127.0.0.0\n              \
                    /8 host LOCAL\n           |-- 127.0.0.1\n              /32 host LOCAL\n     |-- 192.0.2.1\n        /32 host LOCAL\n     \
                    |-- 192.0.2.255\n        /32 link BROADCAST\nId 100:\n  |-- 0.0.0.0\n     /0 host LOCAL\n";
        assert_eq!(local_v4(trie).expect("it is one"), ["127.0.0.0/8", "127.0.0.1/32", "192.0.2.1/32"]);
        assert_eq!(local_v4("nothing of the kind"), None);
        let joined = trie.replace("Local:", "Main:").split_once("Main:\n").expect("twice").1.to_owned();
        assert!(local_v4(&joined).is_some());
    }

    #[test]
    fn own_ipv6_addresses_have_the_local_flag() {
        let routes = "\
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n\
20010db8000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000003 00000000 80200001     eth0\n";
        assert_eq!(local_v6(routes).expect("they are routes"), ["2001:db8::1/128"]);
        assert_eq!(local_v6("odd line\n"), None);
        let facts = HostFacts { own_v6: local_v6(routes), ..HostFacts::default() };
        let host = Host::new(&facts);
        assert!(host.own(Family::V6).expect("known").contains(0x2001_0db8 << 96 | 1));
        assert_eq!(host.own(Family::V4), None);
        assert!(host.may_forward(Family::V4), "not known: it may");
    }
}
