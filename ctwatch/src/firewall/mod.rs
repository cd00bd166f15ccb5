//! The host's firewall rules, and whether exempting a service from conntrack (NOTRACK) would break something.
//! Pure but for `read`, which only runs programs that list rules; nothing here changes a rule.

mod commands;
mod dump;
mod ends;
pub(crate) mod host;
mod index;
mod iptables;
pub(crate) mod ipvs;
mod ir;
mod judge;
mod listing;
mod nat;
mod nft;
mod options;
mod path;
mod ranges;
mod read;
mod run;
mod stateless;
mod translation;
mod walk;
mod words;

use std::collections::HashSet;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

pub use commands::Commands;
pub use dump::{Dump, Save, Tools};
pub use host::HostFacts;
pub use iptables::{is_save, is_table};
pub use ir::Tool;
pub use listing::{Listed, Published};
pub use read::{list, read};
pub use run::Budget;
pub use stateless::SAVED;

use crate::foreign::Foreign;
use crate::model::Protocol;
use host::Host;
use index::Index;
use ipvs::VirtualService;
use ir::{Action, RuleTable, Stays, Step};

/// All rules of a netns.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    tables: Vec<RuleTable>,
    automatic_helpers: bool,
    local_ports: Option<(u16, u16)>,
    tools: Tools,
    legacy: bool,
    /// nft could list its rules, be there any or none.
    nft_answers: bool,
    host: Host,
    virtual_services: Vec<VirtualService>,
    /// A rule by which bridged packets are tracked before any chain of IP: its place and its words.
    bridged: Option<(String, String)>,
    /// What couldn't be read of the rules: nothing is advised then.
    unread: Vec<Note>,
    index: OnceLock<Index>,
}

/// Rules that couldn't be read, and what would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The program or file.
    pub tool: String,
    /// What is unknown for that reason.
    pub text: String,
}

/// Which way the flows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Client and service on this host, over lo.
    Loopback,
    /// The service is here, its clients are elsewhere.
    Served,
    /// The clients are here, the service is elsewhere.
    Outgoing,
}

/// Flows to be exempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExemptTarget {
    /// The protocol: TCP, UDP or another one with ports.
    pub proto: Protocol,
    /// The service's port.
    pub port: u16,
    /// Which way they go.
    pub scope: Scope,
}

impl std::fmt::Display for ExemptTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.port, self.proto)
    }
}

/// The kind of objection to exempting flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectionKind {
    /// A container's or a cluster's published port: its packets need NAT.
    PublishedPort,
    /// Another rule that translates addresses or redirects.
    NatRule,
    /// A helper inspects the connection (FTP, SIP …).
    Helper,
    /// Only packets of known connections are let in (or out): exempted ones would be dropped.
    EstablishedOnly,
    /// Packets take their mark from the connection: what goes by the mark (routing, shaping) would change.
    ConnectionMark,
    /// A rule that rejects new connections, or limits them, would no longer apply.
    OpensAccess,
    /// ICMP errors about the connections would be dropped: they work until a path has a smaller MTU.
    IcmpErrors,
    /// A decision that can't be judged from here.
    Unknown,
    /// Nothing would change: they are exempt already.
    AlreadyUntracked,
    /// A part of them is exempt already; worth to know.
    HalfUntracked,
}

impl ObjectionKind {
    /// Whether it forbids the exemption; the others are worth to know.
    #[must_use]
    pub fn forbids(self) -> bool {
        !matches!(self, Self::AlreadyUntracked | Self::HalfUntracked | Self::IcmpErrors)
    }
}

/// A reason not to exempt them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objection {
    /// Its kind.
    pub kind: ObjectionKind,
    /// The rule behind it, as its tool prints it.
    pub rule: Foreign,
    /// Table and chain of that rule.
    pub place: Foreign,
    /// What would break, in a sentence.
    pub text: String,
    /// A command that removes the objection without letting in more than today.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Objection {
    /// The rule with its place in front: "inet filter input: ct state established accept".
    #[must_use]
    pub fn located_rule(&self) -> String {
        match (&self.place, &self.rule) {
            (none, only) | (only, none) if none.is_empty() => only.to_string(),
            (place, rule) => format!("{place}: {rule}"),
        }
    }
}

