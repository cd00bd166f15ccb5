//! Rulesets through `nft -f -`, and nft's counters as witnesses that sit before and after conntrack's priority.
//! No rule may drop here unless its scenario asked for it: the rules count and switch conntrack on.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell::{run, run_with_input};

/// Loads a ruleset as one transaction.
pub fn load(ruleset: &str) -> Result<()> {
    run_with_input(&["nft", "-f", "-"], ruleset).map(drop)
}

/// Removes every rule of the netns.
pub fn flush() -> Result<()> {
    run(&["nft", "flush", "ruleset"]).map(drop)
}

/// Switches conntrack on for IPv4 and IPv6 in this netns: it stays idle until a rule needs it.
pub fn track() -> Result<()> {
    load(
        "table inet ctw_track {\n chain out {\n  type filter hook output priority 0; ct state new counter\n }\n}\n",
    )
}

/// Packets per destination port, counted at one hook before and after conntrack (priority -200).
pub struct Witness {
    hook: &'static str,
    proto: &'static str,
    ports: Vec<u16>,
}

impl Witness {
    /// Puts counters for `ports` at `hook`; for TCP also one for bare SYNs.
    pub fn place(hook: &'static str, proto: &'static str, ports: &[u16]) -> Result<Self> {
        let witness = Self { hook, proto, ports: ports.to_vec() };
        let mut rules = format!("table inet {} {{\n", witness.table());
        rules += " counter syns { }\n";
        for side in ["before", "after"] {
            for port in ports {
                rules += &format!(" counter {side}_{port} {{ }}\n");
            }
            rules += &format!(" counter {side}_all {{ }}\n");
        }
        for (side, priority) in [("before", -300), ("after", -150)] {
            rules += &format!(" chain {side} {{\n  type filter hook {hook} priority {priority};\n");
            if proto == "tcp" && side == "before" {
                rules += "  tcp flags & (syn | ack) == syn counter name syns\n";
            }
            rules += &format!("  meta l4proto {proto} counter name {side}_all\n");
            for port in ports {
                rules += &format!("  {proto} dport {port} counter name {side}_{port}\n");
            }
            rules += " }\n";
        }
        rules += "}\n";
        load(&rules)?;
        Ok(witness)
    }

    /// Per port: packets that came before conntrack and did not come out behind it.
    pub fn lost(&self) -> Result<BTreeMap<u16, u64>> {
        let counters = self.read()?;
        Ok(self
            .ports
            .iter()
            .map(|port| (*port, counters[&format!("before_{port}")] - counters[&format!("after_{port}")]))
            .collect())
    }

    /// Packets of the protocol lost between the counters, whatever their port.
    pub fn lost_in_all(&self) -> Result<u64> {
        let counters = self.read()?;
        Ok(counters["before_all"] - counters["after_all"])
    }

    /// TCP: bare SYNs that reached conntrack.
    pub fn syns(&self) -> Result<u64> {
        Ok(self.read()?["syns"])
    }

    /// Per port: packets that reached conntrack.
    pub fn seen(&self) -> Result<BTreeMap<u16, u64>> {
        let counters = self.read()?;
        Ok(self.ports.iter().map(|port| (*port, counters[&format!("before_{port}")])).collect())
    }

    fn read(&self) -> Result<BTreeMap<String, u64>> {
        let text = run(&["nft", "-j", "list", "counters", "table", "inet", &self.table()])?;
        let parsed: Value = serde_json::from_str(&text).context("JSON of nft list counters")?;
        let objects = parsed["nftables"].as_array().context("no `nftables` in nft's JSON")?;
        let mut counters = BTreeMap::new();
        for counter in objects.iter().filter_map(|object| object.get("counter")) {
            let name = counter["name"].as_str().context("a counter without name")?;
            counters
                .insert(name.to_owned(), counter["packets"].as_u64().context("a counter without packets")?);
        }
        Ok(counters)
    }

    fn table(&self) -> String {
        format!("ctw_{}_{}", self.hook, self.proto)
    }
}
