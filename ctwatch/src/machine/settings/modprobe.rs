//! modprobe.d(5), modules-load.d(5) and the kernel's command line: what decides the module's hash size at boot.
//! Only options of nf_conntrack; what else a file does stays unread.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::{Host, file};
use super::by_name;

const FOLDERS: [&str; 5] =
    ["etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"];
const LOAD_FOLDERS: [&str; 4] =
    ["etc/modules-load.d", "run/modules-load.d", "usr/local/lib/modules-load.d", "usr/lib/modules-load.d"];
const MODULE: &str = "nf_conntrack";

/// A line "options nf_conntrack …".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleOption {
    /// As seen from the host.
    pub file: PathBuf,
    /// Its number, from 1.
    pub line: usize,
    /// "hashsize=262144"
    pub options: String,
    /// The hash size among them. Given at load, it also makes nf_conntrack_max eight times as large
    /// (nf_conntrack_init_start, net/netfilter/nf_conntrack_core.c, 5.10 to 7.3).
    pub hashsize: Option<u64>,
}

/// What modprobe.d says of nf_conntrack.
#[derive(Debug, Default)]
pub(super) struct Modprobe {
    pub(super) options: Vec<ModuleOption>,
    pub(super) set_again_on_load: Option<PathBuf>,
}

pub(super) fn read(host: &Host) -> Modprobe {
    let mut found = Modprobe::default();
    for (_, path) in by_name(host, &FOLDERS) {
        let Some(text) = file::text(&path) else { continue };
        for (line, words) in statements(&text) {
            match words.as_slice() {
                [what, module, options @ ..] if *what == "options" && is_conntrack(module) => {
                    found.options.push(ModuleOption {
                        file: host.seen(&path),
                        line,
                        options: options.join(" "),
                        hashsize: hashsize(options),
                    });
                }
                [what, module, command @ ..]
                    if *what == "install"
                        && is_conntrack(module)
                        && command.iter().any(|word| word.ends_with("sysctl")) =>
                {
                    found.set_again_on_load = Some(host.seen(&path));
                }
                _ => {}
            }
        }
    }
    found
}

/// Lines as words, joined where a backslash ends them, each with the number of its first line.
fn statements(text: &str) -> Vec<(usize, Vec<&str>)> {
    let mut statements: Vec<(usize, Vec<&str>)> = Vec::new();
    let mut goes_on = false;
    for (index, line) in text.lines().enumerate() {
        let (line, more) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        let words = line.split_ascii_whitespace();
        match statements.last_mut() {
            Some((_, statement)) if goes_on => statement.extend(words),
            _ => statements.push((index + 1, words.collect())),
        }
        goes_on = more;
    }
    statements.retain(|(_, words)| words.first().is_some_and(|word| !word.starts_with('#')));
    statements
}

/// To modprobe "-" and "_" are the same.
fn is_conntrack(module: &str) -> bool {
    module.replace('-', "_") == MODULE
}

fn hashsize(options: &[&str]) -> Option<u64> {
    options.iter().rev().find_map(|option| option.strip_prefix("hashsize=")?.parse().ok())
}

/// "nf_conntrack.hashsize=…", which counts for a module too: modprobe reads the command line.
pub(super) fn cmdline_hashsize(host: &Host) -> Option<u64> {
    let cmdline = file::text(&host.roots.proc("cmdline"))?;
    cmdline.split_ascii_whitespace().rev().find_map(|word| {
        let (module, option) = word.split_once('.')?;
        if !is_conntrack(module) { None } else { option.strip_prefix("hashsize=")?.parse().ok() }
    })
}

/// The file that has nf_conntrack loaded before sysctls are set.
pub(super) fn loaded_at_boot(host: &Host) -> Option<PathBuf> {
    let files = by_name(host, &LOAD_FOLDERS).into_iter().map(|(_, path)| path);
    let names_it = |path: &PathBuf| {
        let text = file::text(path).unwrap_or_default();
        text.lines().map(str::trim).any(is_conntrack)
    };
    files.chain([host.file("etc/modules")]).find(names_it).map(|path| host.seen(&path))
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn the_last_hashsize_wins_and_lines_may_go_on() {
        let fixture = Fixture::of(&[
            (
                "etc/modprobe.d/conntrack.conf",
                "# options nf_conntrack hashsize=1\noptions nf_conntrack \\\n  hashsize=262144 acct=1\n",
            ),
            (
                "usr/lib/modprobe.d/a.conf",
                "options nf-conntrack hashsize=16384\noptions nf_conntrack_ftp ports=21\n",
            ),
        ]);
        let options = read(&fixture.host).options;
        assert_eq!(
            options.iter().map(|option| option.hashsize).collect::<Vec<_>>(),
            [Some(16_384), Some(262_144)]
        );
        assert_eq!((options[1].line, options[1].options.as_str()), (2, "hashsize=262144 acct=1"));
        assert_eq!(options[1].file, PathBuf::from("/etc/modprobe.d/conntrack.conf"));
    }

    #[test]
    fn firewalld_sets_sysctls_again_when_the_module_is_loaded() {
        let line = "install nf_conntrack /usr/sbin/modprobe --ignore-install nf_conntrack $CMDLINE_OPTS && /usr/sbin/sysctl --quiet --system";
        let fixture = Fixture::of(&[("etc/modprobe.d/firewalld-sysctls.conf", line)]);
        let expected = PathBuf::from("/etc/modprobe.d/firewalld-sysctls.conf");
        assert_eq!(read(&fixture.host).set_again_on_load, Some(expected));
    }

    #[test]
    fn boot_time_settings_are_found() {
        let fixture = Fixture::of(&[
            ("proc/cmdline", "quiet nf_conntrack.hashsize=131072 root=/dev/vda\n"),
            ("etc/modules-load.d/k8s.conf", "overlay\nnf_conntrack\n"),
        ]);
        assert_eq!(cmdline_hashsize(&fixture.host), Some(131_072));
        assert_eq!(loaded_at_boot(&fixture.host), Some(PathBuf::from("/etc/modules-load.d/k8s.conf")));
        assert_eq!(loaded_at_boot(&Fixture::of(&[]).host), None);
    }
}
