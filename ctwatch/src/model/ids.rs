//! What identifies a netns, a process, an owner.
//! Small and comparable: they are parts of keys.

use ctwatch_common::netns;

/// A network namespace: its inode number, made distinct from earlier namespaces that had the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId(pub u32);

impl NetnsId {
    /// The namespace that has this inode number after so many others had it.
    #[must_use]
    pub const fn new(inode: u32, generation: u32) -> Self {
        Self(netns::id(inode, generation))
    }

    /// Its inode number.
    #[must_use]
    pub const fn inode(self) -> u32 {
        netns::split(self.0).0
    }

    /// How many namespaces had this inode number before it, since ctwatch started.
    #[must_use]
    pub const fn generation(self) -> u32 {
        netns::split(self.0).1
    }
}

/// People and scripts know a netns by its inode number.
impl serde::Serialize for NetnsId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.inode())
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
    /// Its name, NUL padded.
    pub name: [u8; 16],
    /// What it had to do with the packet.
    pub role: Role,
}

/// Whose packet it was. Made once per process, not per packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The process; `None` if it is unknown or there is none on this host.
    pub process: Option<ProcessId>,
    /// Path of the process's cgroup.
    pub cgroup: Option<String>,
    /// The container or unit of the process; that of the netns where the process is unknown.
    pub container: Option<String>,
    /// Without a process: it may be anybody's, so nobody's count is complete.
    pub anybodys: bool,
}