/// Questions about what rules write themselves: which flows have come by such a rule isn't the same for untracked ones, so neither
/// is the answer.
fn settle(tables: &mut [RuleTable]) {
    /// How a rule asks for any byte of a packet.
    const BYTES: [&str; 4] = ["base", "u32", "bpf", "string"];
    let mut written: HashSet<String> = HashSet::new();
    for action in each_step(tables).flat_map(index::actions) {
        match action {
            Action::Writes(name) => {
                if !name.starts_with('@') {
                    written.extend(BYTES.map(str::to_owned));
                }
                written.insert(name.clone());
            }
            Action::SetMark { .. } | Action::MarkUnknown(..) | Action::MarkFromConnection => {
                written.insert("mark".to_owned());
            }
            _ => {}
        }
    }
    if written.is_empty() {
        return;
    }
    let is_written = |text: &str| {
        text.split(|char: char| char == '"' || char.is_whitespace()).any(|word| written.contains(word))
    };
    let mut ask = |stays: &mut Stays, text: &str| {
        if *stays != Stays::Never && is_written(text) {
            *stays = Stays::Never;
        }
    };
    let chains = tables.iter_mut().flat_map(|table| &mut table.chains);
    for step in chains.flat_map(|chain| &mut chain.rules).flat_map(|rule| &mut rule.steps) {
        match step {
            Step::If(condition) => condition.each_unknown(&mut ask),
            Step::Do(Action::MarkUnknown(stays, text)) => ask(stays, text),
            Step::Do(_) => {}
            Step::Case(cases) => cases.iter_mut().for_each(|(condition, _)| condition.each_unknown(&mut ask)),
        }
    }
}

fn each_step(tables: &[RuleTable]) -> impl Iterator<Item = &Step> {
    let chains = tables.iter().flat_map(|table| &table.chains);
    chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.steps)
}

impl Firewall {
    /// Reads what the tools printed. Notes say what couldn't be understood; where it is all that a tool says, every exemption
    /// has an objection.
    #[must_use]
    pub fn parse(dump: &Dump) -> (Self, Vec<Note>) {
        let mut notes = Vec::new();
        let mut tables = Vec::new();
        let mut own = Vec::new();
        let mut bridged = None;
        if !dump.nft_json.trim().is_empty() {
            match nft::parse(&dump.nft_json, &dump.nft_text) {
                Ok(found) => (own, bridged) = (found.tables, found.bridged),
                Err(error) => notes
                    .push(Note { tool: "nft".to_owned(), text: format!("nft rules are unknown: {error:#}") }),
            }
        }
        // iptables-nft keeps its rules in tables of nf_tables, where nft shows them with parts it can't print. What
        // iptables-nft-save says is put beside that, if it said all: it leaves out chains it didn't make. The legacy
        // variant's are other tables with the same names.
        for save in &dump.saves {
            for mut table in iptables::parse(save) {
                let twin = own.iter().position(|nft| nft.family == table.family && nft.name == table.name);
                match twin.filter(|_| !save.legacy) {
                    Some(twin) if own[twin].is_all_in(&table) => {
                        table.join(own.remove(twin));
                        tables.push(table);
                    }
                    Some(_) => {}
                    None => tables.push(table),
                }
            }
        }
        tables.extend(own);
        settle(&mut tables);
        let legacy = dump.saves.iter().any(|save| save.legacy && save.text.contains("\n-A "));
        let firewall = Self {
            tables,
            automatic_helpers: dump.automatic_helpers,
            local_ports: dump.local_ports,
            tools: dump.tools,
            legacy,
            nft_answers: !dump.nft_json.trim().is_empty(),
            host: Host::new(&dump.host),
            bridged,
            virtual_services: ipvs::parse(&dump.ipvs),
            unread: dump.unread.iter().chain(&notes).cloned().collect(),
            index: OnceLock::new(),
        };
        if listing::has_extensions(&firewall.tables) {
            notes.push(Note {
                tool: "iptables-save".to_owned(),
                text: "some rules were made by iptables and nft can't print them: install iptables so that they can be judged"
                    .to_owned(),
            });
        }
        (firewall, notes)
    }

