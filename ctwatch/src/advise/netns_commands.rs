//! Commands for a netns that may not be the one they are typed in.
//! What is kept in files is the host's own and read at its boot: another netns has no such files.

use std::path::Path;

use crate::firewall::{self, Commands};
use crate::foreign::Shown as _;
use crate::model::NetnsId;
use crate::text::shell::quote;

/// Where commands are for.
#[derive(Clone, Debug)]
pub struct NetnsCommands {
    /// What is read at boot where commands are typed is read for that netns.
    pub is_kept_at_boot: bool,
    /// Put before a command; empty in the own netns, and where the way isn't known.
    pub enter: String,
    /// Another netns than that of the files at boot.
    elsewhere: Option<NetnsId>,
}

impl NetnsCommands {
    /// In the netns they are typed in; its files at boot may be another's.
    #[must_use]
    pub const fn here(is_kept_at_boot: bool) -> Self {
        Self { is_kept_at_boot, enter: String::new(), elsewhere: None }
    }

    /// In the netns that this file leads into.
    #[must_use]
    pub fn inside(path: &Path, netns: NetnsId) -> Self {
        let enter = format!("nsenter --net={} ", quote(path.shown().raw()));
        Self { is_kept_at_boot: false, enter, elsewhere: Some(netns) }
    }

    /// In another netns that whoever types them has to enter: what a recording knows of it is its number.
    #[must_use]
    pub const fn entered(netns: NetnsId) -> Self {
        Self { is_kept_at_boot: false, enter: String::new(), elsewhere: Some(netns) }
    }

    /// Commands that act there.
    #[must_use]
    pub fn commands(&self, commands: Commands) -> Commands {
        let Commands { now, keep, undo } = commands;
        let Some(netns) = self.elsewhere else {
            return if self.is_kept_at_boot {
                Commands { now, keep, undo }
            } else {
                without_files(now, undo)
            };
        };
        let all = |lines: Vec<String>| lines.iter().filter_map(|line| self.line(netns, line)).collect();
        Commands { now: all(now), keep: Vec::new(), undo: all(undo) }
    }

    /// The line, run there; none if it is about files at boot.
    fn line(&self, netns: NetnsId, line: &str) -> Option<String> {
        // Each netns saves its rules apart.
        let saved = format!("{}-{}", firewall::SAVED, netns.inode());
        let line = line.replace(firewall::SAVED, &saved);
        match line.split_whitespace().next() {
            Some(
                "nft" | "iptables" | "ip6tables" | "iptables-legacy" | "ip6tables-legacy" | "iptables-nft"
                | "ip6tables-nft",
            ) if !line.contains(" || ") => Some(format!("{}{line}", self.enter)),
            Some(first) if !(first == "[" || first == "while" || first.contains("tables")) => None,
            Some(_) if self.enter.is_empty() => Some(line),
            Some(_) => Some(format!("{}sh -c {}", self.enter, quote(&line))),
            None => None,
        }
    }
}

/// Typed in a netns of one's own, such as with `ip netns exec`: the files are the host's.
fn without_files(now: Vec<String>, undo: Vec<String>) -> Commands {
    let is_about_files = |line: &String| line.starts_with("rm -f /etc/");
    Commands { now, keep: Vec::new(), undo: undo.into_iter().filter(|line| !is_about_files(line)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{ExemptTarget, Firewall, Scope, Tool};
    use crate::model::Protocol;

    const BLUE: NetnsId = NetnsId::from_packed(4_026_532_000);

    fn blue() -> NetnsCommands {
        NetnsCommands::inside(Path::new("/run/netns/blue"), BLUE)
    }

    #[test]
    fn rules_go_into_the_netns_and_no_file_is_left_on_the_host() {
        let target = ExemptTarget { proto: Protocol::TCP, port: 6379, scope: Scope::Loopback };
        for tool in [Tool::Nft, Tool::Iptables] {
            let here = Firewall::default().notrack_commands(&target, tool);
            let there = blue().commands(here.clone());
            assert_eq!(there.now.len(), here.now.len());
            assert!(there.keep.is_empty());
            let lines: Vec<_> = there.now.iter().chain(&there.undo).collect();
            assert!(lines.iter().all(|line| line.starts_with(&blue().enter)), "{lines:#?}");
            assert!(lines.iter().all(|line| !line.contains("/etc/")), "{lines:#?}");
        }
    }

    #[test]
    fn what_is_saved_of_a_netns_is_its_own() {
        let line = format!(
            "[ ! -f {0}.nft ] || {{ {{ echo 'flush table ip a'; cat {0}.nft; }} | nft -f -; }}",
            firewall::SAVED
        );
        let there = blue().line(BLUE, &line).expect("it is about rules");
        assert_eq!(there.matches("/run/ctwatch-firewall-4026532000.nft").count(), 2, "{there}");
        assert!(there.contains("sh -c '[ ! -f ") && there.contains("echo '\\''flush"), "{there}");
    }
}
