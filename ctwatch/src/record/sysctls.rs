//! conntrack's settings, and what changed since they were last read.
//! Only reads, and only below the given roots; a setting that can't be read counts as absent.

use std::collections::BTreeMap;
use std::path::Path;

use super::limits;
use super::rows::Setting;
use crate::files::read_regular;
use crate::foreign::Foreign;
use crate::kernel::roots::Roots;
use crate::model::WallMono;

/// The hash table's size, as the module's parameter.
const HASHSIZE: &str = "module/nf_conntrack/parameters/hashsize";

/// Remembers the settings as last read.
#[derive(Debug)]
pub struct Sysctls {
    roots: Roots,
    seen: BTreeMap<String, String>,
}

impl Sysctls {
    /// Nothing read yet.
    #[must_use]
    pub fn new(roots: &Roots) -> Self {
        Self { roots: roots.clone(), seen: BTreeMap::new() }
    }

    /// What is new or changed, in this thread's netns and on the host.
    pub fn changes(&mut self, at: WallMono) -> Vec<Setting> {
        let now = self.read();
        self.compare(now, at)
    }

    /// What is new or changed in what [`read_netns`] found.
    pub fn compare(&mut self, now: BTreeMap<String, String>, at: WallMono) -> Vec<Setting> {
        let mut changes = Vec::new();
        for (name, value) in &now {
            let before = self.seen.get(name);
            if before != Some(value) {
                let (value, before) =
                    (Some(value.as_str().into()), before.map(|before| before.as_str().into()));
                changes.push(Setting { at, name: name.as_str().into(), value, before });
            }
        }
        for (name, before) in &self.seen {
            if !now.contains_key(name) {
                let before = Some(before.as_str().into());
                changes.push(Setting { at, name: name.as_str().into(), value: None, before });
            }
        }
        self.seen = now;
        changes
    }

    /// Makes all settings count as new, for a new file.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    fn read(&self) -> BTreeMap<String, String> {
        let mut found = conntrack(&self.roots);
        if let Some(value) = value(&self.roots.sys(HASHSIZE)) {
            found.insert(format!("/sys/{HASHSIZE}"), value);
        }
        found
    }
}

/// A value, unless it is longer than a recording keeps: lists of ports may be, as whose netns it is pleases.
fn value(path: &Path) -> Option<String> {
    let bytes = read_regular(path, limits::VALUE as u64).ok()?;
    Some(Foreign::from_bytes(bytes.trim_ascii()).into_raw())
}

/// conntrack's settings of the netns this thread is in.
fn conntrack(roots: &Roots) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let folder = roots.proc("sys/net/netfilter");
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let Some(file) = file.to_str().filter(|file| file.starts_with("nf_conntrack_")) else { continue };
        // A count, not a setting.
        if file == "nf_conntrack_count" {
            continue;
        }
        if let Some(value) = value(&entry.path()) {
            found.insert(format!("net.netfilter.{file}"), value);
        }
    }
    found
}

/// The settings of the netns this thread is in that advice rests on: conntrack's, and those of the ports clients get.
#[must_use]
pub fn read_netns(roots: &Roots) -> BTreeMap<String, String> {
    let mut found = conntrack(roots);
    for name in ["ip_local_port_range", "ip_local_reserved_ports", "tcp_tw_reuse", "tcp_timestamps"] {
        if let Some(value) = value(&roots.proc(format!("sys/net/ipv4/{name}"))) {
            found.insert(format!("net.ipv4.{name}"), value);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_change_is_seen_once_with_what_was_before() {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots { proc: folder.path().join("proc"), sys: folder.path().join("sys") };
        let sysctl = roots.proc("sys/net/netfilter");
        fs::create_dir_all(&sysctl).unwrap();
        fs::write(sysctl.join("nf_conntrack_max"), "65536\n").unwrap();
        fs::write(sysctl.join("nf_conntrack_count"), "5\n").unwrap();
        fs::write(sysctl.join("nf_log_all_netns"), "0\n").unwrap();
        let mut sysctls = Sysctls::new(&roots);
        let at = WallMono::now();
        let first = sysctls.changes(at);
        assert_eq!(first.len(), 1);
        assert_eq!(
            (first[0].value.as_ref().map(|text| text.raw()), first[0].before.as_ref().map(|text| text.raw())),
            (Some("65536"), None)
        );
        assert!(sysctls.changes(at).is_empty());
        fs::write(sysctl.join("nf_conntrack_max"), "131072\n").unwrap();
        let changed = sysctls.changes(at);
        assert_eq!(
            (
                changed[0].value.as_ref().map(|text| text.raw()),
                changed[0].before.as_ref().map(|text| text.raw())
            ),
            (Some("131072"), Some("65536"))
        );
        // A list that no recording keeps is unknown, as if it weren't there.
        let ports = roots.proc("sys/net/ipv4/ip_local_reserved_ports");
        fs::create_dir_all(ports.parent().unwrap()).unwrap();
        for (text, is_kept) in [("1,3\n".to_owned(), true), ("1,".repeat(limits::VALUE), false)] {
            fs::write(&ports, text).unwrap();
            assert_eq!(read_netns(&roots).contains_key("net.ipv4.ip_local_reserved_ports"), is_kept);
        }
        fs::remove_file(sysctl.join("nf_conntrack_max")).unwrap();
        assert_eq!(sysctls.changes(at)[0].value, None);
    }
}
