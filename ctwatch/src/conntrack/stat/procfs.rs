//! /proc/net/stat/nf_conntrack, one line per possible CPU. It needs CONFIG_NF_CONNTRACK_PROCFS.
//! Columns are found by their header, since they changed between versions; values are u32 and wrap.

use std::fs::File;
use std::io::{ErrorKind, Read as _};

use anyhow::{Context, Result, ensure};
use ctwatch_common::classify::Counters;

use super::Stat;
use crate::model::CounterSource;

const FILE: &str = "/proc/thread-self/net/stat/nf_conntrack";

/// Parses the file's text.
pub(crate) fn parse(text: &str) -> Result<Stat> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().context("it is empty")?.split_ascii_whitespace().collect();
    let column = |name: &str| header.iter().position(|title| *title == name);
    let entries = column("entries").context("it has no column \"entries\"")?;
    let drop = column("drop").context("it has no column \"drop\"")?;
    let insert_failed = column("insert_failed").context("it has no column \"insert_failed\"")?;
    let early_drop = column("early_drop").context("it has no column \"early_drop\"")?;
    // Not in 5.10; "chainlength" in the header of some versions.
    let chaintoolong = column("chaintoolong").or_else(|| column("chainlength"));
    let mut stat = Stat { entries: 0, cpus: Vec::new(), from: CounterSource::Procfs, max: None };
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

/// The counters of the netns this thread is in; `None` if this kernel has no such file. After setns, /proc/net still shows
/// the leader's netns.
pub(super) fn read_here() -> Result<Option<Stat>> {
    let mut file = match File::open(FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {FILE}")),
    };
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| format!("reading {FILE}"))?;
    parse(&text).map(Some).with_context(|| format!("parsing {FILE}"))
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
