//! What one row of a report stands for: the keys of `--by`.
//! Only their names; how a loss is projected to one is in `key`.

/// What one row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Service port, protocol, loopback or not, netns.
    Port,
    /// The whole original tuple.
    Flow,
    /// Source address.
    Src,
    /// Destination address.
    Dst,
    /// Protocol.
    Proto,
    /// Cause alone.
    Cause,
    /// Network namespace.
    Netns,
    /// Process that sent the packet, or listens where it was going.
    Process,
    /// Container of that process, or of the netns.
    Container,
}

impl By {
    /// All of them, as help lists them.
    pub const ALL: [Self; 9] = [
        Self::Port,
        Self::Flow,
        Self::Src,
        Self::Dst,
        Self::Proto,
        Self::Cause,
        Self::Netns,
        Self::Process,
        Self::Container,
    ];

    /// The spelling in flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Flow => "flow",
            Self::Src => "src",
            Self::Dst => "dst",
            Self::Proto => "proto",
            Self::Cause => "cause",
            Self::Netns => "netns",
            Self::Process => "process",
            Self::Container => "container",
        }
    }

    /// Whether rows need to know whose packets they were.
    #[must_use]
    pub const fn needs_owners(self) -> bool {
        matches!(self, Self::Process | Self::Container)
    }
}
