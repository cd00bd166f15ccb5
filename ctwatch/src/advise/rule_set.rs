//! The firewall's rules as a recording keeps them, so that they can be judged the next morning as they were that night.
//! A recording may come from anywhere: names that no tool makes are refused before any command is built from them.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::firewall::{Dump, Firewall, Note, is_save, is_table};
use crate::record::rules::Packed;

/// Rules, chains and sets that are judged, and lines of a tool's text: a host with 20,000 rules has a tenth of them.
const PARTS: usize = 250_000;
/// The longest of them: a set of 100,000 addresses takes half of it.
const LONGEST_PART: usize = 8 << 20;
/// Values in one of them.
const VALUES: usize = 1 << 20;

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
        found.check_size()?;
        found.check_names()?;
        Ok(found)
    }

    /// Its rules, and everything that is unknown of them.
    #[must_use]
    pub fn parse(&self) -> (Firewall, Vec<Note>) {
        let (firewall, more) = Firewall::parse(&self.dump);
        (firewall, self.dump.unread.iter().cloned().chain(more).collect())
    }

    /// What is small in a file may be many times as large once it is understood.
    fn check_size(&self) -> Result<()> {
        let Dump { nft_json, nft_text, saves, ipvs, .. } = &self.dump;
        let texts = saves.iter().map(|save| &save.text).chain([nft_text, ipvs]);
        let lines: usize = texts.map(|text| text.lines().count()).sum();
        ensure!(lines <= 2 * PARTS, "a recorded rule set has {lines} lines: so many are not judged");
        check_json(nft_json)
    }

    /// Families, tables and chains become part of commands.
    fn check_names(&self) -> Result<()> {
        #[derive(Deserialize)]
        struct Objects<'a> {
            #[serde(borrow)]
            nftables: Vec<&'a RawValue>,
        }
        // JSON that can't be read is for the judge to refuse; it reads objects one by one, too.
        let objects = serde_json::from_str::<Objects<'_>>(&self.dump.nft_json);
        for raw in objects.map(|objects| objects.nftables).unwrap_or_default() {
            let Ok(Value::Object(object)) = serde_json::from_str(raw.get()) else { continue };
            for field in object.values().filter_map(Value::as_object) {
                for key in ["family", "table", "chain", "name"] {
                    field.get(key).and_then(Value::as_str).map_or(Ok(()), check_name)?;
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

/// Counts the parts of a list of objects, `{"nftables": [{…}, …]}`, and what is in each, without reading them.
fn check_json(json: &str) -> Result<()> {
    /// Within the object, and within its list.
    const LIST: usize = 2;
    let (mut depth, mut parts, mut values, mut began) = (0_usize, 0_usize, 0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in json.bytes().enumerate() {
        if quoted {
            quoted = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth <= LIST => {
                parts += 1;
                (values, began) = (0, at);
            }
            _ => {}
        }
        values += usize::from(matches!(byte, b',' | b'[' | b'{' | b':'));
        ensure!(parts <= PARTS, "a recorded rule set has more than {PARTS} rules: so many are not judged");
        ensure!(
            values <= VALUES && at - began <= LONGEST_PART,
            "a rule or set of a recorded rule set is larger than any that is judged"
        );
    }
    Ok(())
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
    fn what_grows_when_it_is_understood_is_refused_before() {
        let many = |one: &str, times: usize| vec![one; times].join(",");
        let of = |inner: &str| format!(r#"{{"nftables": [{inner}]}}"#);
        for (json, bad) in [
            (of(r#"{"a": "[,,,\\"}, {"b": "\\\",,"}"#), false),
            (of(&many("{}", PARTS)), false),
            (of(&many("0", PARTS + 2)), true),
            (of(&format!("[{}]", many("0", VALUES - 10))), false),
            (of(&format!("[{}]", many("0", VALUES + 1))), true),
            (of(&format!("\"{}\"", "x".repeat(LONGEST_PART + 1))), true),
            (many("{}", PARTS + 2), true),
        ] {
            assert_eq!(check_json(&json).is_err(), bad, "{}", &json[..40]);
        }
        let text = "\n".repeat(2 * PARTS + 1);
        let rules = RuleSet { dump: Dump { nft_text: text, ..Dump::default() } };
        assert!(unpacked(&rules).unwrap_err().to_string().contains("so many are not judged"));
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
