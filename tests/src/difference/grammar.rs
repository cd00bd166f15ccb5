//! Random rule sets in the words of nft and of iptables-restore: kinds that people have, with details that they have not.
//! What a tool refuses to load is thrown away by whoever loads it.

mod iptables;
mod nft;

use super::ground::{Addresses, Asked, V4, V6};
use super::random::Random;

/// One input of one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The program that loads it, with arguments.
    pub tool: &'static [&'static str],
    /// What it reads.
    pub text: String,
}

/// A rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// Loaded one after the other.
    pub parts: Vec<Part>,
}

const NFT: &[&str] = &["nft", "-f", "-"];

impl RuleSet {
    /// A random one that knows these ports.
    pub fn random(random: &mut Random, asked: &Asked) -> Self {
        let kind = random.below(100);
        let mut parts = Vec::new();
        if kind < 70 {
            parts.push(Part { tool: NFT, text: nft::text(random, asked) });
        }
        if kind >= 60 {
            let legacy = kind >= 94;
            let tools: [&[&str]; 2] = if legacy {
                // One lock for all of this machine's namespaces.
                [&["iptables-legacy-restore", "-w"], &["ip6tables-legacy-restore", "-w"]]
            } else {
                [&["iptables-restore"], &["ip6tables-restore"]]
            };
            for (tool, addresses) in tools.into_iter().zip([&V4, &V6]) {
                if random.chance(if addresses.lan == V4.lan { 90 } else { 40 }) {
                    parts.push(Part { tool, text: iptables::text(random, asked, addresses) });
                }
            }
        }
        if parts.is_empty() {
            parts.push(Part { tool: NFT, text: nft::text(random, asked) });
        }
        Self { parts }
    }

    /// Whether it leaves something behind in a netns that `nft flush ruleset` doesn't take away.
    pub fn is_legacy(&self) -> bool {
        self.parts.iter().any(|part| part.tool[0].contains("legacy"))
    }

    /// The same without one rule, for each rule.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            if self.parts.len() > 1 {
                let mut parts = self.parts.clone();
                parts.remove(index);
                all.push(Self { parts });
            }
            let lines: Vec<&str> = part.text.lines().collect();
            for (at, line) in lines.iter().enumerate() {
                let is_rule = line.starts_with("-A") || (line.starts_with("\t\t") && !line.contains("type "));
                let kept: Vec<&str> = if is_rule {
                    lines[..at].iter().chain(&lines[at + 1..]).copied().collect()
                } else if line.starts_with("\tchain") || line.starts_with("table") {
                    // With all that is in it.
                    let end = if line.starts_with('\t') { "\t}" } else { "}" };
                    let Some(length) = lines[at..].iter().position(|line| *line == end) else { continue };
                    lines[..at].iter().chain(&lines[at + length + 1..]).copied().collect()
                } else {
                    continue;
                };
                let mut parts = self.parts.clone();
                parts[index].text = kept.join("\n") + "\n";
                all.push(Self { parts });
            }
        }
        all
    }
}

impl std::fmt::Display for RuleSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for part in &self.parts {
            writeln!(f, "# {}\n{}", part.tool.join(" "), part.text.trim_end())?;
        }
        Ok(())
    }
}

/// An address or net of a family, as a source or a destination may be.
fn address(random: &mut Random, of: &Addresses) -> &'static str {
    random.pick(&[
        of.lan,
        of.lan_net,
        of.lan_net,
        of.client,
        of.wan,
        of.wan,
        of.wan_net,
        of.outside,
        of.outside,
        of.dmz,
        of.neighbour,
        of.virtual_one,
        of.virtual_one,
    ])
}

fn port(random: &mut Random, asked: &Asked) -> u16 {
    random.pick(&[asked.port, asked.port, asked.port, asked.other, asked.other, 22])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_set_lacks_a_rule_a_chain_or_a_part() {
        let set = RuleSet {
            parts: vec![Part {
                tool: NFT,
                text: "table inet a {\n\tchain c {\n\t\ttype filter hook input priority 0; policy accept;\n\t\taccept\n\t\tdrop\n\t}\n}\n"
                    .to_owned(),
            }],
        };
        let smaller = set.smaller();
        assert_eq!(smaller.len(), 4);
        assert!(
            smaller
                .iter()
                .any(|set| set.parts[0].text.contains("accept\n\t\tdrop")
                    == set.parts[0].text.contains("chain"))
        );
        assert!(smaller.iter().all(|one| one.parts[0].text.len() < set.parts[0].text.len()));
    }

    #[test]
    fn a_seed_gives_the_same_rule_set_again() {
        for index in 0..50 {
            let make = || {
                let mut random = Random::new(1, index);
                let asked = Asked::random(&mut random);
                RuleSet::random(&mut random, &asked)
            };
            assert_eq!(make(), make());
        }
    }
}
