//! The firewall's rules as a recording keeps them, so that they can be judged the next morning as they were that night.
//! A recording may come from anywhere: names that no tool makes are refused before any command is built from them.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::firewall::{Dump, Firewall, Note, is_save, is_table};
use crate::record::rules::Packed;

/// What the tools printed of a netns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSet {
    /// What they printed, and what could not be read.
    pub dump: Dump,
}

impl RuleSet {
    /// From a recording.
    ///
    /// # Errors
    /// It is damaged, from another version, or no tool could have printed it.
    pub fn unpack(packed: &Packed) -> Result<Self> {
        let text = packed.unpack()?;
        let found: Self = serde_json::from_str(&text)
            .context("reading a recorded rule set (from another version of ctwatch?)")?;
        found.check_names()?;
        Ok(found)
    }

    /// Its rules, and everything that is unknown of them.
    #[must_use]
    pub fn parse(&self) -> (Firewall, Vec<Note>) {
        let (firewall, more) = Firewall::parse(&self.dump);
        (firewall, self.dump.unread.iter().cloned().chain(more).collect())
    }

    /// Families, tables and chains become part of commands.
    fn check_names(&self) -> Result<()> {
        if !self.dump.nft_json.is_empty() {
            // JSON that can't be read is for the judge to refuse.
            if let Ok(Value::Object(root)) = serde_json::from_str::<Value>(&self.dump.nft_json) {
                for object in root.get("nftables").and_then(Value::as_array).into_iter().flatten() {
                    let fields = object.as_object().into_iter().flat_map(|object| object.values());
                    for field in fields.filter_map(Value::as_object) {
                        for key in ["family", "table", "chain", "name"] {
                            field.get(key).and_then(Value::as_str).map_or(Ok(()), check_name)?;
                        }
                    }
                }
            }
        }
        for save in &self.dump.saves {
            // It becomes a command.
            ensure!(
                is_save(&save.tool),
                "a recorded rule set is of a tool that no recorder runs: {:?}",
                start(&save.tool)
            );
            for line in save.text.lines() {
                let name = match line.split_at_checked(1) {
                    Some(("*" | ":", rest)) => rest.split(' ').next(),
                    _ => line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next()),
                };
                name.map_or(Ok(()), check_name)?;
                if let Some(table) = line.strip_prefix('*') {
                    ensure!(
                        is_table(table.trim()),
                        "a recorded rule set has a table that iptables doesn't know: {:?}",
                        start(table)
                    );
                }
            }
        }
        Ok(())
    }
}

/// As much of a text as an error shows.
fn start(text: &str) -> String {
    text.chars().take(80).collect()
}

/// What nft's own scanner takes for a name (`string` in src/scanner.l), and what iptables' users name their chains.
fn check_name(name: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/\\_.-+:@%".contains(&byte);
    ensure!(
        name.len() <= 256 && name.bytes().all(is_plain) && !name.starts_with('-'),
        "a recorded rule set has a name that no tool makes: {:?}",
        start(name)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Save;

    fn unpacked(rules: &RuleSet) -> Result<RuleSet> {
        RuleSet::unpack(&Packed::new(rules).unwrap())
    }

    fn named(table: &str, chain: &str) -> RuleSet {
        let json = serde_json::json!({"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": table}},
            {"rule": {"family": "inet", "table": table, "chain": chain, "handle": 4, "expr": [{"accept": null}],
                "comment": "anything; $(goes)"}}]});
        RuleSet { dump: Dump { nft_json: json.to_string(), ..Dump::default() } }
    }

    #[test]
    fn what_was_printed_and_what_was_not_read_come_back() {
        let mut rules = named("filter", "input");
        rules.dump.unread.push(Note { tool: "nft".to_owned(), text: "nft failed".to_owned() });
        let back = unpacked(&rules).unwrap();
        assert_eq!(back, rules);
        assert_eq!(back.parse().1[0], rules.dump.unread[0]);
    }

    #[test]
    fn a_name_that_a_shell_would_run_is_refused() {
        for name in ["a;reboot", "$(reboot)", "a b", "a'b", "-f", "a\nb", "`id`", "a>b"] {
            for rules in [named(name, "input"), named("filter", name)] {
                let error = unpacked(&rules).unwrap_err();
                assert!(error.to_string().contains("no tool makes"), "{name}: {error}");
            }
            let save = |text: String| RuleSet {
                dump: Dump {
                    saves: vec![Save { tool: "iptables-save".to_owned(), ipv6: false, legacy: true, text }],
                    ..Dump::default()
                },
            };
            if !name.contains(' ') && !name.contains('\n') {
                for text in
                    [format!("*{name}\n"), format!(":{name} - [0:0]\n"), format!("-A {name} -j ACCEPT\n")]
                {
                    assert!(unpacked(&save(text.clone())).is_err(), "{text}");
                }
            }
        }
        for (tool, text) in [
            ("x;reboot", ""),
            ("/tmp/iptables-save", ""),
            ("sh", ""),
            ("iptables-save", "*../../etc/cron.d/x\n"),
            ("iptables-save", "*mine\n"),
        ] {
            let mut rules = named("filter", "input");
            let (tool, text) = (tool.to_owned(), text.to_owned());
            rules.dump.saves.push(Save { tool, ipv6: false, legacy: false, text });
            assert!(unpacked(&rules).is_err(), "{rules:?}");
        }
    }

    #[test]
    fn names_of_the_field_pass() {
        for name in [
            "filter_IN_public",
            "KUBE-SVC-ERIFXISQEP7F7OF4",
            "cali-tw-cali1234",
            "f2b-sshd",
            "DOCKER-ISOLATION-STAGE-1",
        ] {
            unpacked(&named("firewalld", name)).unwrap();
        }
    }
}
