//! What the tools printed, as one value: recordings keep it and judge it again.
//! Nothing is interpreted here.

use serde::{Deserialize, Serialize};

use super::{HostFacts, Note};

/// The rules of a netns as its tools print them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// `nft -j list ruleset`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nft_json: String,
    /// `nft -s -a list ruleset`: the words for what the JSON says, found by handle.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nft_text: String,
    /// `iptables-save` and its kin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saves: Vec<Save>,
    /// Kernels before 6.0 can assign helpers by port alone, without a rule (nf_conntrack_helper = 1).
    #[serde(default)]
    pub automatic_helpers: bool,
    /// The ports this host's clients get (net.ipv4.ip_local_port_range), if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_ports: Option<(u16, u16)>,
    /// Which tools are on PATH.
    #[serde(default)]
    pub tools: Tools,
    /// This host's addresses, and whether it forwards.
    #[serde(default)]
    pub host: HostFacts,
    /// Rules that couldn't be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Note>,
}

/// One output of iptables-save.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Save {
    /// The program: "iptables-save", "ip6tables-legacy-save".
    pub tool: String,
    /// IPv6 rules.
    pub ipv6: bool,
    /// The rules live in x_tables, not in nf_tables.
    pub legacy: bool,
    /// What it printed.
    pub text: String,
}

/// Which programs can change the rules here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// `nft` is on PATH.
    pub nft: bool,
    /// `iptables` is on PATH.
    pub iptables: bool,
    /// `ip6tables` is on PATH.
    pub ip6tables: bool,
}
