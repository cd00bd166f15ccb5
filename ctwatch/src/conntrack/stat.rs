//! /proc/net/stat/nf_conntrack: the kernel's own per-CPU counters, the judge of every number ctwatch shows.
//! Columns are found by their header, since they changed between versions; values are u32 and wrap.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context, Result, ensure};
use ctwatch_common::classify::Counters;

use crate::model::NetnsId;
use crate::netns::{self, Netns};

/// One reading of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Entries in the table (the netns's total, repeated on each line by the kernel).
    pub entries: u32,
    /// One element per possible CPU.
    pub cpus: Vec<Counters>,
}

/// Parses the file's text.
pub fn parse(text: &str) -> Result<Stat> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().context("it is empty")?.split_ascii_whitespace().collect();
    let column = |name: &str| header.iter().position(|title| *title == name);
    let entries = column("entries").context("it has no column \"entries\"")?;
    let drop = column("drop").context("it has no column \"drop\"")?;
    let insert_failed = column("insert_failed").context("it has no column \"insert_failed\"")?;
    let early_drop = column("early_drop").context("it has no column \"early_drop\"")?;
    // Not in 5.10; "chainlength" in the header of some versions.
    let chaintoolong = column("chaintoolong").or_else(|| column("chainlength"));
    let mut stat = Stat::default();
    for line in lines {
        let values: Vec<u32> = line
            .split_ascii_whitespace()
            .map(|word| u32::from_str_radix(word, 16))
            .collect::<Result<_, _>>()
            .with_context(|| format!("a line is not hexadecimal: {line:?}"))?;
        // The header may name fewer columns than the lines have, never the other way round.
        ensure!(values.len() >= header.len(), "a line is shorter than the header: {line:?}");
        stat.entries = values[entries];
        stat.cpus.push(Counters {
            drop: values[drop],
            insert_failed: values[insert_failed],
            early_drop: values[early_drop],
            chaintoolong: chaintoolong.map_or(0, |index| values[index]),
        });
    }
    Ok(stat)
}

/// Reads the conntrack counters of many netns in one go.
pub fn read_all<'a>(
    namespaces: impl Iterator<Item = &'a Netns> + Send,
) -> Result<Vec<(NetnsId, Result<Stat>)>> {
    netns::on_netns_thread(|| {
        let mut text = String::new();
        namespaces.map(|netns| (netns.id, netns::enter(netns).and_then(|()| read_here(&mut text)))).collect()
    })
}

/// The counters of the netns this thread is in. After setns, /proc/net still shows the leader's netns.
fn read_here(text: &mut String) -> Result<Stat> {
    const FILE: &str = "/proc/thread-self/net/stat/nf_conntrack";
    text.clear();
    File::open(FILE)
        .and_then(|mut file| file.read_to_string(text))
        .with_context(|| format!("reading {FILE} (is the nf_conntrack module loaded?)"))?;
    parse(text).with_context(|| format!("parsing {FILE}"))
}

/// nf_conntrack_max: one number for all netns.
pub fn max() -> Result<u32> {
    const FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let text = std::fs::read_to_string(FILE).with_context(|| format!("reading {FILE}"))?;
    text.trim().parse().with_context(|| format!("parsing {FILE}: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX_6_12: &str = "\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000fa0  00000000 00000000 00000000 00000002 00000000 00000000 00000003 00000000 00000005 0000010a 00000007 00000000  00000000 00000000 00000000 00000000
00000fa0  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 ffffffff 00000000 00000000  00000000 00000000 00000000 00000000
";
    const LINUX_5_10: &str = "\
entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
00000005  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001 000000c1 00000002 00000000  00000000 00000000 00000000 00000000
";

    #[test]
    fn columns_are_found_by_name_on_a_new_kernel() {
        let stat = parse(LINUX_6_12).expect("well-formed");
        assert_eq!(stat.entries, 4000);
        assert_eq!(stat.cpus[0], Counters { drop: 266, insert_failed: 5, early_drop: 7, chaintoolong: 3 });
        assert_eq!(stat.cpus[1].drop, u32::MAX);
    }

    #[test]
    fn an_old_kernel_without_chaintoolong_counts_zero() {
        let stat = parse(LINUX_5_10).expect("well-formed");
        assert_eq!(stat.cpus, [Counters { drop: 193, insert_failed: 1, early_drop: 2, chaintoolong: 0 }]);
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        assert!(parse("").is_err());
        assert!(parse("entries drop insert_failed early_drop\n0 1\n").is_err());
    }
}
