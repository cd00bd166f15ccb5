//! Runs the tools that list rules, in the calling thread's netns. The only I/O of this module.
//! Listing may not load a kernel module: what isn't loaded has no rules, so its tool isn't run.

use std::collections::BTreeSet;
use std::fs;

use super::dump::{Dump, Save, Tools};
use super::host::{HostFacts, local_v4, local_v6};
use super::run::output;
use super::{Firewall, Note};
use crate::files::programs::{Found, Programs};
use crate::foreign::{Foreign, Shown as _};
use crate::kernel;
use crate::kernel::nf_tables::Family;
use crate::kernel::roots::Roots;

/// Reads all rules of the calling thread's netns. What can't be read is a note.
#[must_use]
pub fn read(roots: &Roots) -> (Firewall, Dump, Vec<Note>) {
    let dump = dump(roots);
    let (firewall, more) = Firewall::parse(&dump);
    let notes = dump.unread.iter().cloned().chain(more).collect();
    (firewall, dump, notes)
}

/// What the tools print of the calling thread's netns, without judging it: for a recording.
#[must_use]
pub fn list(roots: &Roots) -> Dump {
    dump(roots)
}

fn dump(roots: &Roots) -> Dump {
    let notes = &mut Vec::new();
    let programs = &Programs::of_path();
    let found = |tool: &str| programs.find(tool).program().is_some();
    let tools = Tools { nft: found("nft"), iptables: found("iptables"), ip6tables: found("ip6tables") };
    let mut dump = Dump { tools, host: host(roots), ..Dump::default() };
    let automatic = fs::read_to_string(roots.proc("sys/net/netfilter/nf_conntrack_helper"));
    dump.automatic_helpers = automatic.is_ok_and(|text| text.trim() == "1");
    let range = fs::read_to_string(roots.proc("sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    dump.local_ports = range
        .split_once(char::is_whitespace)
        .and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
    dump.ipvs = virtual_services(roots);
    // Where nf_tables isn't loaded there are no rules of nft and of iptables-nft, and asking would load it.
    if has_nf_tables(roots) {
        if tools.nft {
            dump.nft_json =
                run(programs, "nft", &["-j", "list", "ruleset"], "nft rules", notes).unwrap_or_default();
            if dump.nft_json.trim().is_empty() && notes.is_empty() {
                // Even an empty rule set has its frame in JSON.
                notes.push(Note {
                    tool: "nft".to_owned(),
                    text: "`nft -j list ruleset` printed nothing: nft rules are unknown".to_owned(),
                });
            }
            if !dump.nft_json.is_empty() {
                // Words only, unless the JSON lacks something: that is found out where it is read.
                let text =
                    run(programs, "nft", &["-s", "-a", "list", "ruleset"], "nft rules", &mut Vec::new());
                dump.nft_text = text.unwrap_or_default();
            }
        }
        for (tool, plain, ipv6) in
            [("iptables-nft-save", "iptables-save", false), ("ip6tables-nft-save", "ip6tables-save", true)]
        {
            save(programs, Wanted { tool, plain, ipv6, legacy: false }, &mut dump, notes);
        }
        if !tools.nft {
            without_nft(programs, &dump, notes);
        }
    }
    // The legacy tools only list tables named here, and so load none: for_each_table, iptables/iptables-save.c, 1.8.
    for (names, tool, plain, ipv6) in [
        ("ip_tables_names", "iptables-legacy-save", "iptables-save", false),
        ("ip6_tables_names", "ip6tables-legacy-save", "ip6tables-save", true),
    ] {
        let names = fs::read_to_string(roots.proc("thread-self/net").join(names)).unwrap_or_default();
        if !names.trim().is_empty() {
            save(programs, Wanted { tool, plain, ipv6, legacy: true }, &mut dump, notes);
        }
    }
    dump.unread = std::mem::take(notes);
    dump
}

/// The virtual services of IPVS, without what is counted of them.
fn virtual_services(roots: &Roots) -> String {
    let text = fs::read_to_string(roots.proc("thread-self/net/ip_vs")).unwrap_or_default();
    let line = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["->", server, ..] => format!("  -> {server}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// Which tables of nf_tables nothing has listed, where nft isn't installed.
fn without_nft(programs: &Programs, dump: &Dump, notes: &mut Vec<Note>) {
    let why = why_not("nft", &programs.find("nft"));
    let listed: BTreeSet<(bool, &str)> = dump
        .saves
        .iter()
        .filter(|save| !save.legacy)
        .flat_map(|save| save.text.lines().filter_map(|line| Some((save.ipv6, line.strip_prefix('*')?))))
        .collect();
    let mut note = |text: String| notes.push(Note { tool: "nft".to_owned(), text });
    match kernel::nf_tables::tables() {
        Ok(tables) => {
            let unlisted: Vec<String> = tables
                .iter()
                .filter(|table| match table.family {
                    Family::Ip => !listed.contains(&(false, table.name.as_str())),
                    Family::Ip6 => !listed.contains(&(true, table.name.as_str())),
                    Family::Inet => true,
                    Family::Other => false,
                })
                .map(|table| format!("{} {}", table.family, table.name.escape_default()))
                .collect();
            if !unlisted.is_empty() {
                note(format!("{why}: the rules of {} are unknown; install nftables", unlisted.join(", ")));
            }
        }
        Err(error) => note(format!("{why}: nft rules are unknown ({error:#})")),
    }
}

/// The host's own addresses, and whether it forwards.
fn host(roots: &Roots) -> HostFacts {
    let read = |name: &str| fs::read_to_string(roots.proc("thread-self/net").join(name)).ok();
    // /proc/sys shows the netns of whoever reads it.
    let forwards = |ip: &str| -> Option<bool> {
        let folders = fs::read_dir(roots.proc("sys/net").join(ip).join("conf")).ok()?;
        let mut known = folders.map(|folder| {
            let text = fs::read_to_string(folder.ok()?.path().join("forwarding")).ok()?;
            Some(text.trim() != "0")
        });
        // Bridged packets meet the rules of forwarded ones.
        let bridged = fs::read_to_string(roots.proc("sys/net/bridge/bridge-nf-call-iptables"));
        let bridged = bridged.is_ok_and(|text| text.trim() == "1");
        known.try_fold(bridged, |any, one| Some(any | one?))
    };
    HostFacts {
        own_v4: read("fib_trie").and_then(|text| local_v4(&text)),
        // Without IPv6 there is no such file, and no packet of it.
        own_v6: match read("ipv6_route") {
            Some(text) => local_v6(&text),
            None if read("if_inet6").is_none() && read("fib_trie").is_some() => Some(Vec::new()),
            None => None,
        },
        forwards_v4: forwards("ipv4"),
        forwards_v6: forwards("ipv6"),
    }
}

/// One iptables-save, and what it is called where it has no name of its own for its variant.
struct Wanted {
    tool: &'static str,
    plain: &'static str,
    ipv6: bool,
    legacy: bool,
}

/// Runs one iptables-save. A tool without a name of its own for the variant is taken if it is of that variant.
fn save(programs: &Programs, wanted: Wanted, dump: &mut Dump, notes: &mut Vec<Note>) {
    let Wanted { tool, plain, ipv6, legacy } = wanted;
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let variant = if legacy { "legacy iptables" } else { "iptables-nft" };
    let found = |tool: &str| programs.find(tool).program().is_some();
    let tool = if found(tool) {
        tool
    } else if found(plain) && is_nf_tables(programs, plain) != legacy {
        plain
    } else {
        // Rules of iptables-nft show in nft's list, and a note comes from there if they are opaque.
        if legacy {
            notes.push(Note {
                tool: tool.to_owned(),
                text: format!(
                    "{variant} has {family} rules, but {}: they are unknown",
                    why_not(tool, &programs.find(tool))
                ),
            });
        }
        return;
    };
    if let Some(text) = run(programs, tool, &[], &format!("{family} rules of {variant}"), notes) {
        dump.saves.push(Save { tool: tool.to_owned(), ipv6, legacy, text });
    }
}

fn is_nf_tables(programs: &Programs, tool: &str) -> bool {
    let program = programs.find(tool).program();
    let said = program.and_then(|program| output(&program, &["--version"], &programs.path()).ok());
    said.is_some_and(|output| Foreign::from_bytes(&output.stdout).raw().contains("nf_tables"))
}

fn has_nf_tables(roots: &Roots) -> bool {
    // A built-in nf_tables has no folder there, but shows its functions.
    roots.sys("module/nf_tables").exists()
        || fs::read_to_string(roots.proc("kallsyms"))
            .is_ok_and(|text| text.lines().any(|line| line.ends_with(" nft_do_chain")))
}

/// Why a program isn't run.
fn why_not(tool: &str, found: &Found) -> String {
    match found {
        Found::NotTrusted { path, why } => {
            format!("{} is not run, since others than root may have put it there ({why})", path.shown())
        }
        Found::Program(_) | Found::Missing => format!("{tool} is not installed"),
    }
}

/// What the program printed; a note if it couldn't.
fn run(
    programs: &Programs,
    tool: &str,
    arguments: &[&str],
    what: &str,
    notes: &mut Vec<Note>,
) -> Option<String> {
    let mut note = |text: String| notes.push(Note { tool: tool.to_owned(), text });
    let program = match programs.find(tool) {
        Found::Program(program) => program,
        not_run => {
            note(format!("{}: {what} are unknown", why_not(tool, &not_run)));
            return None;
        }
    };
    match output(&program, arguments, &programs.path()) {
        Ok(output) if output.status.success() => Some(Foreign::from_bytes(&output.stdout).into_raw()),
        Ok(output) => {
            let said = Foreign::from_bytes(&output.stderr);
            let said = said.raw().lines().find(|line| !line.starts_with('#'));
            let said = Foreign::from(said.unwrap_or("no error message").trim());
            note(format!("{tool} failed, so {what} are unknown (root needed?): {said}"));
            None
        }
        Err(error) => {
            note(format!("{tool} can't be run, so {what} are unknown: {error:#}"));
            None
        }
    }
}
