//! sysctl.d(5) and sysctl.conf(5): the order of the files, and the lines of theirs that are conntrack's.
//! What a glob would match is not guessed at: a pattern stands for itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Host, file};
use super::by_name;

/// From the first to be looked in to the last (sysctl.d(5)).
const FOLDERS: [&str; 5] =
    ["etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"];
const SYSCTL_CONF: &str = "etc/sysctl.conf";

/// A line that sets something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// As seen from the host.
    pub file: PathBuf,
    /// Its number, from 1.
    pub line: usize,
    /// The sysctl, with dots.
    pub key: String,
    /// As written.
    pub value: String,
    /// The name that decides when the file is read; none for /etc/sysctl.conf, which sysctl(8) reads last.
    pub read_as: Option<String>,
}

/// The files in the order they are read, each with the name that decided it.
pub(super) fn files(host: &Host, systemd: bool) -> Vec<(Option<String>, PathBuf)> {
    let mut files: Vec<_> =
        by_name(host, &FOLDERS).into_iter().map(|(name, path)| (Some(name), path)).collect();
    // Where it is linked into sysctl.d it is among them; sysctl(8) reads it once more at the end.
    if !systemd {
        files.push((None, host.file(SYSCTL_CONF)));
    }
    files
}

/// What these files set of conntrack's, in order.
pub(super) fn assignments(host: &Host, files: &[(Option<String>, PathBuf)]) -> Vec<Assignment> {
    let mut found = Vec::new();
    for (read_as, path) in files {
        let Some(text) = file::text(path) else { continue };
        for (key, value, line) in conntrack_lines(&text) {
            found.push(Assignment { file: host.seen(path), line, key, value, read_as: read_as.clone() });
        }
    }
    found
}

/// Key, value and line number of the lines that set something of conntrack's.
pub(crate) fn conntrack_lines(text: &str) -> Vec<(String, String, usize)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        // A line "-key" without a value only keeps globs away from that key.
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = dotted(key.trim().trim_start_matches('-').trim());
        if let Some(key) = conntrack_key(&key) {
            found.push((key, value.trim().to_owned(), index + 1));
        }
    }
    found
}

/// Where the first separator is a slash, slashes separate and dots belong to names; else the other way round.
fn dotted(key: &str) -> String {
    let first = key.find(['.', '/']).map(|at| key.as_bytes()[at]);
    if first != Some(b'/') {
        return key.to_owned();
    }
    let swap = |letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    key.trim_start_matches('/').chars().map(swap).collect()
}

/// The name in force for a key of conntrack's; net.nf_conntrack_max is another name for the limit.
fn conntrack_key(key: &str) -> Option<String> {
    if key == "net.nf_conntrack_max" {
        return Some("net.netfilter.nf_conntrack_max".to_owned());
    }
    key.strip_prefix("net.netfilter.nf_conntrack_")
        .is_some_and(|name| !name.is_empty())
        .then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_may_be_written_with_dots_or_slashes() {
        let text = "\
            # net.netfilter.nf_conntrack_max = 1\n\
            ; net.netfilter.nf_conntrack_max = 2\n\
            net.netfilter.nf_conntrack_max = 3\n\
            -net/netfilter/nf_conntrack_max=4\n\
            net.ipv4.ip_forward = 1\n\
            -net.netfilter.nf_conntrack_buckets\n\
            net.nf_conntrack_max=5\n";
        let max = |value: &str, line| ("net.netfilter.nf_conntrack_max".to_owned(), value.to_owned(), line);
        assert_eq!(conntrack_lines(text), [max("3", 3), max("4", 4), max("5", 7)]);
        assert_eq!(dotted("net/ipv4/conf/eth0.7/forwarding"), "net.ipv4.conf.eth0/7.forwarding");
    }

    proptest! {
        #[test]
        fn a_key_with_slashes_means_the_same_as_with_dots(name in "[a-z_]{1,20}") {
            let dots = format!("net.netfilter.nf_conntrack_{name}");
            prop_assert_eq!(dotted(&dots.replace('.', "/")), dots);
        }
    }
}
