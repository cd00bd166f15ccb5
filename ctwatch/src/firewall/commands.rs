//! The commands that exempt flows from conntrack, keep that over a reboot, and undo it.
//! They add rules of their own and touch no other, so that the undo brings the rule set back exactly.

use serde::{Deserialize, Serialize};

use super::ir::Tool;
use super::path::NOTRACK;
use super::{ExemptTarget, Scope};

/// Commands for a shell, some of several lines; those that begin with `#` are for the reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// Apply it until the next reboot.
    pub now: Vec<String>,
    /// Make it persistent.
    pub keep: Vec<String>,
    /// Revert what `now` and `keep` did.
    pub undo: Vec<String>,
}

impl Commands {
    /// Both, undone in the opposite order.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.now.extend(other.now);
        self.keep.extend(other.keep);
        self.undo.splice(0..0, other.undo);
        self
    }
}

/// A rule that exempts one direction.
struct Half {
    output: bool,
    /// nft's words and iptables' for the way.
    way: (&'static str, &'static str),
    end: &'static str,
}

/// Both directions, each where this host sees it first. A packet over lo meets conntrack in OUTPUT and keeps what it
/// was given there; at PREROUTING it would be too late.
fn halves(scope: Scope) -> [Half; 2] {
    let output = |way, end| Half { output: true, way, end };
    // Only what is for this host: a forwarded packet with this port may need its translation.
    let arriving = |end| Half {
        output: false,
        way: ("iif != lo fib daddr type local", "! -i lo -m addrtype --dst-type LOCAL"),
        end,
    };
    const LOOPED: (&str, &str) = ("oif lo", "-o lo");
    const LEAVING: (&str, &str) = ("oif != lo", "! -o lo");
    match scope {
        Scope::Loopback => [output(LOOPED, "dport"), output(LOOPED, "sport")],
        Scope::Served => [arriving("dport"), output(LEAVING, "sport")],
        Scope::Outgoing => [output(LEAVING, "dport"), arriving("sport")],
    }
}

pub fn notrack(target: &ExemptTarget, tool: Tool, iptables: &[String]) -> Commands {
    match tool {
        Tool::Nft => nft(target),
        Tool::Iptables | Tool::Ip6tables => self::iptables(target, iptables),
    }
}

/// The name of the table that holds nothing but this exemption.
fn name(target: &ExemptTarget) -> String {
    let scope = match target.scope {
        Scope::Loopback => "lo",
        Scope::Served => "in",
        Scope::Outgoing => "out",
    };
    format!("ctwatch_notrack_{scope}_{}_{}", target.proto, target.port)
}

fn nft(target: &ExemptTarget) -> Commands {
    let table = name(target);
    let file = format!("/etc/nftables.d/{table}.nft");
    let rules = |output: bool| -> String {
        let rules = halves(target.scope).into_iter().filter(|half| half.output == output);
        let proto = target.proto;
        rules.map(|half| format!(" {} {proto} {} {} notrack;", half.way.0, half.end, target.port)).collect()
    };
    let chain = |name: &str, rules: String| {
        if rules.is_empty() {
            String::new()
        } else {
            // Before conntrack (-200), and before what iptables does at raw (-300).
            format!(" chain {name} {{ type filter hook {name} priority {NOTRACK};{rules} }};")
        }
    };
    let body = format!(
        "table inet {table} {{{}{} }}",
        chain("prerouting", rules(false)),
        chain("output", rules(true))
    );
    // "add" and "delete" first, so that running it twice is harmless.
    let whole = format!("add table inet {table}; delete table inet {table}; {body}");
    let include = format!("include \"{file}\"");
    Commands {
        now: vec![format!("nft '{whole}'")],
        keep: vec![
            "# if enabled, nftables.service loads /etc/nftables.conf (Debian) or /etc/sysconfig/nftables.conf (RHEL) at boot"
                .to_owned(),
            "mkdir -p /etc/nftables.d".to_owned(),
            format!("echo '{whole}' > {file}"),
            format!(
                "conf=/etc/nftables.conf; [ -d /etc/sysconfig ] && conf=/etc/sysconfig/nftables.conf; \
                 grep -qsF '{include}' $conf || echo '{include}' >> $conf"
            ),
            format!(
                "! {SYSTEMD} || systemctl is-enabled -q nftables.service || echo 'nftables.service is not enabled: until it \
                 is, this is not loaded at boot' >&2"
            ),
        ],
        undo: vec![
            // Its own table and nothing else; harmless if that has gone already.
            format!("nft 'add table inet {table}; delete table inet {table}'"),
            format!("rm -f {file}"),
            format!(
                "sed -i '\\|^{include}$|d' /etc/nftables.conf /etc/sysconfig/nftables.conf 2> /dev/null || true"
            ),
        ],
    }
}

