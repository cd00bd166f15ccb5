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

    /// In the netns that this file leads into, and in no other: by the time it is typed, the process may have ended and
    /// its number be another's, or the name lead elsewhere, even into the host's.
    #[must_use]
    pub fn inside(path: &Path, netns: NetnsId) -> Self {
        let is_it =
            format!("[ \"$(readlink /proc/self/ns/net)\" = \"net:[{}]\" ] && exec \"$@\"", netns.inode());
        let only_there =
            format!("{is_it}; echo \"another netns is there by now: nothing was done\" >&2; exit 1");
        let enter =
            format!("nsenter --net={} sh -c {} enter ", quote(path.shown().raw()), quote(&only_there));
        Self { is_kept_at_boot: false, enter, elsewhere: Some(netns) }
    }

    /// In another netns, which has to be entered first: a recording knows only its number.
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
    fn commands_act_in_that_netns_or_in_none() {
        let here = crate::netns::own().expect("/proc is readable");
        let path = Path::new("/proc/self/ns/net");
        // Who types them needs no rights in here: the fake enters nothing.
        let typed = |netns: NetnsId, command: &str| {
            let commands = Commands { now: vec![command.to_owned()], ..Commands::default() };
            let line = NetnsCommands::inside(path, netns).commands(commands).now.remove(0);
            let script = format!("nsenter() {{ shift; \"$@\"; }}; {line}");
            std::process::Command::new("sh").args(["-c", &script]).output().expect("there is a shell")
        };
        for command in
            ["while :; do echo done there; break; done", "[ ! -f /nowhere ] || false; echo done there"]
        {
            let output = typed(here, command);
            assert_eq!(
                (output.status.code(), &*output.stdout),
                (Some(0), &b"done there\n"[..]),
                "{output:?}"
            );
            let output = typed(NetnsId::from_inode(here.inode() + 1), command);
            let said = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{said}");
            assert!(said.contains("another netns is there by now"), "{said}");
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
