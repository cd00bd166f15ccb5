//! The kernel's own conntrack counters, read by another hand than ctwatch's, so that the two can be compared.
//! No meaning is given to a counter here: which causes bump it is the scenarios' knowledge.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};

use crate::shell::run;

/// The calling thread's netns: after setns, /proc/net still shows the thread-group leader's.
pub const PATH: &str = "/proc/thread-self/net/stat/nf_conntrack";

/// One reading, summed over CPUs. The kernel keeps u32 per CPU, which wrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    columns: BTreeMap<String, u32>,
}

impl Counters {
    /// Reads the counters of the calling thread's netns; where the kernel has no file of them, conntrack(8) says them.
    pub fn read() -> Result<Self> {
        match fs::read_to_string(PATH) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let said = run(&["conntrack", "-S"])?;
                Self::parse_statistics(&said)
            }
            text => Self::parse(&text.with_context(|| format!("reading {PATH}"))?),
        }
    }

    /// `cpu=0  found=2 invalid=0 … drop=5 …`, a line for each CPU.
    fn parse_statistics(text: &str) -> Result<Self> {
        let mut columns = BTreeMap::<String, u32>::new();
        for line in text.lines() {
            for pair in line.split_whitespace() {
                let (name, value) =
                    pair.split_once('=').with_context(|| format!("not name=value: {pair}"))?;
                let value: u32 = value.parse().with_context(|| format!("{name}: {value}"))?;
                let sum = columns.entry(name.to_owned()).or_default();
                *sum = sum.wrapping_add(value);
            }
        }
        ensure!(columns.contains_key("drop"), "conntrack -S names no drop: {text}");
        Ok(Self { columns })
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let names: Vec<_> = lines.next().context("an empty counter file")?.split_whitespace().collect();
        let mut columns: BTreeMap<String, u32> = names.iter().map(|name| ((*name).to_owned(), 0)).collect();
        for line in lines {
            let values: Vec<_> = line.split_whitespace().collect();
            ensure!(
                values.len() == names.len(),
                "{} values under {} names: {line}",
                values.len(),
                names.len()
            );
            for (name, value) in names.iter().zip(values) {
                let value =
                    u32::from_str_radix(value, 16).with_context(|| format!("column {name}: {value}"))?;
                if let Some(sum) = columns.get_mut(*name) {
                    // `entries` is the netns total, repeated on each CPU's row.
                    *sum = if *name == "entries" { value } else { sum.wrapping_add(value) };
                }
            }
        }
        Ok(Self { columns })
    }

    /// What was added since `before`, modulo 2³².
    pub fn since(&self, before: &Self) -> Self {
        let columns = self
            .columns
            .iter()
            .map(|(name, value)| {
                (name.clone(), value.wrapping_sub(before.columns.get(name).copied().unwrap_or(0)))
            })
            .collect();
        Self { columns }
    }

    /// A column by its header name; 0 when this kernel does not have it.
    pub fn get(&self, name: &str) -> u64 {
        let column = self.columns.get(name).or_else(|| self.columns.get(older_name(name)));
        column.copied().unwrap_or(0).into()
    }
}

/// ct_cpu_seq_show prints st->chaintoolong under the heading `chainlength` (net/netfilter/nf_conntrack_standalone.c, 6.1).
fn older_name(name: &str) -> &str {
    if name == "chaintoolong" { "chainlength" } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_CPUS: &str = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop \
         early_drop icmp_error  expect_new expect_create expect_delete search_restart\n\
         00000fa0  00000000 00000000 00000000 00000002 00000000 00000000 00000005 00000000 00000000 ffffffff \
         00000001 00000000  00000000 00000000 00000000 00000000\n\
         00000fa0  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 00000003 \
         00000002 00000000  00000000 00000000 00000000 00000000\n";

    #[test]
    fn columns_are_found_by_name_summed_over_cpus_and_wrap() {
        let counters = Counters::parse(TWO_CPUS).unwrap();
        assert_eq!(counters.get("drop"), 2);
        assert_eq!(counters.get("early_drop"), 3);
        assert_eq!(counters.get("invalid"), 3);
        assert_eq!(counters.get("entries"), 4000);
        assert_eq!(counters.get("chaintoolong"), 5, "its heading is chainlength");
        assert_eq!(counters.get("no_such_column"), 0);
    }

    #[test]
    fn what_conntrack_says_is_summed_over_cpus_too() {
        let said = "cpu=0   \tfound=2 invalid=0 insert=0 insert_failed=1 drop=5 early_drop=0 chaintoolong=1 \n\
                    cpu=1   \tfound=0 invalid=3 insert=0 insert_failed=0 drop=4294967295 early_drop=2 chaintoolong=0 \n";
        let counters = Counters::parse_statistics(said).unwrap();
        assert_eq!(
            (counters.get("drop"), counters.get("early_drop"), counters.get("chaintoolong")),
            (4, 2, 1)
        );
        assert!(Counters::parse_statistics("").is_err());
    }

    #[test]
    fn a_difference_wraps_as_the_counter_does() {
        let before = Counters::parse("drop\nfffffffe\n").unwrap();
        let after = Counters::parse("drop\n00000003\n").unwrap();
        assert_eq!(after.since(&before).get("drop"), 5);
    }
}