fn iptables(target: &ExemptTarget, programs: &[String]) -> Commands {
    // The comment tells these rules from equal ones of somebody else.
    let name = name(target).replace('_', "-");
    let lines = |program: &str, how: &str| -> Vec<String> {
        halves(target.scope)
            .into_iter()
            .map(|half| {
                let chain = if half.output { "OUTPUT" } else { "PREROUTING" };
                format!(
                    "{program} -w -t raw {how} {chain} {} -p {} --{} {} -m comment --comment {name} -j CT --notrack",
                    half.way.1, target.proto, half.end, target.port
                )
            })
            .collect()
    };
    let (mut now, mut undo) = (Vec::new(), Vec::new());
    for program in programs {
        for (check, insert) in lines(program, "-C").into_iter().zip(lines(program, "-I")) {
            // At the head of the chain: behind a rule that ends it, it would never be reached.
            now.push(format!("{check} 2> /dev/null || {insert}"));
        }
        undo.extend(lines(program, "-D").iter().map(|line| format!("while {line} 2> /dev/null; do :; done")));
    }
    let inserts: Vec<String> = programs.iter().flat_map(|program| lines(program, "-I")).collect();
    let boot = Boot { name, what: format!("Exempts {target} from conntrack") };
    undo.extend(boot.undo());
    Commands { now, keep: boot.keep(&inserts), undo }
}

/// Where a host that boots with systemd shows it: sd_booted(3).
const SYSTEMD: &str = "[ -d /run/systemd/system ]";

/// Lines that run at boot, behind whatever loads the firewall. Of the ways a host may have, the first that is there is
/// taken; a host that has none is told so, and nothing is left half done.
struct Boot {
    name: String,
    what: String,
}

impl Boot {
    fn unit(&self) -> String {
        format!("/etc/systemd/system/{}.service", self.name)
    }

    /// OpenRC's `local` runs it.
    fn local(&self) -> String {
        format!("/etc/local.d/{}.start", self.name)
    }

    /// iptables-persistent without systemd: run-parts calls each with "start", "save", "stop" or "flush".
    fn plugin(&self) -> String {
        format!("/usr/share/netfilter-persistent/plugins.d/90-{}", self.name)
    }

    fn keep(&self, lines: &[String]) -> Vec<String> {
        let mut unit = vec![
            "[Unit]".to_owned(),
            format!("Description={}", self.what),
            // Behind those that load whole rule sets, whichever of them exist.
            "After=iptables.service ip6tables.service netfilter-persistent.service ufw.service firewalld.service"
                .to_owned(),
            "[Service]".to_owned(),
            "Type=oneshot".to_owned(),
            "RemainAfterExit=yes".to_owned(),
        ];
        // systemd wants a path, and iptables is in /sbin here and in /usr/sbin there.
        unit.extend(lines.iter().map(|line| format!("ExecStart=/usr/bin/env {line}")));
        unit.extend(["[Install]".to_owned(), "WantedBy=multi-user.target".to_owned()]);
        let script = |condition: Option<&str>| {
            let first = ["#!/bin/sh".to_owned(), format!("# {}", self.what)];
            let guard = condition.map(|condition| format!("{condition} || exit 0"));
            first.into_iter().chain(guard).chain(lines.iter().cloned()).collect::<Vec<_>>()
        };
        let write = |lines: &[String], file: &str| {
            let lines: Vec<_> = lines.iter().map(|line| format!("'{line}'")).collect();
            format!("    printf '%s\\n' {} > {file}", lines.join(" "))
        };
        let (name, local, plugin) = (&self.name, self.local(), self.plugin());
        // One command: its parts make no sense alone.
        let whole = [
            format!("if {SYSTEMD}; then"),
            write(&unit, &self.unit()),
            format!("    systemctl daemon-reload && systemctl enable {name}.service"),
            "elif [ -d /etc/local.d ]; then".to_owned(),
            write(&script(None), &local),
            format!("    chmod +x {local}"),
            "    echo 'OpenRC runs this if its local service is enabled: rc-update add local default' >&2".to_owned(),
            format!("elif [ -d {} ]; then", plugin.rsplit_once('/').map_or("/", |(folder, _)| folder)),
            write(&script(Some("[ \"$1\" = start ]")), &plugin),
            format!("    chmod +x {plugin}"),
            "else".to_owned(),
            "    echo 'not persistent: no systemd, no /etc/local.d, no netfilter-persistent; run the `now` commands at boot, after \
             the firewall is loaded' >&2"
                .to_owned(),
            "    false".to_owned(),
            "fi".to_owned(),
        ];
        vec![
            "# a unit of its own, since iptables-save would also save the rules of docker, kube-proxy and others".to_owned(),
            whole.join("\n"),
        ]
    }

    fn undo(&self) -> [String; 3] {
        [
            format!("! {SYSTEMD} || systemctl disable {}.service 2> /dev/null || true", self.name),
            format!("rm -f {} {} {}", self.unit(), self.local(), self.plugin()),
            format!("! {SYSTEMD} || systemctl daemon-reload"),
        ]
    }
}
