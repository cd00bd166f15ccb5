//! One form for the rules of nft and iptables, so that they are judged in one place.
//! Nothing is judged here, and what a front end doesn't understand has to be in the form as not understood.

use super::ranges::Ranges;
use crate::foreign::Foreign;

/// How the text of a part of iptables begins that nft can't print.
pub const EXTENSION: &str = "iptables extension ";

/// Bits of `ct state`, as enum nft_ct's NF_CT_STATE_*: include/uapi/linux/netfilter/nf_conntrack_common.h, 6.12.
pub mod state {
    /// Conntrack saw it and made no entry.
    pub const INVALID: u8 = 1;
    /// A packet of a known flow that has seen both directions, or a reply.
    pub const ESTABLISHED: u8 = 2;
    /// About a known flow: an ICMP error, or a helper's expectation.
    pub const RELATED: u8 = 4;
    /// The first direction of a flow without a reply.
    pub const NEW: u8 = 8;
    /// Exempted by NOTRACK.
    pub const UNTRACKED: u8 = 64;
    /// Each of them.
    pub const EACH: [u8; 5] = [INVALID, ESTABLISHED, RELATED, NEW, UNTRACKED];
}

/// Which IP a packet is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The program whose rules these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// `nft`.
    Nft,
    /// `iptables`, either variant.
    Iptables,
    /// `ip6tables`, either variant.
    Ip6tables,
}

/// Where in the stack a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Every packet that arrives.
    Prerouting,
    /// What is for this host.
    Input,
    /// What is passed on.
    Forward,
    /// What this host sends.
    Output,
    /// Every packet that leaves.
    Postrouting,
}

/// What a chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a tracked flow only: nf_nat_inet_fn, net/netfilter/nf_nat_core.c, 6.12.
    Nat,
}

/// A chain that the kernel calls.
#[derive(Clone, Debug)]
pub struct Base {
    /// What it is for.
    pub kind: Kind,
    /// Where it sits.
    pub hook: Hook,
    /// Lower runs first.
    pub priority: i32,
    /// Whether a packet no rule decided on is dropped.
    pub drops: bool,
}

/// A list of rules.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Absent for a chain that others jump to.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A table of either tool.
#[derive(Clone, Debug)]
pub struct RuleTable {
    /// Whose it is.
    pub tool: Tool,
    /// The family's word in the tool's commands ("inet"); for iptables "ip" or "ip6".
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// The program that changes it: "nft", "iptables-legacy".
    pub program: String,
    /// Its chains.
    pub chains: Vec<Chain>,
}

impl RuleTable {
    /// Whether packets of this family pass it.
    #[must_use]
    pub fn sees(&self, family: Family) -> bool {
        match self.family {
            "inet" => true,
            "ip6" => family == Family::V6,
            _ => family == Family::V4,
        }
    }

    /// Whether `other` has all its chains, with as many rules in each.
    #[must_use]
    pub fn is_all_in(&self, other: &Self) -> bool {
        self.chains.iter().all(|chain| {
            let same = other.chains.iter().find(|same| same.name == chain.name);
            same.is_some_and(|same| same.rules.len() == chain.rules.len())
        })
    }

