//! The commands that exempt flows from conntrack, keep that over a reboot, and undo it.
//! They add rules of their own and touch no other, so that the undo brings the rule set back exactly.

use serde::{Deserialize, Serialize};

use super::ir::Tool;
use super::listing::Listed;
use super::{Scope, Target};
use crate::state::Protocol;

/// Lines for a shell; those that begin with `#` are for the reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// Until the next reboot.
    pub now: Vec<String>,
    /// So that it is there after one.
    pub keep: Vec<String>,
    /// Takes away what `now` and `keep` added.
    pub undo: Vec<String>,
}

/// Takes away the rules that make conntrack track, and puts all rules back; none where a tool of iptables made some, for
/// what nft saves of those it can't load again.
pub fn without_tracking(tracking: &[Listed], by_iptables: bool) -> Option<Commands> {
    const SAVED: &str = "/run/ctwatch-ruleset.nft";
    if by_iptables || tracking.is_empty() {
        return None;
    }
    let deletes: Vec<String> = tracking.iter().map(|rule| rule.delete.clone()).collect::<Option<_>>()?;
    let mut keep = vec![
        "# take these rules out of the file that loads them at boot, such as /etc/nftables.conf:".to_owned(),
    ];
    keep.extend(tracking.iter().map(|rule| format!("#   {}: {}", rule.place, rule.rule)));
    let mut now = vec![format!("nft list ruleset > {SAVED}")];
    now.extend(deletes);
    Some(Commands {
        now,
        keep,
        undo: vec![
            format!("[ ! -f {SAVED} ] || {{ echo flush ruleset; cat {SAVED}; }} | nft -f -"),
            format!("rm -f {SAVED}"),
        ],
    })
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

pub fn notrack(target: &Target, tool: Tool) -> Commands {
    match tool {
        Tool::Nft => nft(target),
        Tool::Iptables | Tool::Ip6tables => iptables(target),
    }
}

/// The name of the table that holds nothing but this exemption.
fn name(target: &Target) -> String {
    let scope = match target.scope {
        Scope::Loopback => "lo",
        Scope::Served => "in",
        Scope::Outgoing => "out",
    };
    format!("ctwatch_notrack_{scope}_{}_{}", Protocol(target.proto), target.port)
}

fn nft(target: &Target) -> Commands {
    let table = name(target);
    let file = format!("/etc/nftables.d/{table}.nft");
    let rules = |output: bool| -> String {
        let rules = halves(target.scope).into_iter().filter(|half| half.output == output);
        let proto = Protocol(target.proto);
        rules.map(|half| format!(" {} {proto} {} {} notrack;", half.way.0, half.end, target.port)).collect()
    };
    let chain = |name: &str, rules: String| {
        if rules.is_empty() {
            String::new()
        } else {
            // raw: before conntrack (-200).
            format!(" chain {name} {{ type filter hook {name} priority -300;{rules} }};")
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
            "# nftables.service reads /etc/nftables.conf (Debian) or /etc/sysconfig/nftables.conf (RHEL) at boot, if enabled"
                .to_owned(),
            "mkdir -p /etc/nftables.d".to_owned(),
            format!("echo '{whole}' > {file}"),
            format!(
                "conf=/etc/nftables.conf; [ -d /etc/sysconfig ] && conf=/etc/sysconfig/nftables.conf; \
                 grep -qsF '{include}' $conf || echo '{include}' >> $conf"
            ),
        ],
        undo: vec![
            format!("nft delete table inet {table}"),
            format!("rm -f {file}"),
            format!(
                "sed -i '\\|^{include}$|d' /etc/nftables.conf /etc/sysconfig/nftables.conf 2> /dev/null || true"
            ),
        ],
    }
}

fn iptables(target: &Target) -> Commands {
    let lines = |how: &str| -> Vec<String> {
        let mut lines = Vec::new();
        for program in ["iptables", "ip6tables"] {
            for half in halves(target.scope) {
                let chain = if half.output { "OUTPUT" } else { "PREROUTING" };
                lines.push(format!(
                    "{program} -w -t raw {how} {chain} {} -p {} --{} {} -j CT --notrack",
                    half.way.1,
                    Protocol(target.proto),
                    half.end,
                    target.port
                ));
            }
        }
        lines
    };
    let unit = format!("{}.service", name(target).replace('_', "-"));
    let file = format!("/etc/systemd/system/{unit}");
    let mut content = vec![
        "[Unit]".to_owned(),
        format!("Description=Exempts {target} from conntrack"),
        // Behind those that load whole rule sets, whichever of them exist.
        "After=iptables.service ip6tables.service netfilter-persistent.service ufw.service firewalld.service"
            .to_owned(),
        "[Service]".to_owned(),
        "Type=oneshot".to_owned(),
        "RemainAfterExit=yes".to_owned(),
    ];
    content.extend(lines("-A").into_iter().map(|line| format!("ExecStart=/usr/sbin/{line}")));
    content.extend(["[Install]".to_owned(), "WantedBy=multi-user.target".to_owned()]);
    let content: Vec<_> = content.into_iter().map(|line| format!("'{line}'")).collect();
    let mut undo = lines("-D");
    undo.push(format!(
        "systemctl disable {unit} 2> /dev/null; rm -f {file}; systemctl daemon-reload 2> /dev/null || true"
    ));
    Commands {
        now: lines("-A"),
        keep: vec![
            "# a unit of its own: iptables-save would also save what docker, kube-proxy and others put there"
                .to_owned(),
            "# without systemd, run the lines for now at boot instead".to_owned(),
            format!("printf '%s\\n' {} > {file}", content.join(" ")),
            format!("systemctl daemon-reload && systemctl enable {unit}"),
        ],
        undo,
    }
}
