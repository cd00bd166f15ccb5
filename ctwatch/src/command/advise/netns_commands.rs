//! Commands for a netns that may not be the one they are typed in.
//! What is kept in files is the host's own and read at its boot: another netns has no such files.

use crate::firewall::{self, Commands};
use crate::model::NetnsId;
use crate::netns::Netns;

/// Where commands are for.
pub(super) struct NetnsCommands {
    /// What is read at boot where commands are typed is read for that netns.
    pub is_kept_at_boot: bool,
    /// Put before a command; empty in the own netns.
    pub enter: String,
    netns: NetnsId,
}

impl NetnsCommands {
    /// For a netns, typed in one's own; `first` is that of process 1, whose files at boot they are.
    pub fn new(netns: &Netns, own: NetnsId, first: Option<NetnsId>) -> Self {
        let is_own = netns.id == own;
        let enter = if is_own { String::new() } else { format!("nsenter --net={} ", netns.path.display()) };
        let is_kept_at_boot = is_own && first.is_none_or(|first| first == own);
        Self { is_kept_at_boot, enter, netns: netns.id }
    }

    /// Commands that act there.
    pub fn commands(&self, commands: Commands) -> Commands {
        let Commands { now, keep, undo } = commands;
        if self.enter.is_empty() {
            return if self.is_kept_at_boot {
                Commands { now, keep, undo }
            } else {
                without_files(now, undo)
            };
        }
        let all = |lines: Vec<String>| lines.iter().filter_map(|line| self.line(line)).collect();
        Commands { now: all(now), keep: Vec::new(), undo: all(undo) }
    }

    /// The line, run there; none if it is about files at boot.
    fn line(&self, line: &str) -> Option<String> {
        // Each netns saves its rules apart.
        let saved = format!("{}-{}", firewall::SAVED, self.netns.inode());
        let line = line.replace(firewall::SAVED, &saved);
        match line.split_whitespace().next() {
            Some(
                "nft" | "iptables" | "ip6tables" | "iptables-legacy" | "ip6tables-legacy" | "iptables-nft"
                | "ip6tables-nft",
            ) => Some(format!("{}{line}", self.enter)),
            Some("[" | "while") => Some(format!("{}sh -c '{}'", self.enter, line.replace('\'', "'\\''"))),
            _ => None,
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

    fn blue() -> NetnsCommands {
        NetnsCommands {
            is_kept_at_boot: false,
            enter: "nsenter --net=/run/netns/blue ".to_owned(),
            netns: NetnsId::from_packed(4_026_532_000),
        }
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
        let there = blue().line(&line).expect("it is about rules");
        assert_eq!(there.matches("/run/ctwatch-firewall-4026532000.nft").count(), 2, "{there}");
        assert!(there.contains("sh -c '[ ! -f ") && there.contains("echo '\\''flush"), "{there}");
    }
}