    /// Adds what nft says of the same rules, chain by chain: a part that one of the tools leaves out or can't print still holds.
    /// iptables-save says nothing of sets, maps and the like that it has no match for, and names no target then.
    pub fn join(&mut self, nft: Self) {
        for of_nft in nft.chains {
            let Some(chain) = self.chains.iter_mut().find(|chain| chain.name == of_nft.name) else {
                continue;
            };
            chain.base = of_nft.base.or(chain.base.take());
            for (rule, of_nft) in chain.rules.iter_mut().zip(of_nft.rules) {
                let is_said = |step: &Step| match step {
                    Step::If(Condition::Unknown(_, text)) | Step::Do(Action::Unknown(text)) => {
                        !text.starts_with(EXTENSION)
                    }
                    _ => true,
                };
                let is_more = |step: &Step| match step {
                    Step::If(_) => false,
                    Step::Do(action) => !action.is_verdict(),
                    Step::Case(_) => true,
                };
                let is_condition = |step: &Step| matches!(step, Step::If(_));
                let mut said: Vec<Step> = of_nft.steps.into_iter().filter(is_said).collect();
                let own = std::mem::take(&mut rule.steps);
                let (asks, does): (Vec<Step>, Vec<Step>) = own.into_iter().partition(is_condition);
                let says_more = does.is_empty() || said.iter().any(is_more) && !does.iter().any(is_more);
                if !says_more {
                    said.retain(is_condition);
                }
                rule.steps = asks.into_iter().chain(said).chain(does).collect();
            }
        }
    }

    /// How one names a chain of it: "inet filter input", "iptables filter INPUT".
    #[must_use]
    pub fn place(&self, chain: &str) -> Foreign {
        let first = match self.tool {
            Tool::Nft => self.family,
            Tool::Iptables => "iptables",
            Tool::Ip6tables => "ip6tables",
        };
        format!("{first} {} {chain}", self.name).into()
    }
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Run in order until a condition doesn't hold or something ends the rule.
    pub steps: Vec<Step>,
    /// As the tool prints it.
    pub text: Foreign,
    /// The command that removes it, where one is known.
    pub delete: Option<String>,
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Go on only if it holds.
    If(Condition),
    /// Do it.
    Do(Action),
    /// Do what belongs to the first that holds, nothing if none does (a verdict map).
    Case(Vec<(Condition, Action)>),
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it pass this hook's chain.
    Accept,
    /// Drop it, with or without an error to the sender.
    Drop,
    /// On to the next rule.
    Continue,
    /// Back to the chain that jumped here.
    Return,
    /// Run that chain and come back.
    Jump(String),
    /// Run that chain instead of the rest of this one.
    Goto(String),
    /// Let a program decide.
    Queue,
    /// Change an address or port: dnat, snat, masquerade, redirect, tproxy. With where to, if that is known.
    Nat(Nat),
    /// Exempt from conntrack.
    Notrack,
    /// Assign a conntrack helper.
    Helper(String),
    /// mark = (mark & !mask) ^ value.
    SetMark {
        /// The bits to clear first.
        mask: u32,
        /// The bits to flip then.
        value: u32,
    },
    /// The mark becomes something that isn't known here, but stays so long; with what it is made of.
    MarkUnknown(Stays, String),
    /// Writes something by this name that other rules may ask for: a set ("@seen"), a field of the packet ("dscp").
    Writes(String),
    /// The mark becomes the connection's.
    MarkFromConnection,
    /// Writes something into the conntrack entry: a mark, a label, a timeout.
    WriteConnection,
    /// Give the packet a template before conntrack sees it: a zone, a timeout, events to report. With one it is tracked whatever
    /// NOTRACK said: nft_ct_set_zone_eval and nft_notrack_eval, net/netfilter/nft_ct.c, xt_ct_target, net/netfilter/xt_CT.c, 6.12.
    Template {
        /// The zone as the rule has it, if it sets one.
        zone: Option<String>,
    },
    /// Its effect is unknown: it may drop the packet.
    Unknown(String),
}

impl Action {
    /// Whether it only says where the packet goes on.
    #[must_use]
    pub fn is_verdict(&self) -> bool {
        matches!(
            self,
            Self::Accept | Self::Drop | Self::Continue | Self::Return | Self::Jump(_) | Self::Goto(_)
        )
    }
}

/// A translation of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Nat {
    /// dnat, snat, masquerade, redirect or tproxy.
    pub kind: &'static str,
    /// Where to, as text.
    pub to: Option<String>,
    /// The new addresses.
    pub addresses: Target,
    /// The new ports.
    pub ports: Target,
}