    /// The iptables of each family that is in use here: where there are legacy rules, that variant.
    fn iptables_programs(&self) -> Vec<String> {
        let is_legacy = |name: &str| matches!(name, "iptables-legacy" | "ip6tables-legacy");
        let of = |tool: Tool, name: &str| {
            let legacy = self.tables.iter().find(|table| table.tool == tool && is_legacy(&table.program));
            legacy.map_or_else(|| name.to_owned(), |table| table.program.clone())
        };
        let mut programs = vec![of(Tool::Iptables, "iptables")];
        // A host without ip6tables can't be told to use it.
        if self.tools.ip6tables || !self.tools.iptables {
            programs.push(of(Tool::Ip6tables, "ip6tables"));
        }
        programs
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::new(&self.tables))
    }

    /// Whether connections may be there that a helper announced.
    fn has_helpers(&self) -> bool {
        self.automatic_helpers || self.index().helps
    }

    /// Objections to exempting these flows; none means that it is safe as far as the rules tell.
    #[must_use]
    pub fn objections(&self, target: &ExemptTarget) -> Vec<Objection> {
        judge::objections(self, target)
    }

    /// The existing rules that exempt packets.
    #[must_use]
    pub fn untracked(&self) -> Vec<Listed> {
        listing::untracked(&self.tables)
    }

    /// The rules that enable conntrack.
    #[must_use]
    pub fn tracking_rules(&self) -> Vec<Listed> {
        listing::tracking(&self.tables)
    }

    /// How to remove the rules that enable conntrack.
    ///
    /// # Errors
    /// Why they have to stay.
    pub fn without_tracking(&self) -> Result<Commands, Vec<Objection>> {
        if let Some(note) = self.unread.first() {
            return Err(vec![Objection {
                kind: ObjectionKind::Unknown,
                rule: Foreign::default(),
                place: note.tool.clone().into(),
                text: format!("whether other rules depend on connection state is unknown: {}", note.text),
                remedy: None,
            }]);
        }
        stateless::without_tracking(&self.tables)
    }

    /// Whether any rule translates addresses (where timeouts below RFC 5382 break mappings).
    #[must_use]
    pub fn has_nat(&self) -> bool {
        listing::has_nat(&self.tables)
    }

    /// Ports that a rule redirects.
    #[must_use]
    pub fn published(&self) -> Vec<Published> {
        listing::published(&self.tables)
    }

    /// The tool whose commands advice should use: nft, whose table of its own no rule of others can be in front of, and which
    /// leaves nothing behind; iptables where nft isn't installed, or where there are rules of the legacy variant and nf_tables isn't
    /// even loaded.
    #[must_use]
    pub fn preferred_tool(&self) -> Tool {
        let without_nft = !self.tools.nft || (self.legacy && !self.nft_answers);
        if self.tools.iptables && without_nft { Tool::Iptables } else { Tool::Nft }
    }

    /// `nft` is on PATH.
    #[must_use]
    pub fn can_nft(&self) -> bool {
        self.tools.nft
    }

    /// `iptables` is on PATH.
    #[must_use]
    pub fn can_iptables(&self) -> bool {
        self.tools.iptables
    }

    /// The commands that exempt these flows, in both directions and both families, keep that over a reboot, and undo it.
    #[must_use]
    pub fn notrack_commands(&self, target: &ExemptTarget, tool: Tool) -> Commands {
        commands::notrack(target, tool, &self.iptables_programs())
    }
}
