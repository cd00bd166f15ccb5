//! The input of advice: the measured demand, and what is known of the machine and its firewall.
//! Plain data; nothing is read here.

use std::collections::BTreeMap;

use super::demand::Demand;
use super::target::ServiceTarget;
use crate::firewall::{Commands, Objection};
use crate::foreign::Foreign;
use crate::machine::Machine;
use crate::model::Timeouts;

/// What is known of one service besides its numbers.
#[derive(Clone, Debug, Default)]
pub struct ServiceFacts {
    /// The software that serves it.
    pub server: Option<Foreign>,
    /// The software that uses it from this host.
    pub clients: Vec<Foreign>,
    /// How its connections can be reused: in a sentence, and the settings.
    pub reuse: Option<(String, Vec<String>)>,
    /// Why it must not be exempted.
    pub objections: Vec<Objection>,
    /// Other effects of exempting it.
    pub warnings: Vec<String>,
    /// It is already exempt.
    pub untracked: bool,
    /// Commands that exempt it; none if this host has no tool for it.
    pub notrack: Option<Commands>,
}

/// What is known of the firewall.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    /// There are NAT rules.
    pub nat: bool,
    /// Rules that enable conntrack, as text.
    pub tracking: Vec<String>,
    /// Commands that remove them; none if that would break something: then `objections` say what.
    pub removal: Option<Commands>,
    /// Why they must remain.
    pub objections: Vec<Objection>,
}

/// A port that is to be reached while the table is full.
#[derive(Clone, Debug)]
pub struct WayIn {
    /// Its flows.
    pub target: ServiceTarget,
    /// The program that serves logins there, if one does.
    pub who: Option<String>,
    /// By `--keep`: to be offered however much room there is.
    pub is_asked_for: bool,
}

/// A case to advise on.
#[derive(Clone, Debug)]
pub struct Case {
    /// What was measured.
    pub demand: Demand,
    /// Timeouts in force.
    pub timeouts: Timeouts,
    /// The machine.
    pub machine: Machine,
    /// Multiple of the present rate that advice is evaluated at, too.
    pub times: f64,
    /// Prefix of commands that act on another netns (`nsenter …`); empty for the own one.
    pub netns_prefix: String,
    /// Commands are typed in a netns that isn't the host's: what only the host may set has to be set elsewhere.
    pub is_away_from_host: bool,
    /// What this host reads when it boots is read for that netns.
    pub is_kept_at_boot: bool,
    /// The firewall.
    pub firewall: Firewall,
    /// By which ports people get in; their facts are among `facts`.
    pub ways_in: Vec<WayIn>,
    /// Services that were asked about, whether flows of them were seen or not; their facts are among `facts`.
    pub asked: Vec<ServiceTarget>,
    /// Of services, what is known.
    pub facts: BTreeMap<ServiceTarget, ServiceFacts>,
}

impl Case {
    /// Bytes that an entry takes at most.
    #[must_use]
    pub fn entry_bytes(&self) -> u64 {
        self.machine.table.entry.most()
    }

    /// What is known of a service.
    pub fn facts(&self, target: &ServiceTarget) -> Option<&ServiceFacts> {
        self.facts.get(target)
    }
}