/// What a translation makes of an address or a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The same; a source port is kept if it is free.
    Kept,
    /// One of these.
    Within(Ranges),
    /// One of this host's own addresses.
    Own,
    /// Not known: any.
    Any,
}

impl Nat {
    /// To somewhere that isn't known.
    #[must_use]
    pub fn unknown(kind: &'static str, to: Option<String>) -> Self {
        let addresses = match kind {
            "masquerade" | "redirect" => Target::Own,
            _ => Target::Any,
        };
        Self { kind, to, addresses, ports: Target::Any }
    }

    /// Whether it changes where a packet goes to (not where it comes from).
    #[must_use]
    pub fn is_destination(&self) -> bool {
        matches!(self.kind, "dnat" | "redirect" | "tproxy")
    }
}

/// Whose address or port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The packet's source.
    Source,
    /// The packet's destination.
    Destination,
}

/// A number in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// IP protocol.
    Protocol,
    /// An address (which family's, a condition beside it says).
    Address(End),
    /// A port.
    Port(End),
    /// ICMP or ICMPv6 type.
    IcmpType,
    /// ICMP or ICMPv6 code.
    IcmpCode,
}

/// How long the answer to a question that can't be answered here stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stays {
    /// For all packets of one direction of a flow: an address in a set of another tool, the owner of a socket.
    Flow,
    /// For one packet at one hook: a byte somewhere inside.
    Packet,
    /// For nothing: rates, amounts, time, chance. They go by how many packets ask, tracked or not: where a packet asks today and
    /// untracked alike, it makes no difference.
    Chance,
    /// For nothing, and it may be another one for a packet that isn't tracked.
    Never,
}

/// What a rule asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The packet is of this family.
    Family(Family),
    /// A number is in this set.
    In(Field, Ranges),
    /// tcp flags & mask == value.
    TcpFlags {
        /// Which are looked at.
        mask: u8,
        /// Which of them are set.
        value: u8,
    },
    /// The interface it came in by (or leaves by) has this name; `*` at the end stands for anything.
    Device {
        /// Leaves by, not came in by.
        out: bool,
        /// Name or beginning of a name with `*`.
        name: String,
    },
    /// The connection's state is one of these bits.
    State(u8),
    /// The packet belongs to a conntrack entry. nft rules that read anything else but the state of a connection end
    /// here without one: nft_ct_get_eval, net/netfilter/nft_ct.c, 6.12.
    Tracked,
    /// The flow has been translated: `ct status dnat`, `--ctstate DNAT`; `true` for the destination.
    Translated(bool),
    /// The packet is of the flow's first direction.
    Original,
    /// mark & mask == value.
    Mark {
        /// Which bits are looked at.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// The routing table calls the address local, unicast, broadcast …
    AddressType(End, String),
    /// Counts connections by looking for their entries: nf_conncount, which finds none for untracked packets.
    CountsConnections(String),
    /// The connection has a helper, this one perhaps: none has where nothing assigns any.
    Helped(String),
    /// Can't be answered here; the text tells questions apart.
    Unknown(Stays, String),
    /// All hold.
    All(Vec<Condition>),
    /// At least one holds.
    Any(Vec<Condition>),
    /// It doesn't hold.
    Not(Box<Condition>),
}

impl Condition {
    /// Questions that can't be answered here.
    pub fn each_unknown(&mut self, of: &mut impl FnMut(&mut Stays, &str)) {
        match self {
            Self::Unknown(stays, text) => of(stays, text),
            Self::All(all) | Self::Any(all) => all.iter_mut().for_each(|one| one.each_unknown(of)),
            Self::Not(condition) => condition.each_unknown(of),
            _ => {}
        }
    }

    /// Turned round if asked for.
    #[must_use]
    pub fn negated(self, negate: bool) -> Self {
        if negate { Self::Not(Box::new(self)) } else { self }
    }
}
