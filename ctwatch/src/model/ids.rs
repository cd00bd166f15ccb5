//! What identifies a netns, a process, an owner.
//! Small and comparable: they are parts of keys.

use std::fmt;

use ctwatch_common::netns;

use super::Name;
use crate::foreign::Foreign;

/// What the initial netns is called, and no other.
pub const HOST_NETNS: &str = "host";
/// What the netns that ctwatch runs in is called, if it has no other name.
pub const THIS_NETNS: &str = "this netns";

/// Whether this is the name of the netns that a user sees first: the host's, or the own one.
#[must_use]
pub fn is_home_netns(name: Option<&Foreign>) -> bool {
    matches!(name.map(Foreign::raw), Some(HOST_NETNS | THIS_NETNS))
}

/// A network namespace: its inode number, and how many namespaces had that number before it since ctwatch started.
///
/// Shown as `readlink /proc/PID/ns/net` and `lsns` show it, with the generation behind it if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    inode: u32,
    generation: u32,
}

impl NetnsId {
    /// The namespace that has this inode number after so many others had it.
    #[must_use]
    pub const fn new(inode: u32, generation: u32) -> Self {
        Self { inode, generation }
    }

    /// The first namespace that has this inode number.
    #[must_use]
    pub const fn from_inode(inode: u32) -> Self {
        Self::new(inode, 0)
    }

    /// From the one number by which the programs and recordings call it.
    #[must_use]
    pub const fn from_packed(packed: u32) -> Self {
        let (inode, generation) = netns::split(packed);
        Self { inode, generation }
    }

    /// The one number by which the programs and recordings call it.
    #[must_use]
    pub const fn packed(self) -> u32 {
        netns::id(self.inode, self.generation)
    }

    /// Its inode number.
    #[must_use]
    pub const fn inode(self) -> u32 {
        self.inode
    }

    /// How many namespaces had this inode number before it, since ctwatch started.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            0 => write!(f, "net:[{}]", self.inode),
            generation => write!(f, "net:[{}]#{generation}", self.inode),
        }
    }
}

/// An inode number as a person gives it: alone it means every namespace that had it, with a generation one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsNumber {
    /// The inode number.
    pub inode: u32,
    /// See [`NetnsId::generation`]; `None`: any.
    pub generation: Option<u32>,
}

impl NetnsNumber {
    /// From what `readlink`, `lsns` or ctwatch itself print: `4026532299`, `net:[4026532299]`, `net:[4026532299]#1`.
    #[must_use]
    pub fn from_words(text: &str) -> Option<Self> {
        let Some(rest) = text.strip_prefix("net:[") else {
            return Some(Self { inode: text.parse().ok()?, generation: None });
        };
        let (inode, generation) = rest.split_once(']')?;
        let generation = match generation {
            "" => None,
            numbered => Some(numbered.strip_prefix('#')?.parse().ok()?),
        };
        Some(Self { inode: inode.parse().ok()?, generation })
    }

    /// Whether this namespace is meant.
    #[must_use]
    pub fn means(self, id: NetnsId) -> bool {
        self.inode == id.inode && self.generation.is_none_or(|generation| generation == id.generation)
    }
}

impl fmt::Display for NetnsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            None => write!(f, "net:[{}]", self.inode),
            Some(generation) => write!(f, "net:[{}]#{generation}", self.inode),
        }
    }
}

/// Scripts know a netns by its inode number.
impl serde::Serialize for NetnsId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.inode)
    }
}

/// What a process had to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It sent it.
    Sender,
    /// It listens where the packet was going.
    Listener,
}

/// A process, in a fixed size: it is part of a row's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Its thread group id in the host's pid namespace.
    pub pid: u32,
    /// Its name.
    pub name: Name,
    /// What it had to do with the packet.
    pub role: Role,
}

/// Whose packet it was. Made once per process, not per packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The process; `None` if it is unknown or there is none on this host.
    pub process: Option<ProcessId>,
    /// Path of the process's cgroup.
    pub cgroup: Option<Foreign>,
    /// The container or unit of the process; that of the netns where the process is unknown.
    pub container: Option<Foreign>,
    /// Without a process: it may be any process's, so no process's count is complete.
    pub unattributable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_netns_is_shown_as_readlink_shows_it() {
        assert_eq!(NetnsId::from_inode(4_026_531_840).to_string(), "net:[4026531840]");
        assert_eq!(NetnsId::new(4_026_532_299, 1).to_string(), "net:[4026532299]#1");
    }

    #[test]
    fn a_number_alone_means_each_netns_that_had_it_and_with_a_generation_that_one() {
        let (first, second) = (NetnsId::from_inode(4_026_532_299), NetnsId::new(4_026_532_299, 1));
        let meant = |text: &str| {
            let number = NetnsNumber::from_words(text).unwrap_or_else(|| panic!("{text} is a number"));
            [first, second, NetnsId::from_inode(4_026_531_840)].map(|id| number.means(id))
        };
        for any in ["4026532299", "net:[4026532299]"] {
            assert_eq!(meant(any), [true, true, false], "{any}");
        }
        assert_eq!(meant("net:[4026532299]#0"), [true, false, false]);
        assert_eq!(meant(&second.to_string()), [false, true, false]);
        for none in
            ["", "web1", "net:[]", "net:[1", "net:[1]1", "net:[1]#", "net:[1]#x", "1#1", "-1", "4294967296"]
        {
            assert_eq!(NetnsNumber::from_words(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn the_packed_number_leads_back(packed: u32, inode in 4_026_531_840_u32..4_027_000_000, generation in 0..1024_u32) {
            prop_assert_eq!(NetnsId::from_packed(packed).packed(), packed);
            let id = NetnsId::new(inode, generation);
            prop_assert_eq!(NetnsId::from_packed(id.packed()), id);
        }
    }
}
